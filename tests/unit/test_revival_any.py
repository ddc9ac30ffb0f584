"""Two replicas, one session, lost backends, answers in any order: everybody gets an answer, once."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.sessions import ENDED, SessionKey, SessionRecord
from tests.tools import PATIENCE_S
from tests.unit.actors import Attempt
from tests.unit.fakes import settle
from tests.unit.gatehouse import EVENTS, SESSION, Client, legacy
from tests.unit.registries import ROUTE, Shelf
from tests.unit.revivals import INITIALIZED, TURNS, SharedHouse, house_of, is_initialize

STEPS = [
    "call", "call", "call", "stream", "delete", "answer", "answer", "answer", "answer", "lose", "lose",
    "fail", "404", "leave", "turn", "registry fails", "registry works", "claims expire",
]  # fmt: skip


class World:
    """``begun`` are sessions that backends have made, ``ended`` those that they were told to end."""

    def __init__(self) -> None:
        self.shelf = Shelf(ttl_s=1e6)
        self.houses = [house_of(shelf=self.shelf) for _ in range(2)]
        self.clients: list[tuple[Client, bytes]] = []
        self.begun: set[tuple[object, ...]] = set()
        self.ended: set[tuple[object, ...]] = set()
        self.away: set[str] = set()
        """Backends that cannot be reached; never all of them."""

    async def begin(self) -> None:
        self.ours, self.owner = await self.houses[0].begin(b"u0")
        self.begun.add((self.owner, b"u0"))

    def waiting(self, house: SharedHouse) -> list[Attempt]:
        return [attempt for attempt in house.attempts if not attempt.is_over]

    def check(self, attempt: Attempt) -> bytes:
        """What it is about; every request of the session goes to a session that its backend has made."""
        headers: list[tuple[bytes, bytes]] = list(attempt.outgoing.headers)
        sessions = [value for name, value in headers if name == SESSION]
        if is_initialize(attempt):
            assert sessions == []
        else:
            assert (attempt.backend, *sessions) in self.begun
        if attempt.outgoing.method == b"DELETE":
            self.ended.add((attempt.backend, *sessions))
        return b"".join(sessions)

    def answer(self, attempt: Attempt) -> None:
        session = self.check(attempt)
        if attempt.backend in self.away and not attempt.has_head:
            attempt.fail("refused")
            return
        outgoing = attempt.outgoing
        if is_initialize(attempt):
            session = b"u%d" % len(self.begun)
            self.begun.add((attempt.backend, session))
            attempt.answer(200, b"{}", (SESSION, session))
        elif outgoing.body == INITIALIZED:
            attempt.answer(202, b"")
        elif outgoing.method == b"DELETE":
            attempt.answer(204, b"")
        elif outgoing.method == b"GET" and not attempt.has_head:
            attempt.head(200, [EVENTS, (SESSION, session)])
        elif not attempt.has_head:
            attempt.answer(200, b'{"ok":1}', (SESSION, session))

    def step(self, word: str, number: int) -> None:
        house = self.houses[number % 2]
        waiting = self.waiting(house)
        chosen = waiting[number % len(waiting)] if waiting else None
        if word in ("call", "stream", "delete"):
            self.ask(house, word)
        elif word == "answer" and chosen is not None:
            self.answer(chosen)
        elif word in ("fail", "404") and chosen is not None and not chosen.has_head:
            self.disappoint(chosen, word)
        elif word == "leave" and self.clients:
            client = self.clients[number % len(self.clients)][0]
            if not client.reply.is_gone and client.exchange is not None:
                client.leave()
        else:
            self.disturb(house, word)

    def ask(self, house: SharedHouse, word: str) -> None:
        method = {"call": b"POST", "stream": b"GET", "delete": b"DELETE"}[word]
        body = legacy("tools/call") if word == "call" else b""
        self.clients.append((house.ask(body, (SESSION, self.ours), method=method), method))

    def disappoint(self, attempt: Attempt, word: str) -> None:
        self.check(attempt)
        if word == "404":
            attempt.answer(404, b"who?")
        else:
            attempt.fail("lost")

    def disturb(self, house: SharedHouse, word: str) -> None:
        if word == "lose":
            stored = self.shelf.read(SessionKey(ROUTE, self.ours).name)
            if isinstance(stored, SessionRecord) and len(self.away) < 2:
                self.away.add(stored.backend)
                for each in self.houses:
                    each.lose(stored.backend)
        elif word == "registry fails":
            house.registry.failing |= {"claim", "replace", "fetch"}
        elif word == "registry works":
            house.registry.failing.clear()
        elif word == "claims expire":
            self.shelf.claims.clear()

    async def come_to_rest(self) -> None:
        """Backends answer, registries work; who waits for a timer of half a second is spared it."""
        for house in self.houses:
            house.registry.failing.clear()
        self.shelf.claims.clear()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                await settle(TURNS)
                for house in self.houses:
                    for attempt in self.waiting(house):
                        self.answer(attempt)
                if self.is_at_rest():
                    return
                await asyncio.sleep(0.005)  # who waits for the claim of another looks every 0.1 s

    def is_at_rest(self) -> bool:
        """Everybody has an answer; streams and those who wait for a timer are left."""
        for client, method in self.clients:
            exchange = client.exchange
            if exchange is None or client.reply.outcome or client.reply.is_gone:
                continue
            if method == b"GET" or exchange.pending is not None:
                client.leave()
            else:
                return False
        return all(not self.waiting(house) and len(house.tasks) == 0 for house in self.houses)


@given(st.booleans(), st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 40)), max_size=50))
@settings(max_examples=150, deadline=None)
async def test_whatever_happens_everybody_is_answered_and_no_backend_session_is_forgotten(
    begins_with_a_loss: bool, steps: list[tuple[str, int]]
) -> None:
    world = World()
    await world.begin()
    if begins_with_a_loss:
        world.step("lose", 0)
    for word, number in steps:
        world.step(word, number)
        if number % 3:
            await settle(number)
    await world.come_to_rest()
    for house in world.houses:
        await house.gateway.aclose()
        assert not house.gateway.live
        assert house.pool.streams == house.gateway.quotas.streams == 0
    for client, _ in world.clients:
        shown = [value for name, value in client.reply.headers if name == SESSION]
        assert shown in ([], [world.ours]), "the client knows no other name"
    stored = world.shelf.read(SessionKey(ROUTE, world.ours).name)
    assert stored is ENDED or isinstance(stored, SessionRecord)
    used = {(record.backend, record.upstream_id or b"u0") for record in world.shelf.history}
    assert used <= world.begun
    assert world.begun - used - world.ended == set(), "a backend keeps a session that nobody will use"
    records = [len(house.journal.records) for house in world.houses]
    assert sum(records) == len(world.clients)
