"""Questions to the registry, and how its answers are taken in.

Rules of this file: of a session that is not known the registry is asked once, however many wait
for it; they may leave, the question goes on. An answer that was overtaken by news (another
replica ended or moved the session meanwhile) is not believed, it is asked for again. A session
that is known here and has vanished from the registry, without a tombstone and before its time,
was lost by a failing registry, and is written again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import ENDED, Registry, SessionKey, SessionRecord, Stored
from mcp_proxy.sessions.known import Known, KnownSessions
from mcp_proxy.tasks import Tasks

SETTLE_LIMIT: Final = 3
"""Times that an answer may be overtaken by news before it is taken as it is."""

REFRESH_AT_ONCE: Final = 1000
"""Sessions refreshed together; the next thousand follows when they are done."""

Outcome = Known | StoreError | None


class _Flight:
    """One question on its way."""

    __slots__ = ("future", "is_overtaken")

    def __init__(self) -> None:
        # A result even when it is an error: there may be nobody left to raise it to.
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.is_overtaken = False


class Inquiry:
    """``sealed_ids``: session ids speak for themselves until the session moves, and the registry
    holds nothing of it before."""

    def __init__(
        self,
        registry: Registry,
        known: KnownSessions,
        tasks: Tasks,
        clock: Callable[[], float],
        *,
        sealed_ids: bool,
    ) -> None:
        self._registry = registry
        self._known = known
        self._tasks = tasks
        self._clock = clock
        self._sealed_ids = sealed_ids
        self._flights: dict[str, _Flight] = {}

    async def ask(self, key: SessionKey, sealed: SessionRecord | None) -> Known | None:
        """The session, or None if there certainly is none. ``sealed``: what the id itself says.
        Raises StoreError if the registry fails. May be cancelled."""
        name = key.name
        flight = self._flights.get(name)
        if flight is None:
            flight = self._flights[name] = _Flight()
            self._tasks.spawn(self._fly(flight, key, name, sealed))
        outcome = await asyncio.shield(flight.future)
        if isinstance(outcome, StoreError):
            raise StoreError(str(outcome))
        return outcome

    def overtake(self, name: str) -> None:
        """There is news of this session: another replica ended or moved it, or this one did."""
        flight = self._flights.get(name)
        if flight is not None:
            flight.is_overtaken = True
        entry = self._known.find_name(name)
        if entry is not None:
            self._known.change(entry)
            # Now, and not when it is used again: it may have an open stream.
            self._tasks.spawn(self._refresh_one(entry))

    async def refresh(self, entries: Sequence[Known]) -> None:
        """Begin their time to live anew, and take in what has become of them. Failures change nothing:
        what is known stays known, and is asked about when it is used."""
        for start in range(0, len(entries), REFRESH_AT_ONCE):
            await asyncio.gather(*map(self._refresh_one, entries[start : start + REFRESH_AT_ONCE]))

    def is_self_evident(self, key: SessionKey, record: SessionRecord) -> bool:
        """The id says who owns the session, so the registry need not."""
        return self._sealed_ids and record.generation == 0 and not record.kind

    async def _fly(self, flight: _Flight, key: SessionKey, name: str, sealed: SessionRecord | None) -> None:
        outcome: Outcome = StoreError("the question was interrupted")
        try:
            outcome = await self._look_up(flight, key, name, sealed)
        except StoreError as error:
            outcome = error
        finally:
            del self._flights[name]
            if not flight.future.done():
                flight.future.set_result(outcome)

    async def _look_up(
        self, flight: _Flight, key: SessionKey, name: str, sealed: SessionRecord | None
    ) -> Known | None:
        stored: Stored = None
        rescued = False
        for _ in range(SETTLE_LIMIT):
            flight.is_overtaken = False
            stored = await self._registry.fetch(name)
            entry = self._known.find(key)
            if entry is not None:
                stored, rescued = await self._rescue(entry, stored)
            if not flight.is_overtaken:
                break
        return self._take_in(key, name, stored, sealed, extended=rescued)

    async def _refresh_one(self, entry: Known) -> None:
        news, extends = entry.news, entry.is_used
        try:
            ask = self._registry.refresh if extends else self._registry.fetch
            stored = await ask(entry.name)
            extended = extends and stored is not None
            if self._known.find(entry.key) is entry:
                stored, rescued = await self._rescue(entry, stored)
                extended = extended or rescued
        except StoreError:
            if self._known.find(entry.key) is entry:
                self._known.watch(entry, self._clock())
            return
        if self._known.find(entry.key) is entry and entry.news == news:
            self._take_in(entry.key, entry.name, stored, None, extended=extended)

    async def _rescue(self, entry: Known, stored: Stored) -> tuple[Stored, bool]:
        """What the registry holds, after it has been given again what it lost of a session that is
        known here; and whether it was."""
        record = entry.record
        if stored is ENDED or (stored is not None and stored.generation >= record.generation):
            return stored, False
        if stored is None:
            if self.is_self_evident(entry.key, record) and not record.initialize:
                return None, False
            if self._known.may_have_expired(entry, self._clock()):
                return None, False
        if await self._registry.replace(entry.name, stored, record):
            return record, True
        return await self._registry.fetch(entry.name), False

    def _take_in(
        self, key: SessionKey, name: str, stored: Stored, sealed: SessionRecord | None, *, extended: bool
    ) -> Known | None:
        at_s = self._clock()
        if self._known.is_ended(name):
            return None  # ended from here while the registry was being asked
        entry = self._known.find(key)
        if stored is None and self._sealed_ids:
            stored, extended = sealed, True  # an id that speaks for itself does not expire
            if entry is not None:
                stored = entry.record if self.is_self_evident(key, entry.record) else None
        if isinstance(stored, SessionRecord):
            return self._known.learn(key, name, stored, at_s, extended=extended)
        if stored is ENDED:
            self._known.end(name, at_s)
        elif entry is not None:
            self._known.forget(entry, is_over=True)
        return None
