"""Backends that the same requests may go to, by grade.

Rules of this file: a backend on trial comes before any other, because only a request finds out whether it
works again; then those that are good; then those that are poor, since a request that may fail is better
than one that has failed. Affinity picks within a grade and never changes it. What is closed is not here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from mcp_proxy.backends import Backend, Standing
from mcp_proxy.backends.balance import Balance
from mcp_proxy.backends.rendezvous import Rendezvous
from mcp_proxy.backends.tally import Tally


class _Grade:
    """Backends that are equally good."""

    __slots__ = ("_ids", "balance", "tally")

    def __init__(self, balance: Balance) -> None:
        self._ids: set[str] = set()
        self.balance = balance
        self.tally = Tally()

    def put(self, backend: Backend, weight: float) -> None:
        self._ids.add(backend.id)
        self.balance.put(backend, weight)
        self.tally.put(backend)

    def drop(self, backend: Backend) -> None:
        self._ids.discard(backend.id)
        self.balance.drop(backend)
        self.tally.drop(backend)

    def has_other(self, tried: Collection[str]) -> bool:
        return len(self._ids) > (len(self._ids.intersection(tried)) if tried else 0)


class Audience:
    """``good`` and ``poor`` are empty."""

    __slots__ = ("_good", "_grade_of", "_owners", "_poor", "_trials")

    def __init__(self, pool: str, good: Balance, poor: Balance) -> None:
        self._good = _Grade(good)
        self._poor = _Grade(poor)
        self._trials: OrderedDict[str, Backend] = OrderedDict()
        self._grade_of: dict[Backend, _Grade] = {}
        """None of those on trial."""
        self._owners = Rendezvous(pool)

    def put(self, backend: Backend, weight: float) -> None:
        """Take it in, or file it anew, by its standing. ``weight`` is the effective one."""
        standing = backend.standing
        self._owners.put(backend)
        before = self._grade_of.get(backend)
        if standing is Standing.TRIAL:
            self._leave(backend, before)
            self._trials[backend.id] = backend
            return
        grade = self._good if standing is Standing.GOOD else self._poor
        if before is not grade:
            self._leave(backend, before)
            self._grade_of[backend] = grade
        grade.put(backend, weight)

    def drop(self, backend: Backend) -> None:
        """Forget it, if it is known."""
        self._owners.drop(backend)
        self._leave(backend, self._grade_of.get(backend))

    def recount(self, backend: Backend) -> None:
        """Its sessions have changed, if it is known."""
        grade = self._grade_of.get(backend)
        if grade is not None:
            grade.balance.recount(backend)

    def next(self, tried: Collection[str], affinity: bytes | None, *, opens_session: bool) -> Backend | None:
        """The backend for a request, or None if all were tried."""
        if self._trials:
            for id, backend in self._trials.items():
                if id not in tried:
                    return backend
        grade = self._good if self._good.has_other(tried) else self._poor
        if affinity is None:
            return grade.balance.next(tried, opens_session=opens_session)
        grade.tally.look()
        chosen = self._owner(grade, affinity, tried)
        if chosen is None:
            chosen = grade.balance.next(tried, opens_session=opens_session)
        if chosen is not None:
            grade.tally.expect(chosen)
        return chosen

    def _owner(self, grade: _Grade, affinity: bytes, tried: Collection[str]) -> Backend | None:
        """Where requests of this affinity are at home, or the next of its choices that can take it."""
        grade_of, has_room = self._grade_of, grade.tally.has_room
        for backend in self._owners.choices(affinity):
            if grade_of.get(backend) is grade and backend.id not in tried and has_room(backend):
                return backend
        return None

    def _leave(self, backend: Backend, grade: _Grade | None) -> None:
        if grade is not None:
            grade.drop(backend)
            del self._grade_of[backend]
        else:
            self._trials.pop(backend.id, None)
