"""The registry of a single proxy process: a dictionary in order of last use.

Rules of this file: no I/O, every operation O(1). Expiry is a sweep from the oldest end; a
session under an open stream never expires. When the bound is reached new sessions are
refused rather than old ones forgotten: a client that holds a session keeps it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from mcp_proxy.clock import now
from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import SessionKey, SessionRecord

SESSIONS_LIMIT: Final = 1_000_000
"""About 400 MB of records. Python SDK servers stop at 10,000 sessions each."""


class _Entry:
    __slots__ = ("due_s", "record", "streams")

    def __init__(self, record: SessionRecord, due_s: float) -> None:
        self.record = record
        self.due_s = due_s
        self.streams = 0


class MemoryStore:
    """Implements SessionStore. ``on_forget(key, record)`` is called for every record that
    goes, by ``delete`` or by expiry."""

    name = "memory"

    def __init__(
        self,
        ttl_s: float | None,
        on_forget: Callable[[SessionKey, SessionRecord], None],
        limit: int = SESSIONS_LIMIT,
    ) -> None:
        self._ttl_s = float("inf") if ttl_s is None else ttl_s
        self._on_forget = on_forget
        self._limit = limit
        self._entries: dict[SessionKey, _Entry] = {}
        self._counts: Counter[str] = Counter()

    def get(self, key: SessionKey) -> SessionRecord | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        at_s = now()
        if entry.due_s <= at_s and not entry.streams:
            self._forget(key)
            return None
        self._touch(key, entry, at_s)
        return entry.record

    def create(self, key: SessionKey, record: SessionRecord) -> bool:
        if self.get(key) is not None:
            return False
        if len(self._entries) >= self._limit:
            self.sweep(now())
        if len(self._entries) >= self._limit:
            raise StoreError(f"the memory registry is full ({self._limit} sessions)")
        self._entries[key] = _Entry(record, now() + self._ttl_s)
        self._counts[key.pool] += 1
        return True

    def delete(self, key: SessionKey) -> None:
        if key in self._entries:
            self._forget(key)

    def hold(self, key: SessionKey) -> None:
        entry = self._entries.get(key)
        if entry is not None:
            entry.streams += 1

    def release(self, key: SessionKey) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.streams:  # else the stream's session went, and this is another
            entry.streams -= 1
            self._touch(key, entry, now())

    def count(self, pool: str) -> int:
        return self._counts[pool]

    def sweep(self, at_s: float) -> None:
        """Forget what has expired; a job for the Ticker."""
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            if entry.due_s > at_s:
                return
            if entry.streams:
                self._touch(key, entry, at_s)  # to the young end: held, so in use
            else:
                self._forget(key)

    async def aclose(self) -> None:
        self._entries.clear()
        self._counts.clear()

    def _touch(self, key: SessionKey, entry: _Entry, at_s: float) -> None:
        entry.due_s = at_s + self._ttl_s
        del self._entries[key]
        self._entries[key] = entry

    def _forget(self, key: SessionKey) -> None:
        entry = self._entries.pop(key)
        self._counts[key.pool] -= 1
        self._on_forget(key, entry.record)
