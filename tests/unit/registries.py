"""A registry in memory, in the test's hands, and replicas that share it.

Rules of this file: the fake does what the real registry does; ``test_registry_contract.py`` runs
one contract against both. Nothing happens behind the test's back: an operation that a test holds
waits in ``held`` until it is carried out, answered or failed, one by one and in any order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, cast

from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import ENDED, Ended, Listed, Page, SessionKey, SessionRecord, Stored, settled
from mcp_proxy.sessions.shared import SharedStore
from mcp_proxy.sessions.signed import Derived, Seal
from mcp_proxy.tasks import Tasks
from tests.unit.fakes import settle

ROUTE = "/mcp"
TTL_S = 100.0
FRESH_S = 10.0
TOMBSTONE_S = 4000.0
FOREIGN = "somebody else"


class Shelf:
    """What Redis is to replicas. Time goes by when the test says so."""

    def __init__(self, ttl_s: float = TTL_S) -> None:
        self.at_s = 1000.0
        self.ttl_s = ttl_s
        self.replicas: list[FakeRegistry] = []
        self.claims: dict[str, tuple[str, float]] = {}
        self.history: list[SessionRecord] = []
        """Every record that was ever written."""
        self._items: dict[str, tuple[SessionRecord | Ended, float]] = {}

    def clock(self) -> float:
        return self.at_s

    def read(self, name: str) -> Stored:
        item = self._items.get(name)
        return None if item is None or item[1] <= self.at_s else item[0]

    def left_s(self, name: str) -> float:
        return self._items[name][1] - self.at_s

    def write(self, name: str, value: SessionRecord | Ended, ttl_s: float | None = None) -> None:
        if isinstance(value, SessionRecord):
            self.history.append(value)
        default_s = TOMBSTONE_S if value is ENDED else self.ttl_s
        self._items[name] = (value, self.at_s + (default_s if ttl_s is None else ttl_s))

    def lose(self, *names: str) -> None:
        """As a failover does to what was not replicated yet; all of it if no names are given."""
        for name in names or tuple(self._items):
            self._items.pop(name, None)

    def announce(self, name: str, *, is_again: bool = False) -> None:
        for replica in self.replicas:
            replica.hear(name, is_again=is_again)

    @property
    def names(self) -> list[str]:
        """Of living sessions."""
        return sorted(name for name in self._items if isinstance(self.read(name), SessionRecord))


class Held(NamedTuple):
    """An operation that has not been answered yet."""

    operation: str
    name: str
    carry_out: Callable[[], Any]
    answer: asyncio.Future[Any]

    def do(self) -> Any:
        """Carry it out; its answer stays on its way, to be given to ``tell``."""
        return self.carry_out()

    async def tell(self, answer: Any) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)
        await settle()

    async def let(self) -> None:
        """Carry it out and answer."""
        await self.tell(self.do())

    async def fail(self, error: Exception | None = None) -> None:
        self.answer.set_exception(error or StoreError("the registry is away"))
        await settle()


class FakeRegistry:
    """Implements Registry. One replica's way to ``shelf``."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.asked: list[tuple[str, str]] = []
        """Every operation, whatever became of it."""
        self.held: list[Held] = []
        self.holds: set[str] = set()
        """Operations that wait for the test."""
        self.is_down = False
        """Every operation fails, and ``health`` knows it."""
        self.failing: set[str] = set()
        """Operations that fail; ``health`` does not know."""
        self.is_deaf = False
        """News do not arrive."""
        self.is_closed = False
        self.starts = 0
        self.on_change: Callable[[str], None] = lambda name: None
        self.on_revive: Callable[[str], None] = lambda name: None
        self.on_reset: Callable[[], None] = lambda: None
        shelf.replicas.append(self)

    def hear(self, name: str, *, is_again: bool = False) -> None:
        if not self.is_deaf and not self.is_down:
            (self.on_revive if is_again else self.on_change)(name)

    def reset(self) -> None:
        """The connection is new."""
        self.is_down = False
        self.on_reset()

    def take(self, operation: str) -> Held:
        """The oldest one of the kind that waits."""
        held = next(held for held in self.held if held.operation == operation)
        self.held.remove(held)
        return held

    def start(self) -> None:
        self.starts += 1

    async def _do(self, operation: str, name: str, carry_out: Callable[[], Any]) -> Any:
        self.asked.append((operation, name))
        await asyncio.sleep(0)
        if self.is_down or self.is_closed or operation in self.failing:
            raise StoreError("the registry is away")
        if operation not in self.holds:
            return carry_out()
        held = Held(operation, name, carry_out, asyncio.get_running_loop().create_future())
        self.held.append(held)
        return await held.answer

    def fetch(self, name: str) -> Awaitable[Stored]:
        return self._do("fetch", name, lambda: self.shelf.read(name))

    def create(self, name: str, record: SessionRecord) -> Awaitable[bool]:
        def carry_out() -> bool:
            stored = self.shelf.read(name)
            if isinstance(stored, SessionRecord):
                return False
            self.shelf.write(name, record)
            if stored is ENDED:
                self.shelf.announce(name, is_again=True)
            return True

        return self._do("create", name, carry_out)

    def refresh(self, name: str) -> Awaitable[Stored]:
        def carry_out() -> Stored:
            stored = self.shelf.read(name)
            if stored is not None:
                self.shelf.write(name, stored)
            return stored

        return self._do("refresh", name, carry_out)

    def replace(self, name: str, old: SessionRecord | None, new: SessionRecord) -> Awaitable[bool]:
        def carry_out() -> bool:
            if self.shelf.read(name) != old:
                return False
            self.shelf.write(name, new)
            self.shelf.announce(name)
            return True

        return self._do("replace", name, carry_out)

    def end(self, name: str) -> Awaitable[None]:
        def carry_out() -> None:
            self.shelf.write(name, ENDED)
            self.shelf.announce(name)

        return self._do("end", name, carry_out)

    def claim(self, name: str, token: str, seconds: float) -> Awaitable[bool]:
        def carry_out() -> bool:
            holder, until_s = self.shelf.claims.get(name, ("", 0.0))
            if until_s > self.shelf.at_s and holder != token:
                return False
            self.shelf.claims[name] = (token, self.shelf.at_s + seconds)
            return True

        return self._do("claim", name, carry_out)

    def disclaim(self, name: str, token: str) -> Awaitable[None]:
        def carry_out() -> None:
            if self.shelf.claims.get(name, ("", 0.0))[0] == token:
                del self.shelf.claims[name]

        return self._do("disclaim", name, carry_out)

    def page(self, cursor: str, limit: int) -> Awaitable[Page]:
        if not cursor.isalnum() and cursor:
            raise ValueError("this cursor was not issued here")

        def carry_out() -> Page:
            names = [name for name in self.shelf.names if name > cursor][: max(limit, 1)]
            listed = [listed for name in names if (listed := self._listed(name)) is not None]
            return Page(listed, names[-1] if names and names[-1] != self.shelf.names[-1] else "")

        return self._do("page", cursor, carry_out)

    def show(self, name: str) -> Awaitable[Listed | None]:
        return self._do("show", name, lambda: self._listed(name))

    def restore(self, session: Listed) -> Awaitable[bool]:
        def carry_out() -> bool:
            ttl_s = self.shelf.ttl_s if session.expires_s is None else session.expires_s
            if ttl_s <= 0 or self.shelf.read(session.name) is not None:
                return False
            self.shelf.write(session.name, session.record, min(ttl_s, self.shelf.ttl_s))
            return True

        return self._do("restore", session.name, carry_out)

    def _listed(self, name: str) -> Listed | None:
        stored = self.shelf.read(name)
        if not isinstance(stored, SessionRecord):
            return None
        return Listed(name, "", stored, self.shelf.left_s(name))

    def health(self) -> tuple[bool, str]:
        return not self.is_down, "down" if self.is_down else "up"

    async def aclose(self) -> None:
        self.is_closed = True
        for held in self.held:
            if not held.answer.done():
                held.answer.set_exception(StoreError("closed"))


class Seen:
    """Implements Watcher. ``learnt`` and ``forgot`` come in pairs."""

    def __init__(self) -> None:
        self.known: list[tuple[SessionKey, SessionRecord]] = []
        self.over: list[tuple[SessionKey, SessionRecord]] = []
        self.dropped: list[tuple[SessionKey, SessionRecord]] = []

    def learnt(self, key: SessionKey, record: SessionRecord) -> None:
        assert all(known[0] != key for known in self.known), "already known"
        self.known.append((key, record))

    def forgot(self, key: SessionKey, record: SessionRecord, *, is_over: bool) -> None:
        self.known.remove((key, record))
        (self.over if is_over else self.dropped).append((key, record))


def quickly(secret: str) -> Derived:
    """Instead of the slow derivation of keys."""
    return Derived(secret.encode().ljust(32)[:32], secret.encode().hex()[:8].ljust(8, "0").encode())


def seal(*backends: str) -> Seal:
    sealing = Seal(["secret"], quickly)
    sealing.know(ROUTE, backends or ("one", "two"))
    return sealing


class Replica:
    """A SharedStore with a fake registry. ``registry`` may be asked what it was asked."""

    def __init__(
        self,
        shelf: Shelf | None = None,
        *,
        sealed: bool = False,
        limit: int = 1000,
        fresh_s: float = FRESH_S,
    ) -> None:
        self.shelf = shelf or Shelf()
        self.registry = FakeRegistry(self.shelf)
        self.tasks = Tasks()
        self.seen = Seen()
        self.store = SharedStore(
            "signed" if sealed else "redis",
            ttl_s=self.shelf.ttl_s,
            cache_ttl_s=fresh_s,
            tasks=self.tasks,
            watcher=self.seen,
            registry=self.registry,
            seal=seal() if sealed else None,
            limit=limit,
            clock=self.shelf.clock,
        )

    @property
    def asked(self) -> list[str]:
        """Operations since the last look."""
        asked = [operation for operation, _ in self.registry.asked]
        self.registry.asked.clear()
        return asked

    async def get(self, key: SessionKey, principal: str = "") -> SessionRecord | None:
        return await settled(self.store.get(key, principal))

    def warm(self, key: SessionKey, principal: str = "") -> SessionRecord | None:
        """The session, without asking anybody."""
        found = self.store.get(key, principal)
        if found is not None and not isinstance(found, SessionRecord):
            cast(Any, found).close()
            raise AssertionError("the registry would have been asked")
        return found

    async def create(self, key: SessionKey, record: SessionRecord) -> bool:
        return await settled(self.store.create(key, record))

    async def end(self, key: SessionKey) -> None:
        deletion = self.store.delete(key)
        if deletion is not None:
            await deletion

    async def pass_(self, seconds: float, step_s: float = 1.0) -> None:
        """Time goes by, for everybody who shares the shelf; the ticker of this replica runs."""
        until_s = self.shelf.at_s + seconds
        while self.shelf.at_s < until_s:
            self.shelf.at_s = min(self.shelf.at_s + step_s, until_s)
            self.store.sweep(self.shelf.at_s)
            await settle()

    async def aclose(self) -> None:
        await self.tasks.aclose()
        await self.store.aclose()
