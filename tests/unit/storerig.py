"""What the contract of every session store is tested with.

A store joins the tests by an entry of ``STORES``: a store, what its watcher heard, and how to let its
time pass.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from mcp_proxy.sessions import Listed, Page, SessionKey, SessionRecord, SessionStore, settled
from mcp_proxy.sessions.memory import MemoryStore

TTL_S = 1000.0

ROUTE = "/main"
KEY = SessionKey(ROUTE, b"s1")
OWNER = SessionRecord("http://a:80/mcp", "someone", created_s=1_700_000_000)
OTHER = SessionRecord("http://b:80/mcp")
MOVED = SessionRecord("http://b:80/mcp", "someone", upstream_id=b"new", generation=1, created_s=1_700_000_000)

Known = list[tuple[SessionKey, SessionRecord]]


class Seen:
    """A Watcher that writes down what it hears, and that every ``forgot`` follows its ``learnt``."""

    def __init__(self) -> None:
        self.known: Known = []
        self.forgotten: Known = []
        self.ended: Known = []
        """Those of ``forgotten`` that were over."""

    def learnt(self, key: SessionKey, record: SessionRecord) -> None:
        assert key not in [known for known, _ in self.known]
        self.known.append((key, record))

    def forgot(self, key: SessionKey, record: SessionRecord, *, is_over: bool) -> None:
        self.known.remove((key, record))
        self.forgotten.append((key, record))
        if is_over:
            self.ended.append((key, record))


class Rig:
    """A store, what its watcher heard, and its time."""

    def __init__(
        self, store: SessionStore, seen: Seen, pass_time: Callable[[float], Awaitable[None] | None]
    ) -> None:
        self.store = store
        self.seen = seen
        self._pass_time = pass_time

    async def get(self, key: SessionKey = KEY, principal: str = OWNER.principal) -> SessionRecord | None:
        return await settled(self.store.get(key, principal))

    async def create(self, key: SessionKey = KEY, record: SessionRecord = OWNER) -> bool:
        return await settled(self.store.create(key, record))

    async def delete(self, key: SessionKey = KEY) -> None:
        await settled(self.store.delete(key))

    async def move(self, old: SessionRecord, new: SessionRecord, key: SessionKey = KEY) -> bool:
        return await settled(self.store.move(key, old, new))

    async def page(self, cursor: str = "", limit: int = 100) -> Page:
        return await settled(self.store.page(cursor, limit))

    async def pages(self, limit: int = 100) -> list[Listed]:
        """Every session on every page."""
        page = await self.page(limit=limit)
        sessions = page.sessions
        while page.cursor:
            page = await self.page(page.cursor, limit)
            sessions += page.sessions
        return sessions

    async def show(self, name: str = KEY.name) -> Listed | None:
        return await settled(self.store.show(name))

    async def end(self, name: str = KEY.name) -> bool:
        return await settled(self.store.end(name))

    async def restore(self, *sessions: Listed) -> int:
        return await settled(self.store.restore(sessions))

    async def wait(self, seconds: float) -> None:
        """Let so much time pass for the store, and let it do what it does then."""
        await settled(self._pass_time(seconds))


class Clock:
    def __init__(self) -> None:
        self.at_s = 5000.0

    def __call__(self) -> float:
        return self.at_s


def memory() -> Rig:
    seen, clock = Seen(), Clock()
    store = MemoryStore(TTL_S, seen, clock=clock)

    def pass_time(seconds: float) -> None:
        clock.at_s += seconds
        store.sweep(clock.at_s)

    return Rig(store, seen, pass_time)


STORES: list[Callable[[], Rig]] = [memory]


@asynccontextmanager
async def opened(make: Callable[[], Rig]) -> AsyncIterator[Rig]:
    made = make()
    made.store.start()
    yield made
    await made.store.aclose()


def backup(
    key: SessionKey = KEY, record: SessionRecord = OWNER, expires_s: float | None = TTL_S / 2
) -> Listed:
    return Listed(key.name, key.route, record, expires_s)
