"""How many requests are in flight at all of some backends, and whether one of them has its fill.

Rules of this file: ``backend.inflight`` changes for every request without a word to anybody, and adding up
1,000 numbers for each decision would cost more than the decision. So each decision looks at a few
backends in turn and corrects the sum by what has changed there; what it decides itself it adds at once. So
the sum is exact for two backends, and for n it lacks what has changed during the last n / LOOKS decisions.
"""

from __future__ import annotations

from typing import Final

from mcp_proxy.backends import Backend

LOOKS: Final = 2
"""Backends that a decision looks at. With two, the mean is too high by half a request at most when requests
end as fast as they are decided here."""

CROWDED: Final = 1.25
"""Times the mean a backend may get: Mirrokni, Thorup and Zadimoghaddam, Consistent Hashing with Bounded
Loads (2016), whose c = 1 + 1/4 moves few values and keeps any backend near the mean."""


class Tally:
    """Bounded load of a group of backends."""

    __slots__ = ("_cursor", "_index_of", "_members", "_seen", "_total", "_weight", "_weights")

    def __init__(self) -> None:
        self._members: list[Backend] = []
        self._index_of: dict[Backend, int] = {}
        self._seen: list[int] = []
        """Requests in flight, when each was looked at."""
        self._weights: list[int] = []
        self._total = 0
        self._weight = 0
        self._cursor = 0

    def __len__(self) -> int:
        return len(self._members)

    def put(self, backend: Backend) -> None:
        self.drop(backend)
        self._index_of[backend] = len(self._members)
        self._members.append(backend)
        self._seen.append(backend.inflight)
        self._weights.append(backend.weight)
        self._total += backend.inflight
        self._weight += backend.weight

    def drop(self, backend: Backend) -> None:
        index = self._index_of.pop(backend, None)
        if index is None:
            return
        self._total -= self._seen[index]
        self._weight -= self._weights[index]
        last, seen, weight = self._members.pop(), self._seen.pop(), self._weights.pop()
        if last is not backend:
            self._members[index], self._seen[index], self._weights[index] = last, seen, weight
            self._index_of[last] = index

    def look(self) -> None:
        """At a few, for the decision that is to be made."""
        for _ in range(min(LOOKS, len(self._members))):
            self._cursor = (self._cursor + 1) % len(self._members)
            self._see(self._cursor, self._members[self._cursor].inflight)

    def has_room(self, backend: Backend) -> bool:
        """One more request does not lift it over CROWDED times the mean by weight, rounded up. The mean
        counts that request."""
        index = self._index_of[backend]
        # n + 1 <= ceil(x) says n < x, for whole n.
        return backend.inflight * self._weight < CROWDED * (self._total + 1) * self._weights[index]

    def expect(self, backend: Backend) -> None:
        """It was chosen: one more is going to be in flight there."""
        self._see(self._index_of[backend], backend.inflight + 1)

    def _see(self, index: int, inflight: int) -> None:
        self._total += inflight - self._seen[index]
        self._seen[index] = inflight
