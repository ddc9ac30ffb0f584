"""Clients, backends and a registry that act in any order while backends come, leave and are drained: whatever
happens, everything is given back and nothing goes wrong inside."""

from __future__ import annotations

import logging
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy import clock
from mcp_proxy.backends import Backend
from mcp_proxy.backends.ejection import Rule
from mcp_proxy.errors import StoreError
from mcp_proxy.exchange import State
from mcp_proxy.sessions import SessionRecord
from tests.unit.actors import Attempt
from tests.unit.fakes import settle
from tests.unit.gatehouse import EVENTS, JSON, SESSION, Client, Gatehouse, initialize, modern
from tests.unit.poolside import endpoint
from tests.unit.slow_store import SlowStore

HOSTS = [f"backend{number}.example" for number in range(3)]
IDS = [endpoint(host).backend().id for host in HOSTS]

REQUESTS: list[Callable[[Gatehouse], Client]] = [
    lambda house: house.ask(initialize()),
    lambda house: house.ask(initialize()),
    lambda house: house.ask(*modern("tools/call")),
    lambda house: house.ask(*modern("server/discover")),
    lambda house: house.ask(*modern("subscriptions/listen")),
    lambda house: house.ask(*modern("tasks/get", taskId="t-1")),
    lambda house: house.call(),
    lambda house: house.listen(),
    lambda house: house.ask(b"", (SESSION, b"s1"), method=b"DELETE"),
]
FLEET = ["update", "update", "operate", "undrain", "era", "configure", "tick", "tick", "much later"]
WORLD = [
    "ask",
    "ask",
    "ask",
    "head",
    "stream",
    "whole",
    "fail",
    "refuse",
    "stale",
    "leave",
    "store",
    "store fails",
]

STEPS = st.tuples(st.sampled_from(WORLD + FLEET), st.integers(0, 63))


class Complaints(logging.Handler):
    """What the proxy says of itself that is not a warning."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.getMessage().startswith("security: "):
            self.lines.append(f"{record.getMessage()} {record.exc_info}")


class World:
    """``number`` says which of those that there are."""

    def __init__(self, *, is_slow: bool, reinitializes: bool) -> None:
        self.house = Gatehouse(
            3,
            store=(lambda house: SlowStore()) if is_slow else None,
            reinitializes=reinitializes,
            drain_s=0.0,
            lost_after_s=0.0,
            eject=Rule(1, 0.0, 0.5),
            tap=1000,
        )
        self.house.pool.on_overdue = self.house.gateway.let_go
        self.house.pool.on_change = self.house.watch.recount
        self.clients: list[Client] = []
        self.backends: set[Backend] = set(self.house.pool.backends)

    async def act(self, action: str, number: int) -> None:
        if action in FLEET:
            self.act_as_fleet(action, number)
        elif action == "ask":
            self.clients.append(REQUESTS[number % len(REQUESTS)](self.house))
        elif action == "leave":
            self.leave(number)
        elif action.startswith("store"):
            await self.act_as_store(action, number)
        else:
            self.act_as_backend(action, number)
        self.backends.update(self.house.pool.backends)
        await settle()

    def act_as_fleet(self, action: str, number: int) -> None:
        pool = self.house.pool
        known = pool.backends
        one = known[number % len(known)] if known else None
        if action == "update":
            there = [
                endpoint(host, is_open=not number >> bit & 8)
                for bit, host in enumerate(HOSTS)
                if number >> bit & 1
            ]
            pool.update(there, "discovery")
        elif action == "configure":
            pool.configure(pool.policy)
        elif action in ("tick", "much later"):
            at_s = clock.now() + (100.0 if action == "much later" else 0.0)
            pool.sweep(at_s)
            self.house.gateway.sweep(at_s)
        elif one is not None and action == "operate":
            pool.drain(one, "operator", None if number % 2 else 60.0)
        elif one is not None and action == "undrain":
            pool.undrain(one)
        elif one is not None:
            pool.learn_era(one, number % 2 == 0)

    def leave(self, number: int) -> None:
        open_ = [each for each in self.clients if not each.reply.outcome and not each.reply.is_gone]
        if open_:
            open_[number % len(open_)].leave()

    async def act_as_store(self, action: str, number: int) -> None:
        store: Any = self.house.store
        if not isinstance(store, SlowStore) or not store.asked:
            return
        record = SessionRecord(IDS[number % 3], initialize=initialize(), generation=number % 2)
        answers: dict[str, object] = {"get": record, "reread": record}
        if action == "store":
            await store.answer(answers.get(store.asked[0][0], number % 4 > 0))
        else:
            await store.fail(StoreError("down"))

    @property
    def waiting(self) -> list[Attempt]:
        return [attempt for attempt in self.house.attempts if not attempt.is_over]

    def act_as_backend(self, action: str, number: int) -> None:
        if not self.waiting:
            return
        attempt = self.waiting[number % len(self.waiting)]
        if action in ("head", "stream", "whole"):
            if not attempt.has_head:
                status = (200, 200, 200, 404, 500, 503)[number % 6]
                headers = [
                    EVENTS if action == "stream" else JSON,
                    *([(SESSION, b"s1")] if number % 2 else []),
                ]
                attempt.whole(status, headers) if action == "whole" else attempt.head(status, headers)
            elif action == "whole":
                attempt.end()
        elif action == "refuse" and not attempt.has_head:
            attempt.fail("refused")
        else:
            attempt.fail(stale=action == "stale" and not attempt.has_head)

    async def finish(self) -> None:
        for client in self.clients:
            if not client.reply.outcome and not client.reply.is_gone:
                client.leave()
        await settle()
        for _ in range(100):
            if isinstance(self.house.store, SlowStore) and self.house.store.asked:
                await self.house.store.fail(StoreError("down"))
            for attempt in self.waiting:
                attempt.fail()
            await settle()
            if not self.waiting and not len(self.house.tasks):
                break
        await self.house.gateway.aclose()


async def live(steps: list[tuple[str, int]], *, is_slow: bool, reinitializes: bool) -> None:
    complaints = Complaints()
    logger = logging.getLogger("mcp_proxy")
    logger.addHandler(complaints)
    try:
        world = World(is_slow=is_slow, reinitializes=reinitializes)
        for action, number in steps:
            await world.act(action, number)
            assert complaints.lines == []
            states = [client.exchange.state for client in world.clients if client.exchange is not None]
            busy = sum(state not in (State.DONE, State.ROUTING) for state in states)
            assert sum(backend.inflight for backend in world.backends) == busy
        await world.finish()
        assert complaints.lines == []
        counts = {(backend.inflight, backend.opening, backend.streams) for backend in world.backends}
        assert counts == {(0, 0, 0)}
        assert len(world.house.journal.records) == len(world.clients)
        assert (world.house.gateway.quotas.streams, world.house.gateway.quotas.requests) == (0, 0)
        assert world.house.pool.streams == 0
    finally:
        logger.removeHandler(complaints)


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("reinitializes", [False, True])
@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(WORLD + FLEET), st.integers(0, 63)), min_size=20, max_size=80)
)
async def test_whatever_happens_to_backends_everything_is_given_back(
    steps: list[tuple[str, int]], is_slow: bool, reinitializes: bool
) -> None:
    await live(steps, is_slow=is_slow, reinitializes=reinitializes)


@pytest.mark.parametrize("seed", range(8))
async def test_a_long_life_leaves_nothing_behind(seed: int) -> None:
    """What needs more steps than a counterexample that can be read."""
    random = Random(seed)
    steps = [(random.choice(WORLD + FLEET), random.randrange(64)) for _ in range(600)]
    await live(steps, is_slow=seed % 2 == 0, reinitializes=seed % 4 < 2)
