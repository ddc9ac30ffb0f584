"""Who is next of a pool. Pure: the time and chance are given.

Rules of this file: it files what ``put`` shows it and judges nothing itself. A decision never looks at all
backends. Putting one is O(1) as well, but for the one that makes the members differ in era for the
first time, or agree again.

A request of the era of 2026-07-28 is lost on a backend that does not speak it, however good that one is. So
it goes to those that are known to speak it, even if all of these are poor. Where there is none, one that
nobody has asked yet may turn out to. Where there is none of these either, any will do: its own refusal
says which versions it has, and tells the client more than ours. All other requests may go to anyone.
"""

from __future__ import annotations

import random as chance
from collections.abc import Callable, Collection
from typing import Final

from mcp_proxy.backends import Backend, Standing
from mcp_proxy.backends.audience import Audience
from mcp_proxy.backends.balance import BALANCES

COLD: Final = 0.1
"""Of its weight a backend begins with: enough requests to fill caches and compile what is compiled late,
too few to bury it."""

_ERAS: Final = (True, None, False)
"""Whom modern requests are for, in order of preference."""


class _Warming:
    __slots__ = ("backend", "from_s", "share")

    def __init__(self, backend: Backend, from_s: float) -> None:
        self.backend = backend
        self.from_s = from_s
        self.share = COLD


class Roster:
    """The backends of a pool that are not closed. ``balance`` is that of the configuration.

    A backend that warms up has 10 % of its weight at ``warm_from_s`` and all of it ``slow_start_s`` later;
    what affinity binds to it does not change with that."""

    __slots__ = (
        "_eras", "_everyone", "_make", "_members", "_modern", "_modern_era", "_pool_name", "_random",
        "_slow_start_s", "_warming",
    )  # fmt: skip

    def __init__(
        self,
        pool_name: str,
        balance: str,
        *,
        slow_start_s: float | None,
        random: Callable[[], float] = chance.random,
    ) -> None:
        self._pool_name = pool_name
        self._make = BALANCES[balance]
        self._random = random
        self._slow_start_s = slow_start_s
        self._members: dict[str, bool | None] = {}
        """The era of each, as it was filed."""
        self._eras: dict[bool | None, dict[str, Backend]] = {era: {} for era in _ERAS}
        self._everyone = self._audience()
        self._modern = self._everyone
        """For modern requests: the same object while all members are alike."""
        self._modern_era: bool | None = None
        self._warming: dict[str, _Warming] = {}

    def __len__(self) -> int:
        return len(self._members)

    # --- who there is ----------------------------------------------------------------

    def put(self, backend: Backend) -> None:
        """It is new, or something about it has changed: standing, weight, era or when it began to warm up."""
        if backend.standing is Standing.CLOSED:
            self.drop(backend)
            return
        weight = self._weight(backend)
        self._everyone.put(backend, weight)
        self._file_era(backend)
        if self._modern is not self._everyone:
            if backend.is_modern is self._modern_era:
                self._modern.put(backend, weight)
            else:
                self._modern.drop(backend)

    def drop(self, backend: Backend) -> None:
        """It has left, or takes nothing new."""
        self._everyone.drop(backend)
        self._warming.pop(backend.id, None)
        if backend.id in self._members:
            del self._eras[self._members.pop(backend.id)][backend.id]
            self._modern.drop(backend)
            self._address()

    def recount(self, backend: Backend) -> None:
        """Its ``sessions`` or ``opening`` have changed."""
        self._everyone.recount(backend)
        if self._modern is not self._everyone:
            self._modern.recount(backend)

    def _file_era(self, backend: Backend) -> None:
        era = backend.is_modern
        if backend.id not in self._members or self._members[backend.id] is not era:
            if backend.id in self._members:
                del self._eras[self._members[backend.id]][backend.id]
            self._members[backend.id] = era
            self._eras[era][backend.id] = backend
            self._address()

    def _address(self) -> None:
        """Settle whom modern requests are for."""
        era = next((era for era in _ERAS if self._eras[era]), None)
        if len(self._eras[era]) == len(self._members):
            self._modern = self._everyone
        elif self._modern is self._everyone or era is not self._modern_era:
            self._modern = self._audience()
            for backend in self._eras[era].values():
                self._modern.put(backend, self._weight(backend))
        self._modern_era = era

    def _audience(self) -> Audience:
        return Audience(self._pool_name, self._make(self._random), self._make(self._random))

    # --- who is next -----------------------------------------------------------------

    def next(
        self, tried: Collection[str], affinity: bytes | None, *, opens_session: bool, is_modern: bool
    ) -> Backend | None:
        """The backend for a request that no session binds, of those whose id is not in ``tried``. The same
        ``affinity`` gets the same one, as long as it is good and not crowded."""
        audience = self._modern if is_modern else self._everyone
        return audience.next(tried, affinity, opens_session=opens_session)

    def has_other(self, tried: Collection[str], *, is_modern: bool = False) -> bool:
        """``next`` would find a backend that was not tried."""
        members: Collection[str] = self._eras[self._modern_era] if is_modern else self._members
        return len(members) > sum(id in members for id in set(tried))

    # --- warming up ------------------------------------------------------------------

    def sweep(self, at_s: float) -> None:
        """Let those that are warming up have the weight that they have come to at ``at_s``."""
        if self._slow_start_s is None:
            return
        for warming in list(self._warming.values()):
            progress = max(0.0, (at_s - warming.from_s) / self._slow_start_s)
            warming.share = COLD + (1 - COLD) * progress
            if progress >= 1:
                warming.backend.warm_from_s = None
            self.put(warming.backend)

    def _weight(self, backend: Backend) -> float:
        """Effective: as of the last sweep."""
        from_s = backend.warm_from_s
        if from_s is None or self._slow_start_s is None:
            self._warming.pop(backend.id, None)
            return backend.weight
        warming = self._warming.get(backend.id)
        if warming is None or warming.from_s != from_s:
            warming = self._warming[backend.id] = _Warming(backend, from_s)
        return backend.weight * warming.share
