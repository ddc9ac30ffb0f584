"""The circuit breaker of a pool: a backend that fails again and again is left out for a while.

Rules of this file: no I/O, the time is an argument. What is known stands in the backend itself (``ejection``,
``failures``, ``ejections``, ``released_s``), so it outlives a change of the rule. Each call is O(1), but for
the heap in which times end: O(log n). The moves, all of them, are in one table:

    NONE --eject--> OUT --wait--> DUE --probe--> PROBED
                                  DUE <--wait--- PROBED           no verdict within PROBE_S
                            OUT <--eject-- DUE, PROBED            it failed again: for longer
                           NONE <--return- DUE, PROBED            it works
                           NONE <--forgive- OUT, DUE, PROBED      nobody ejects any more

Between OUT and DUE results say nothing new: they are of sessions that cannot go elsewhere, sent to a backend
that is known to fail. From DUE on any result is as good as that of the probe.
"""

from __future__ import annotations

import heapq
import math
from typing import Final, NamedTuple

from mcp_proxy.backends import Backend, Ejection

PROBE_S: Final = 10.0
"""A probe without a verdict by then is not waited for: its client may have left, or it streams."""

GROWTH_LIMIT: Final = 10
"""Times ``for_s``, at most. A backend that was away over night is found within minutes."""

_DOUBLINGS: Final = GROWTH_LIMIT.bit_length()
"""More would only make a larger number that the limit cuts."""

_EXACT: Final = 1e-9
"""29 % of 100 is 28.999999999999996 in binary, and means 29."""

_SLACK: Final = 16
"""Entries of the heap that are out of date and not worth a clearing."""

_EJECTED: Final = frozenset((Ejection.OUT, Ejection.DUE, Ejection.PROBED))

_MOVES: Final[dict[tuple[Ejection, str], Ejection]] = {
    (Ejection.NONE, "eject"): Ejection.OUT,
    (Ejection.OUT, "wait"): Ejection.DUE,
    (Ejection.DUE, "probe"): Ejection.PROBED,
    (Ejection.PROBED, "wait"): Ejection.DUE,
    (Ejection.DUE, "eject"): Ejection.OUT,
    (Ejection.PROBED, "eject"): Ejection.OUT,
    (Ejection.DUE, "return"): Ejection.NONE,
    (Ejection.PROBED, "return"): Ejection.NONE,
    (Ejection.OUT, "forgive"): Ejection.NONE,
    (Ejection.DUE, "forgive"): Ejection.NONE,
    (Ejection.PROBED, "forgive"): Ejection.NONE,
}


class IllegalMove(RuntimeError):
    """A bug: a backend was to do what its state does not allow."""


class Rule(NamedTuple):
    """When to eject."""

    after: int
    """Failures in a row."""
    for_s: float
    """The first time; doubled each time in a row, up to ``GROWTH_LIMIT``."""
    at_most: float
    """Share of the pool, 0 to 1, rounded down to backends."""

    def seconds(self, ejections: int) -> float:
        """How long the ejection with this number, in a row and from 1, lasts."""
        return self.for_s * min(1 << min(ejections - 1, _DOUBLINGS), GROWTH_LIMIT)


class Ejector:
    """``rule`` None: never ejects, counts nothing."""

    __slots__ = ("_ejected", "_rule", "_serial", "_times")

    def __init__(self, rule: Rule | None) -> None:
        self._rule = rule
        self._ejected: set[Backend] = set()
        """OUT, DUE or PROBED: what counts into the share."""
        self._times: list[tuple[float, int, Backend]] = []
        """Heap of when OUT and PROBED end. An entry is out of date when the backend says another time."""
        self._serial = 0

    # --- results -----------------------------------------------------------------------

    def failed(self, backend: Backend, at_s: float, size: int) -> bool:
        """It failed, in a pool of ``size``. True if that ejected it, for the first time or again. One that
        there is no room for keeps its count."""
        rule = self._rule
        if rule is None or backend.ejection is Ejection.OUT:
            return False
        if backend.failures == 0 and self._has_been_well(rule, backend, at_s):
            backend.ejections = 0
        backend.failures += 1
        if backend.ejection is Ejection.NONE and (
            backend.failures < rule.after or len(self._ejected) >= math.floor(rule.at_most * size + _EXACT)
        ):
            return False
        self._move(backend, "eject")
        backend.ejections += 1
        self._until(backend, at_s + rule.seconds(backend.ejections))
        return True

    def succeeded(self, backend: Backend, at_s: float) -> bool:
        """It answered well. True if that ended an ejection."""
        if self._rule is None or backend.ejection is Ejection.OUT:
            return False
        backend.failures = 0
        if backend.ejection is Ejection.NONE:
            return False
        self._move(backend, "return")
        backend.released_s = at_s
        return True

    def probed(self, backend: Backend, at_s: float) -> None:
        """It was chosen while DUE: nobody else may choose it until there is a verdict."""
        self._move(backend, "probe")
        self._until(backend, at_s + PROBE_S)

    @staticmethod
    def _has_been_well(rule: Rule, backend: Backend, at_s: float) -> bool:
        """For as long, since it came back, as it had been out. A row of failures counts from its first."""
        return backend.ejections > 0 and at_s - backend.released_s >= rule.seconds(backend.ejections)

    # --- who there is ------------------------------------------------------------------

    def adopt(self, backend: Backend) -> None:
        """Go on, once, with a backend of another Ejector, from what its fields say."""
        if self._rule is not None:
            if backend.ejection is not Ejection.NONE:
                self._ejected.add(backend)
                self._until(backend, backend.released_s)
            return
        if backend.ejection is not Ejection.NONE:
            self._move(backend, "forgive")
        backend.failures = backend.ejections = 0

    def drop(self, backend: Backend) -> None:
        """It is gone; what it left is forgotten here, its fields stay as they are."""
        self._ejected.discard(backend)
        self._clear()

    # --- time --------------------------------------------------------------------------

    def sweep(self, at_s: float) -> list[Backend]:
        """Those that have become DUE: ejected for long enough, or probed without a verdict."""
        due: list[Backend] = []
        while self._times and self._times[0][0] <= at_s:
            entry = heapq.heappop(self._times)
            if self._is_current(entry):
                self._move(entry[2], "wait")
                due.append(entry[2])
        return due

    def _until(self, backend: Backend, released_s: float) -> None:
        backend.released_s = released_s
        self._serial += 1
        heapq.heappush(self._times, (released_s, self._serial, backend))
        self._clear()

    def _is_current(self, entry: tuple[float, int, Backend]) -> bool:
        released_s, _, backend = entry
        is_waiting = backend.ejection is Ejection.OUT or backend.ejection is Ejection.PROBED
        return is_waiting and backend in self._ejected and backend.released_s == released_s

    def _clear(self) -> None:
        """Keep the heap in proportion to what is ejected."""
        if len(self._times) > 2 * len(self._ejected) + _SLACK:
            self._times = list(filter(self._is_current, self._times))
            heapq.heapify(self._times)

    # --- the machine -------------------------------------------------------------------

    def _move(self, backend: Backend, event: str) -> None:
        state = _MOVES.get((backend.ejection, event))
        if state is None:
            raise IllegalMove(f"{event} of a backend that is {backend.ejection.value}")
        backend.ejection = state
        if state in _EJECTED:
            self._ejected.add(backend)
        else:
            self._ejected.discard(backend)
