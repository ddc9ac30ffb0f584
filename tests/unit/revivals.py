"""Gateways whose sessions are shared and may be made anew, and the steps of doing so."""

from __future__ import annotations

from typing import Any

from mcp_proxy.sessions import SessionKey, SessionRecord
from mcp_proxy.sessions.shared import SharedStore
from tests.unit.actors import Attempt
from tests.unit.fakes import settle
from tests.unit.gatehouse import SESSION, Client, Gatehouse, initialize
from tests.unit.poolside import unreachable
from tests.unit.registries import FRESH_S, ROUTE, FakeRegistry, Shelf, seal

TURNS = 30
"""Of the loop; enough for any number of answers of a registry that are not held back."""

INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'


class SharedHouse(Gatehouse):
    """One replica, with a registry of its own or with that of others (``shelf``)."""

    def __init__(
        self, backends: int = 3, *, shelf: Shelf | None = None, sealed: bool = False, **options: Any
    ) -> None:
        self.shelf = shelf or Shelf(ttl_s=1000.0)
        self.registry = FakeRegistry(self.shelf)
        self._sealed = sealed
        super().__init__(backends, store=self._shared, **options)

    def _shared(self, house: Gatehouse) -> SharedStore:
        return SharedStore(
            "signed" if self._sealed else "redis",
            ttl_s=self.shelf.ttl_s,
            cache_ttl_s=FRESH_S,
            tasks=house.tasks,
            watcher=house.watch,
            registry=self.registry,
            seal=seal(*(backend.id for backend in house.backends)) if self._sealed else None,
            clock=self.shelf.clock,
        )

    async def begin(self, session: bytes = b"s1", *headers: tuple[bytes, bytes]) -> tuple[bytes, str]:
        """A session that its backend calls ``session``: how the client calls it, and its backend."""
        client = self.ask(initialize(), *headers)
        attempt = self.take()
        attempt.answer(200, b"{}", (SESSION, session))
        await settle()
        assert client.reply.status == 200, client.verdict
        self.journal.records.clear()
        self.journal.events.clear()
        self.registry.asked.clear()
        ours = client.reply.one(SESSION)
        assert ours is not None
        return ours, attempt.backend

    def stored(self, session: bytes) -> SessionRecord:
        record = self.shelf.read(SessionKey(ROUTE, session).name)
        assert isinstance(record, SessionRecord)
        return record

    def lose(self, backend: str) -> None:
        """It has been unreachable for so long that it counts as lost; the next connect fails, too."""
        for ago_s in (10.1, 5.0, 0.5):
            unreachable(self.pool, self.find(backend), ago_s)

    async def ask_lost(self, session: bytes, backend: str, **options: Any) -> Client:
        """A request of a session whose backend is found lost by it."""
        self.lose(backend)
        client = self.call(session, **options)
        await settle(TURNS)
        attempt = self.attempts.pop()
        assert attempt.backend == backend
        attempt.fail("refused")
        await settle(TURNS)
        return client

    async def one(self) -> Attempt:
        """The only request that has reached a backend since."""
        await settle(TURNS)
        return self.take()


def house_of(**options: Any) -> SharedHouse:
    """Three backends that take over from each other."""
    return SharedHouse(3, reinitializes=True, **options)


def fields(attempt: Attempt) -> dict[bytes, bytes]:
    """Headers that a backend received. The session id is checked to be the only one."""
    headers: list[tuple[bytes, bytes]] = list(attempt.outgoing.headers)
    assert [name for name, _ in headers].count(SESSION) < 2
    return dict(headers)


def is_initialize(attempt: Attempt) -> bool:
    return attempt.outgoing.method == b"POST" and attempt.outgoing.body == initialize()


def is_goodbye(attempt: Attempt, session: bytes) -> bool:
    headers = attempt.outgoing.headers
    return (attempt.outgoing.method, attempt.outgoing.body) == (b"DELETE", b"") and [
        value for name, value in headers if name == SESSION
    ] == [session]


async def revived(house: SharedHouse, session: bytes = b"u2") -> str:
    """Play the backend that makes the session anew; returns its id."""
    first = await house.one()
    assert is_initialize(first)
    first.answer(200, b'{"result":{}}', (SESSION, session))
    second = await house.one()
    assert (second.backend, second.outgoing.body) == (first.backend, INITIALIZED)
    second.answer(202, b"")
    await settle(TURNS)
    return first.backend
