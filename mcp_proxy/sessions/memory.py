"""The registry of a single proxy process: a dictionary in order of last use.

Rules of this file: no I/O, and nothing that a request waits for grows with the number of sessions.
Expiry is a sweep from the oldest end. When the bound is reached new sessions are refused rather than
old ones forgotten: a client that holds a session keeps it. Sessions of a backup are known by name
only; they lie dormant until their client comes.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from mcp_proxy.clock import Deadlines, now
from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import Listed, Page, SessionKey, SessionRecord, Watcher
from mcp_proxy.sessions.names import Names

SESSIONS_LIMIT: Final = 1_000_000
"""About 520 MB of records. Python SDK servers stop at 10,000 sessions each."""

SWEEP_LIMIT: Final = 2_000
"""Sessions that one sweep forgets: a burst that expires together must not hold up traffic. Ten sweeps
a second forget 20,000."""

ENDED_S: Final = 3600.0
"""For so long a backup cannot bring back a session that was ended."""

ENDED_LIMIT: Final = 100_000
"""Ended sessions that are remembered; about 20 MB."""

_CURSOR: Final = re.compile(r"(?:[0-9a-f]{40})?")


class _Entry:
    __slots__ = ("due_s", "key", "name", "record", "route")

    def __init__(
        self, name: str, route: str, key: SessionKey | None, record: SessionRecord, due_s: float
    ) -> None:
        self.name = name
        self.route = route
        self.key = key
        """None: dormant."""
        self.record = record
        self.due_s = due_s


class MemoryStore:
    """Implements SessionStore. ``watcher`` hears of a session of a backup when its client comes; until
    then it is dormant, and goes without a word if nobody ever does."""

    name = "memory"

    def __init__(
        self,
        ttl_s: float | None,
        watcher: Watcher,
        limit: int = SESSIONS_LIMIT,
        *,
        clock: Callable[[], float] = now,
    ) -> None:
        self._ttl_s = float("inf") if ttl_s is None else ttl_s
        self._watcher = watcher
        self._limit = limit
        self._clock = clock
        self._entries: dict[SessionKey, _Entry] = {}
        self._dormant: dict[str, _Entry] = {}
        self._dormant_due: list[tuple[float, str]] = []
        """A heap: sessions of a backup do not expire in the order in which they come. May hold names
        that are not dormant any more."""
        self._names: Names[_Entry] = Names()
        """All of ``_entries`` and ``_dormant``."""
        self._counts: Counter[str] = Counter()
        self._ended: Deadlines[str] = Deadlines(ENDED_S, lambda name: None)

    def start(self) -> None:
        """Nothing to begin: ``sweep`` is a job for the Ticker."""

    # --- what requests ask ------------------------------------------------------------

    def get(self, key: SessionKey, principal: str) -> SessionRecord | None:
        entry = self._entries.get(key)
        if entry is None:
            entry = self._wake(key, principal)
            if entry is None:
                return None
        record = entry.record
        if record.principal != principal:
            return None
        at_s = self._clock()
        if entry.due_s <= at_s:
            self._forget(entry, is_over=False)
            return None
        # As _slide; a call would be a tenth of a lookup.
        entry.due_s = at_s + self._ttl_s
        del self._entries[key]
        self._entries[key] = entry
        return record

    def reread(self, key: SessionKey, principal: str) -> SessionRecord | None:
        return self.get(key, principal)

    def issue(self, key: SessionKey, record: SessionRecord) -> tuple[SessionKey, SessionRecord]:
        return key, record

    def create(self, key: SessionKey, record: SessionRecord) -> bool:
        at_s = self._clock()
        name = key.name
        old = self._names.get(name)
        if old is not None:
            if old.due_s > at_s:
                return False
            self._forget(old, is_over=False)
        self._make_room(at_s)
        self._ended.disarm(name)
        self._add(_Entry(name, key.route, key, record, at_s + self._ttl_s))
        return True

    def move(self, key: SessionKey, old: SessionRecord, new: SessionRecord) -> bool:
        entry = self._entries.get(key) or self._wake(key, old.principal)
        if entry is None or entry.record != old or entry.due_s <= self._clock():
            return False
        entry.record = new
        self._watcher.forgot(key, old, is_over=True)
        self._watcher.learnt(key, new)
        return True

    def delete(self, key: SessionKey) -> None:
        entry = self._entries.get(key)
        if entry is not None:
            self._bury(entry)
        elif self._dormant:
            self.end(key.name)

    def claim(self, key: SessionKey, seconds: float) -> bool:
        """Always: there is no other replica, and within one process callers share their attempt."""
        return True

    def disclaim(self, key: SessionKey) -> None:
        """Nothing was claimed."""

    def touch(self, key: SessionKey) -> None:
        entry = self._entries.get(key)
        at_s = self._clock()
        if entry is not None and entry.due_s > at_s:
            self._slide(key, entry, at_s)

    def count(self, route: str) -> int:
        return self._counts[route]

    # --- operations -------------------------------------------------------------------

    def page(self, cursor: str, limit: int) -> Page:
        """In the order of names, at most ``limit``; the cursor is the last name of a page."""
        if _CURSOR.fullmatch(cursor) is None:
            raise ValueError("not a cursor of this registry")
        at_s = self._clock()
        found = self._names.after(cursor, limit)
        listed = [self._listed(entry, at_s) for _, entry in found if entry.due_s > at_s]
        return Page(listed, found[-1][0] if len(found) == limit else "")

    def show(self, name: str) -> Listed | None:
        at_s = self._clock()
        entry = self._names.get(name)
        return None if entry is None or entry.due_s <= at_s else self._listed(entry, at_s)

    def end(self, name: str) -> bool:
        entry = self._names.get(name)
        if entry is None:
            return False
        if entry.due_s <= self._clock():
            self._forget(entry, is_over=False)
            return False
        self._bury(entry)
        return True

    def restore(self, sessions: Sequence[Listed]) -> int:
        """Raises StoreError when the registry is full; what was restored by then stays."""
        at_s = self._clock()
        return sum(self._restore(session, at_s) for session in sessions)

    def health(self) -> tuple[bool, str]:
        return True, "in the memory of this process"

    def sweep(self, at_s: float) -> None:
        """Forget what has expired; a job for the Ticker."""
        over: list[_Entry] = []
        for entry in islice(self._entries.values(), SWEEP_LIMIT):
            if entry.due_s > at_s:
                break
            over.append(entry)
        # Not one by one from the front: each look at the front passes all that was taken from it.
        for entry in over:
            self._forget(entry, is_over=False)
        self._sweep_dormant(at_s)
        self._ended.sweep(at_s)

    async def aclose(self) -> None:
        self._entries.clear()
        self._dormant.clear()
        self._dormant_due.clear()
        self._names.clear()
        self._counts.clear()

    # --- entries ----------------------------------------------------------------------

    def _add(self, entry: _Entry) -> None:
        self._names.add(entry.name, entry)
        self._counts[entry.route] += 1
        if entry.key is not None:
            self._entries[entry.key] = entry
            self._watcher.learnt(entry.key, entry.record)

    def _make_room(self, at_s: float) -> None:
        if len(self._names) >= self._limit:
            self.sweep(at_s)
        if len(self._names) >= self._limit:
            raise StoreError(f"the memory registry is full ({self._limit} sessions)")

    def _slide(self, key: SessionKey, entry: _Entry, at_s: float) -> None:
        entry.due_s = at_s + self._ttl_s
        del self._entries[key]
        self._entries[key] = entry

    def _bury(self, entry: _Entry) -> None:
        self._ended.arm(entry.name, self._clock())
        self._ended.trim(ENDED_LIMIT)
        self._forget(entry, is_over=True)

    def _forget(self, entry: _Entry, *, is_over: bool) -> None:
        self._names.remove(entry.name)
        self._discount(entry.route)
        if entry.key is None:
            del self._dormant[entry.name]
        else:
            del self._entries[entry.key]
            self._watcher.forgot(entry.key, entry.record, is_over=is_over)

    def _discount(self, route: str) -> None:
        self._counts[route] -= 1
        if not self._counts[route]:  # routes of a backup are not only those of the configuration
            del self._counts[route]

    def _listed(self, entry: _Entry, at_s: float) -> Listed:
        left_s = entry.due_s - at_s
        return Listed(entry.name, entry.route, entry.record, None if left_s == float("inf") else left_s)

    # --- sessions of a backup ---------------------------------------------------------

    def _restore(self, session: Listed, at_s: float) -> bool:
        left_s = min(self._ttl_s, float("inf") if session.expires_s is None else session.expires_s)
        old = self._names.get(session.name)
        if old is not None and old.due_s <= at_s:
            self._forget(old, is_over=False)
            old = None
        if left_s <= 0 or old is not None or session.name in self._ended:
            return False
        self._make_room(at_s)
        entry = _Entry(session.name, session.route, None, session.record, at_s + left_s)
        self._add(entry)
        self._dormant[entry.name] = entry
        heapq.heappush(self._dormant_due, (entry.due_s, entry.name))
        if len(self._dormant_due) > 2 * self._limit:
            self._dormant_due = [(each.due_s, name) for name, each in self._dormant.items()]
            heapq.heapify(self._dormant_due)
        return True

    def _wake(self, key: SessionKey, principal: str) -> _Entry | None:
        """The dormant session that ``key`` names, not dormant any more. Somebody else's sleeps on."""
        if not self._dormant:
            return None  # and no hash was computed
        entry = self._dormant.get(key.name)
        if entry is None or entry.record.principal != principal or entry.due_s <= self._clock():
            return None
        del self._dormant[entry.name]
        self._discount(entry.route)
        entry.key, entry.route = key, key.route
        self._counts[entry.route] += 1
        self._entries[key] = entry
        # The oldest end expires first, and this one may have to go before its neighbours.
        self._slide(key, entry, self._clock())
        self._watcher.learnt(key, entry.record)
        return entry

    def _sweep_dormant(self, at_s: float) -> None:
        for _ in range(SWEEP_LIMIT):
            if not self._dormant_due or self._dormant_due[0][0] > at_s:
                return
            name = heapq.heappop(self._dormant_due)[1]
            entry = self._dormant.get(name)
            if entry is not None and entry.due_s <= at_s:
                self._forget(entry, is_over=False)
