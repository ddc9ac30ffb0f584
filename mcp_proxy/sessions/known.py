"""What one replica knows of the sessions that all replicas share.

Rules of this file: no I/O, every operation O(1) but ``forget_freshness`` and ``after``. The table is bounded
and in order of last use. Being known and being believed are two things: an entry is believed until
``fresh_until_s`` and known until nobody has used it for the time to live; in between it serves when
the registry cannot be asked. That a session does not exist is never remembered; that it was ended is.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from mcp_proxy.clock import Deadlines
from mcp_proxy.sessions import GONE, SessionKey, SessionRecord, Watcher
from mcp_proxy.sessions.names import Names

KNOWN_LIMIT: Final = 100_000
"""Sessions, about 700 bytes each. What is pushed out costs one operation when it comes back."""

ENDED_S: Final = 600.0
"""How long this replica remembers an end by itself: as long as a tombstone lives at least."""

AHEAD: Final = 0.75
"""Sessions in use are asked about when so much of their freshness has passed, so that no request
ever waits for it."""

CHANGED_S: Final = -1.0
"""As ``fresh_until_s``: another replica said that it changed, so it must not even serve as a last resort."""


class Known:
    """One entry of the table."""

    __slots__ = (
        "fresh_until_s", "is_used", "is_watched", "key", "name", "news", "record", "seen_s", "was_used"
    )  # fmt: skip

    def __init__(self, key: SessionKey, name: str, record: SessionRecord) -> None:
        self.key = key
        self.name = name
        self.record = record
        self.fresh_until_s = 0.0
        self.seen_s = 0.0
        """When it was last used here, or at first only learnt."""
        self.was_used = False
        """Here, by whom it belongs to."""
        self.is_used = False
        """Since its time to live was last begun anew."""
        self.is_watched = True
        """It will be asked about before it grows old, if it is used."""
        self.news = 0
        """Times that another replica said that it changed."""


class KnownSessions:
    """``ttl_s``: unused for so long means forgotten. ``fresh_s``: how long the registry's word holds."""

    def __init__(self, *, ttl_s: float, fresh_s: float, watcher: Watcher, limit: int = KNOWN_LIMIT) -> None:
        self._ttl_s = ttl_s
        self._fresh_s = fresh_s
        self._watcher = watcher
        self._limit = limit
        self._counts: Counter[str] = Counter()
        self._entries: dict[SessionKey, Known] = {}
        self._names: Names[Known] = Names()
        self._stale: list[Known] = []
        self._ask: Deadlines[Known] = Deadlines(fresh_s * AHEAD, self._stale.append)
        self._ended: Deadlines[str] = Deadlines(ENDED_S, lambda _: None)
        self.find = self._entries.get
        """The entry of a key, or None."""
        self.find_name = self._names.get
        self.after = self._names.after
        """Entries by name, page by page."""

    def __len__(self) -> int:
        return len(self._entries)

    def count(self, route: str) -> int:
        return self._counts[route]

    def use(self, entry: Known, at_s: float) -> None:
        """The session is being used, by whoever may."""
        entry.is_used = entry.was_used = True
        entry.seen_s = at_s
        if not entry.is_watched:
            entry.is_watched = True
            self._stale.append(entry)
        entries = self._entries
        del entries[entry.key]
        entries[entry.key] = entry

    def learn(
        self, key: SessionKey, name: str, record: SessionRecord, at_s: float, *, extended: bool
    ) -> Known:
        """The registry said so, just now. ``extended``: and began its time to live anew."""
        entry = self._entries.get(key)
        if entry is None:
            self._make_room(at_s)
            entry = self._entries[key] = Known(key, name, record)
            self._names.add(name, entry)
            entry.seen_s = at_s
            self._counts[key.route] += 1
            self._watcher.learnt(key, record)
        elif record.generation > entry.record.generation:
            old, entry.record = entry.record, record
            self._watcher.forgot(key, old, is_over=True)
            self._watcher.learnt(key, record)
        elif record.generation < entry.record.generation:
            return entry  # an answer that was overtaken by a move
        elif entry.record.backend.startswith(GONE):
            old, entry.record = entry.record, record
            self._watcher.forgot(key, old, is_over=False)
            self._watcher.learnt(key, record)
        # Which backend it is may be known in the next moment, so nobody is to believe this one.
        entry.fresh_until_s = at_s if record.backend.startswith(GONE) else at_s + self._fresh_s
        if extended:
            entry.was_used = True
            entry.is_used = False
        self.watch(entry, at_s)
        return entry

    def watch(self, entry: Known, at_s: float) -> None:
        """Ask about it in time, from now on."""
        entry.is_watched = True
        self._ask.arm(entry, at_s)

    def change(self, entry: Known) -> None:
        """Another replica said that it changed."""
        entry.news += 1
        entry.fresh_until_s = CHANGED_S

    def forget(self, entry: Known, *, is_over: bool) -> None:
        """``is_over``: the session ended; else only this replica's memory of it does."""
        if self._entries.pop(entry.key, None) is None:
            return
        self._names.remove(entry.name)
        self._ask.disarm(entry)
        self._counts[entry.key.route] -= 1
        self._watcher.forgot(entry.key, entry.record, is_over=is_over)

    def end(self, name: str, at_s: float) -> None:
        """The session is over and must not come back."""
        entry = self._names.get(name)
        if entry is not None:
            self.forget(entry, is_over=True)
        self._ended.arm(name, at_s)
        self._ended.trim(self._limit)

    def is_ended(self, name: str) -> bool:
        return name in self._ended

    def revive(self, name: str) -> None:
        """The id was issued again."""
        self._ended.disarm(name)

    def may_have_expired(self, entry: Known, at_s: float) -> bool:
        """The registry may have let it expire: nobody has used it here for as long as it lives. Whoever
        uses a session keeps it alive, so in any other case it was lost. The registry's clock is a little
        ahead of this one; what it is kept for longer than it needs to be is more than that."""
        return not entry.was_used or entry.seen_s + self._ttl_s - self._fresh_s <= at_s

    def forget_freshness(self, at_s: float) -> list[Known]:
        """Changes may have been missed: believe nothing. Returns those that may be in use, whose last
        touch is not long ago."""
        for entry in self._entries.values():
            entry.fresh_until_s = min(entry.fresh_until_s, 0.0)
        return [entry for entry in self._entries.values() if entry.seen_s + self._ttl_s / 2 > at_s]

    def sweep(self, at_s: float) -> list[Known]:
        """Forget what nobody has used for long. Returns the entries in use that should be asked about."""
        self._ended.sweep(at_s)
        while self._entries:
            entry = next(iter(self._entries.values()))
            if entry.seen_s + self._ttl_s > at_s:
                break
            self.forget(entry, is_over=False)
        self._ask.sweep(at_s)
        for entry in self._stale:
            entry.is_watched = entry.is_used
        stale, self._stale[:] = [entry for entry in self._stale if entry.is_used], []
        return stale

    def clear(self) -> None:
        self._entries.clear()
        self._names.clear()
        self._counts.clear()

    def _make_room(self, at_s: float) -> None:
        while len(self._entries) >= self._limit:
            self.forget(next(iter(self._entries.values())), is_over=False)
