"""Whose turn it is: each backend once per round, the turns spread evenly over it.

Rules of this file: pure. O(log n) per turn, whatever the number of backends; a turn that was missed is not
made up for.
"""

from __future__ import annotations

import heapq
from typing import Final

from mcp_proxy.backends import Backend

_GOLDEN: Final = 0.6180339887498949
"""Multiples of it, modulo 1, are spread evenly however many there are: nobody has to know in advance."""


class Rota:
    """``every_s``: length of a round."""

    __slots__ = ("_added", "_every_s", "_soon", "_tickets", "_turns")

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._added = 0
        self._tickets: dict[Backend, int] = {}
        self._turns: list[tuple[float, int, Backend]] = []
        """Heap. A turn without a valid ticket is dropped when it comes: within one round."""
        self._soon: dict[Backend, None] = {}

    def add(self, backend: Backend, at_s: float) -> None:
        """Its first turn comes within one round."""
        self._added += 1
        self._tickets[backend] = self._added
        first_s = at_s + self._every_s * (self._added * _GOLDEN % 1.0)
        heapq.heappush(self._turns, (first_s, self._added, backend))

    def drop(self, backend: Backend) -> None:
        del self._tickets[backend]
        self._soon.pop(backend, None)

    def hurry(self, backend: Backend) -> None:
        """An extra turn, before those of all who wait for theirs."""
        self._soon[backend] = None

    def next(self, at_s: float) -> Backend | None:
        """Whose turn it is; None if it is nobody's."""
        if self._soon:
            backend = next(iter(self._soon))
            del self._soon[backend]
            return backend
        turns = self._turns
        while turns and turns[0][0] <= at_s:
            due_s, ticket, backend = turns[0]
            if self._tickets.get(backend) == ticket:
                missed = (at_s - due_s) // self._every_s
                heapq.heapreplace(turns, (due_s + (missed + 1) * self._every_s, ticket, backend))
                return backend
            heapq.heappop(turns)
        return None
