"""Replicas that share sessions, with every order of answers, news, outages and losses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import ENDED, SessionKey, SessionRecord, settled
from tests.unit.fakes import settle
from tests.unit.registries import FOREIGN, FRESH_S, ROUTE, FakeRegistry, Held, Replica, Shelf

REPLICAS = 3
OPERATIONS = ["fetch", "refresh", "replace", "end", "create"]
STEPS = [
    "get",
    "get",
    "reread",
    "foreign",
    "end",
    "move",
    "wait",
    "touch",
    "hold",
    "carry out",
    "tell",
    "down",
    "up",
]
OWNER = SessionRecord("one", "alice", b"their-own", initialize=b"{}")


class World:
    """One session, several replicas, and what is known to be true."""

    def __init__(self, *, sealed: bool) -> None:
        self.shelf = Shelf(ttl_s=1e6)
        self.replicas = [Replica(self.shelf, sealed=sealed) for _ in range(REPLICAS)]
        self.carried: list[tuple[Held, object]] = []
        self.running: list[asyncio.Task[None]] = []
        self.is_ended = False
        """Somebody has asked for it; from here on nobody needs to find it."""
        self.seen = [0] * REPLICAS
        """The highest generation that each replica has shown."""

    async def begin(self) -> None:
        store = self.replicas[0].store
        self.key, self.record = store.issue(SessionKey(ROUTE, b"their-own"), OWNER)
        assert await settled(store.create(self.key, self.record))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.running.append(asyncio.ensure_future(work))

    async def look(self, number: int, *, again: bool = False) -> None:
        """A request of the session. Generations never go back, and only an end ends."""
        store = self.replicas[number].store
        floor = self.seen[number]
        try:
            found = await settled((store.reread if again else store.get)(self.key, "alice"))
        except StoreError:
            return
        if found is None:
            assert self.is_ended, "no such session, and nobody has ended it"
            return
        assert found.principal == "alice"
        assert found.generation >= floor, "back to where it was"
        self.seen[number] = max(self.seen[number], found.generation)

    async def look_as_somebody_else(self, number: int) -> None:
        try:
            assert await settled(self.replicas[number].store.get(self.key, FOREIGN)) is None
        except StoreError:
            return

    async def end(self, number: int) -> None:
        self.is_ended = True
        deletion = self.replicas[number].store.delete(self.key)
        assert deletion is not None
        try:
            await deletion
        except StoreError:
            return

    async def move(self, number: int) -> None:
        store = self.replicas[number].store
        try:
            old = await settled(store.reread(self.key, "alice"))
            if old is None:
                return
            generation = old.generation + 1
            new = SessionRecord(
                f"b{generation}", "alice", b"u%d" % generation, generation, b"{}", old.created_s
            )
            await settled(store.move(self.key, old, new))
        except StoreError:
            return

    def step(self, word: str, number: int) -> None:
        actor = number % REPLICAS
        replica = self.replicas[actor]
        actions: dict[str, Callable[[], object]] = {
            "get": lambda: self.spawn(self.look(actor)),
            "reread": lambda: self.spawn(self.look(actor, again=True)),
            "foreign": lambda: self.spawn(self.look_as_somebody_else(actor)),
            "end": lambda: self.spawn(self.end(actor)),
            "move": lambda: self.spawn(self.move(actor)),
            "touch": lambda: replica.store.touch(self.key),
            "wait": lambda: self.wait(FRESH_S / 2),
            "hold": lambda: self.hold(replica.registry),
            "carry out": lambda: self.carry_out(replica.registry),
            "tell": lambda: self.tell(number),
            "down": lambda: setattr(replica.registry, "is_down", True),
            "up": lambda: replica.registry.reset() if replica.registry.is_down else None,
        }
        actions[word]()

    def wait(self, seconds: float) -> None:
        self.shelf.at_s += seconds
        for replica in self.replicas:
            replica.store.sweep(self.shelf.at_s)

    def hold(self, registry: FakeRegistry) -> None:
        registry.holds = set() if registry.holds else set(OPERATIONS)

    def carry_out(self, registry: FakeRegistry) -> None:
        """Its answer is late: others may overtake it."""
        if registry.held:
            held = registry.held.pop()
            self.carried.append((held, held.do()))

    def tell(self, number: int) -> None:
        if self.carried:
            held, answer = self.carried.pop(number % len(self.carried))
            if not held.answer.done():
                held.answer.set_result(answer)

    def tell_all(self) -> None:
        while self.carried:
            self.tell(0)
        for replica in self.replicas:
            while replica.registry.held:
                self.carry_out(replica.registry)
        while self.carried:
            self.tell(0)

    async def come_to_rest(self) -> None:
        """Everything that is out is answered, everybody can be asked, and time goes by."""
        for replica in self.replicas:
            replica.registry.holds = set()
            if replica.registry.is_down:
                replica.registry.reset()
        for _ in range(4):
            self.tell_all()
            await settle(20)
            self.wait(FRESH_S)
            await settle(20)

    async def aclose(self) -> None:
        for replica in self.replicas:
            await replica.aclose()


steps = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 30)), max_size=60)


@pytest.mark.parametrize("sealed", [False, True], ids=["redis", "signed"])
@given(steps)
@settings(max_examples=150, deadline=None)
async def test_whatever_happens_replicas_agree_in_the_end(
    sealed: bool, steps: Sequence[tuple[str, int]]
) -> None:
    world = World(sealed=sealed)
    await world.begin()
    for word, number in steps:
        world.step(word, number)
        if number % 2:
            await settle(2)
    await world.come_to_rest()
    done = [task for task in world.running if task.done()]
    assert len(done) == len(world.running), "somebody waits for ever"
    for task in done:
        task.result()
    stored = world.shelf.read(world.key.name)
    for replica in world.replicas:
        found = await settled(replica.store.get(world.key, "alice"))
        if world.is_ended:
            assert stored is ENDED
            assert found is None
        else:
            assert found == stored
            assert isinstance(stored, SessionRecord)
        assert [record for _, record in replica.seen.known] == ([] if found is None else [found])
        assert len(replica.tasks) == 0
    await world.aclose()


@given(steps, st.lists(st.integers(0, 60), max_size=3))
@settings(max_examples=150, deadline=None)
async def test_a_registry_that_loses_everything_now_and_then_ends_no_session(
    steps: Sequence[tuple[str, int]], losses: Sequence[int]
) -> None:
    """One replica uses the session all the time and can be reached, so it is brought back each time."""
    world = World(sealed=False)
    await world.begin()
    first = world.replicas[0]
    for index, (word, number) in enumerate(steps):
        if word in ("end", "hold", "down", "move"):
            continue
        if index in losses:
            await settle(20)
            world.shelf.lose()
            first.registry.reset()
            first.store.touch(world.key)
            await settle(20)
        world.step(word, number)
        await world.look(0)
        await settle(2)
    await world.come_to_rest()
    for task in world.running:
        task.result()
    assert world.shelf.read(world.key.name) == world.record
    await world.aclose()
