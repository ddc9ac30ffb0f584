"""Sessions that all replicas share, as one replica sees them: what it knows, and whom it asks.

Two shapes. With a registry alone (``redis``) the registry holds every session. With a seal
(``signed``) the session id says everything by itself; a registry beside it holds only what an id
cannot say: that the session was ended, or has moved.

Rules of this file: what is known is answered at once (``known.py``); of the rest the registry is
asked (``inquiry.py``). A registry that fails has not answered: then what was known before serves,
or what the sealed id says, and else it is a StoreError, which becomes 503 and never 404.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import msgspec

from mcp_proxy.clock import now
from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import Later, Listed, Page, Registry, SessionKey, SessionRecord, Watcher
from mcp_proxy.sessions.inquiry import REFRESH_AT_ONCE, Inquiry
from mcp_proxy.sessions.known import CHANGED_S, KNOWN_LIMIT, Known, KnownSessions
from mcp_proxy.tasks import Tasks

UNTOLD_LIMIT: Final = 100_000
"""Ends that the registry does not know yet; beyond, the oldest is left to the backend's own 404."""

RETELL_S: Final = 1.0
"""Between two attempts to tell them."""


_NAME: Final = re.compile(r"[0-9a-f]{40}")


class Seal(Protocol):
    """Session ids that speak for themselves."""

    def seal(self, key: SessionKey, record: SessionRecord) -> SessionKey:
        """The key with an id that holds ``record``. Raises StoreError if it would be too long."""

    def open(self, key: SessionKey) -> SessionRecord | None:
        """None for whatever is not a genuine id of this route. Never raises."""


class SharedStore:
    """Implements SessionStore. Needs a registry, a seal, or both."""

    def __init__(
        self,
        name: str,
        *,
        ttl_s: float,
        cache_ttl_s: float,
        tasks: Tasks,
        watcher: Watcher,
        registry: Registry | None = None,
        seal: Seal | None = None,
        limit: int = KNOWN_LIMIT,
        clock: Callable[[], float] = now,
    ) -> None:
        self.name = name
        self._known = KnownSessions(ttl_s=ttl_s, fresh_s=cache_ttl_s, watcher=watcher, limit=limit)
        self._find = self._known.find
        self._tasks = tasks
        self._seal = seal
        self._clock = clock
        self._registry = registry
        self._inquiry: Inquiry | None = None
        self._token = secrets.token_hex(8)
        """Of this replica, in claims."""
        self._untold: dict[str, None] = {}
        """Names of ended sessions that the registry has not acknowledged, the oldest first."""
        self._retell_at_s = 0.0
        self._strays: set[str] = set()
        """Names of sessions in use that have been pushed out of memory."""
        if registry is not None:
            self._inquiry = Inquiry(registry, self._known, tasks, clock, sealed_ids=seal is not None)
            registry.on_change = self._inquiry.overtake
            registry.on_revive = self._known.revive
            registry.on_reset = self._reset

    def start(self) -> None:
        if self._registry is not None:
            self._registry.start()

    # --- who owns it -----------------------------------------------------------------

    def get(self, key: SessionKey, principal: str) -> SessionRecord | Awaitable[SessionRecord | None] | None:
        entry = self._find(key)
        at_s = self._clock()
        if entry is None or entry.fresh_until_s <= at_s:
            return self._ask(key, principal, entry)
        if entry.record.principal != principal:
            return self._foreign(key, principal)
        self._known.use(entry, at_s)
        return entry.record

    def _foreign(self, key: SessionKey, principal: str) -> Awaitable[SessionRecord | None] | None:
        """Somebody else's session must look like none, also while the registry cannot be asked: then
        an unknown session is an error. (Whether a sealed id is one is never asked.)"""
        return None if self._is_sealed(key) or self._registry is None else Later(self._reread, key, principal)

    def reread(
        self, key: SessionKey, principal: str
    ) -> SessionRecord | Awaitable[SessionRecord | None] | None:
        if self._registry is None:
            return self.get(key, principal)
        return None if self._known.is_ended(key.name) else Later(self._reread, key, principal)

    async def _reread(self, key: SessionKey, principal: str) -> SessionRecord | None:
        assert self._inquiry is not None
        return self._grant(await self._inquiry.ask(key, self._open(key)), principal)

    def _is_sealed(self, key: SessionKey) -> bool:
        """The id should speak for itself. What is no session has no route, and no sealed id."""
        return self._seal is not None and key.route.startswith("/")

    def _open(self, key: SessionKey) -> SessionRecord | None:
        return self._seal.open(key) if self._seal is not None else None

    def _ask(
        self, key: SessionKey, principal: str, entry: Known | None
    ) -> SessionRecord | Awaitable[SessionRecord | None] | None:
        if self._known.is_ended(key.name):
            return None
        sealed = None
        if self._is_sealed(key):
            sealed = self._open(key)
            if sealed is None:
                return None  # not an id of ours, so nothing is known of it anywhere
        if self._registry is None:
            if sealed is not None:
                entry = self._known.learn(key, key.name, sealed, self._clock(), extended=False)
            return self._grant(entry, principal)
        fallback = sealed
        if entry is not None:
            fallback = entry.record if entry.fresh_until_s != CHANGED_S else None
        if fallback is not None and not self._registry.health()[0]:
            return self._serve(entry, fallback, principal)
        return Later(self._inquire, key, principal, sealed, entry, fallback)

    async def _inquire(
        self,
        key: SessionKey,
        principal: str,
        sealed: SessionRecord | None,
        entry: Known | None,
        fallback: SessionRecord | None,
    ) -> SessionRecord | None:
        assert self._inquiry is not None
        try:
            return self._grant(await self._inquiry.ask(key, sealed), principal)
        except StoreError:
            # There may have been news meanwhile.
            latest = self._find(key)
            if fallback is None or self._known.is_ended(key.name) or (latest or entry) is not entry:
                raise
            if entry is not None and entry.fresh_until_s == CHANGED_S:
                raise
            return self._serve(entry, fallback, principal)

    def _grant(self, entry: Known | None, principal: str) -> SessionRecord | None:
        """What this principal may know of an answer. The session may have ended since, or have been
        pushed out of memory."""
        if entry is None or entry.record.principal != principal or self._known.is_ended(entry.name):
            return None
        if self._find(entry.key) is entry:
            self._known.use(entry, self._clock())
        return entry.record

    def _serve(self, entry: Known | None, record: SessionRecord, principal: str) -> SessionRecord | None:
        """What was known before, while nobody can be asked."""
        if record.principal != principal:
            if entry is not None and not self._is_sealed(entry.key):
                raise StoreError("the registry cannot be asked")
            return None
        if entry is not None and self._find(entry.key) is entry:
            self._known.use(entry, self._clock())
        return record

    # --- beginning, moving, ending ---------------------------------------------------

    def issue(self, key: SessionKey, record: SessionRecord) -> tuple[SessionKey, SessionRecord]:
        if self._seal is None:
            return key, record
        record = msgspec.structs.replace(record, upstream_id=key.session_id)
        return self._seal.seal(key, record), record

    def create(self, key: SessionKey, record: SessionRecord) -> bool | Awaitable[bool]:
        if self._registry is not None and not self._is_sealed(key):
            return Later(self._create, key, record)
        self._known.learn(key, key.name, record, self._clock(), extended=False)
        if self._registry is not None and record.initialize:
            return Later(self._write_down, key, record)
        return True

    async def _write_down(self, key: SessionKey, record: SessionRecord) -> bool:
        """What the sealed id has no room for. Without it the session can live, but not be made anew."""
        with suppress(StoreError):
            await self._create(key, record)
        return True

    async def _create(self, key: SessionKey, record: SessionRecord) -> bool:
        assert self._registry is not None
        name = key.name
        self._untold.pop(name, None)  # the end of an earlier session must not end this one
        if not await self._registry.create(name, record):
            return False
        earlier = self._find(key)
        if earlier is not None and earlier.record != record:
            # The registry had lost it, and its backend has given the id to another.
            self._known.forget(earlier, is_over=True)
        self._known.revive(name)
        self._known.learn(key, name, record, self._clock(), extended=True)
        return True

    def move(self, key: SessionKey, old: SessionRecord, new: SessionRecord) -> bool | Awaitable[bool]:
        if self._registry is not None:
            return Later(self._move, key, old, new)
        self._known.learn(key, key.name, new, self._clock(), extended=False)
        return True

    async def _move(self, key: SessionKey, old: SessionRecord, new: SessionRecord) -> bool:
        assert self._registry is not None
        assert self._inquiry is not None
        is_self_evident = self._inquiry.is_self_evident(key, old)
        has_moved = False
        if old.initialize or not is_self_evident:
            has_moved = await self._registry.replace(key.name, old, new)
        if is_self_evident and not has_moved:
            has_moved = await self._registry.replace(key.name, None, new)
        if self._known.is_ended(key.name):
            return False  # from here, meanwhile; the registry hears of it behind the move
        if has_moved:
            self._known.learn(key, key.name, new, self._clock(), extended=True)
        elif (entry := self._find(key)) is not None:
            self._known.change(entry)
        return has_moved

    def delete(self, key: SessionKey) -> Awaitable[None] | None:
        self._known.end(key.name, self._clock())
        return None if self._registry is None else Later(self._tell, key.name)

    async def _tell(self, name: str) -> None:
        """Leave a tombstone; until that is done it is tried again and again."""
        assert self._registry is not None
        self._untold.setdefault(name)
        while len(self._untold) > UNTOLD_LIMIT:
            del self._untold[next(iter(self._untold))]
        await self._registry.end(name)
        self._untold.pop(name, None)

    def claim(self, key: SessionKey, seconds: float) -> bool | Awaitable[bool]:
        if self._registry is None:
            return True
        return Later(self._registry.claim, key.name, self._token, seconds)

    def disclaim(self, key: SessionKey) -> None:
        if self._registry is not None:
            self._tasks.spawn(_quietly(Later(self._registry.disclaim, key.name, self._token)))

    def touch(self, key: SessionKey) -> None:
        entry = self._find(key)
        if entry is not None:
            self._known.use(entry, self._clock())
        elif self._seal is None and not self._known.is_ended(key.name):
            self._strays.add(key.name)

    # --- background ------------------------------------------------------------------

    def sweep(self, at_s: float) -> None:
        """Ask about sessions in use before what is known of them grows old; a job for the Ticker."""
        stale = self._known.sweep(at_s)
        if self._registry is None or self._inquiry is None:
            return
        if stale:
            self._tasks.spawn(self._inquiry.refresh(stale))
        if self._strays:
            strays, self._strays = self._strays, set()
            self._tasks.spawn(_all(self._registry.refresh, strays))
        if self._untold and at_s >= self._retell_at_s and self._registry.health()[0]:
            self._retell_at_s = at_s + RETELL_S
            self._tasks.spawn(_all(self._tell, list(self._untold)[:REFRESH_AT_ONCE]))

    def _reset(self) -> None:
        """The connection is new: changes may have been missed, and writes may be lost."""
        assert self._inquiry is not None
        self._retell_at_s = 0.0
        in_use = self._known.forget_freshness(self._clock())
        if in_use:
            self._tasks.spawn(self._inquiry.refresh(in_use))

    # --- operations ------------------------------------------------------------------

    def count(self, route: str) -> int:
        return self._known.count(route)

    def page(self, cursor: str, limit: int) -> Page | Awaitable[Page]:
        if self._registry is not None:
            return self._registry.page(cursor, limit)
        if cursor and not _NAME.fullmatch(cursor):
            raise ValueError("not a cursor of this registry")
        limit = max(limit, 1)
        entries = [entry for _, entry in self._known.after(cursor, limit)]
        return Page(list(map(_listed, entries)), entries[-1].name if len(entries) == limit else "")

    def show(self, name: str) -> Listed | Awaitable[Listed | None] | None:
        entry = self._known.find_name(name)
        if self._registry is not None:
            return self._show(name, entry)
        return None if entry is None else _listed(entry)

    async def _show(self, name: str, entry: Known | None) -> Listed | None:
        assert self._registry is not None
        listed = await self._registry.show(name)
        if entry is None:
            return listed
        return _listed(entry) if listed is None else listed._replace(route=entry.key.route)

    def end(self, name: str) -> bool | Awaitable[bool]:
        entry = self._known.find_name(name)
        if entry is not None:
            self._known.end(name, self._clock())
        return entry is not None if self._registry is None else self._end_named(name, entry is not None)

    async def _end_named(self, name: str, is_known: bool) -> bool:
        assert self._registry is not None
        if not is_known and await self._registry.show(name) is None:
            return False
        await self._tell(name)
        return True

    def restore(self, sessions: Sequence[Listed]) -> int | Awaitable[int]:
        if self._registry is None:
            return 0  # the ids say everything themselves: nothing was lost
        return self._restore(sessions)

    async def _restore(self, sessions: Sequence[Listed]) -> int:
        assert self._registry is not None
        return sum(await asyncio.gather(*map(self._registry.restore, sessions)))

    def health(self) -> tuple[bool, str]:
        if self._registry is None:
            return True, "signed session ids, no registry"
        return self._registry.health()

    async def aclose(self) -> None:
        self._known.clear()
        if self._registry is not None:
            await self._registry.aclose()


def _listed(entry: Known) -> Listed:
    return Listed(entry.name, entry.key.route, entry.record, None)


async def _quietly(work: Awaitable[object]) -> None:
    """For what is tried again anyway, or ends by itself."""
    with suppress(StoreError):
        await work


async def _all(work: Callable[[str], Awaitable[object]], names: Iterable[str]) -> None:
    await asyncio.gather(*(_quietly(work(name)) for name in names))
