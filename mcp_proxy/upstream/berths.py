"""How many connections to backends a process may have, over all of its transports.

Rules of this file: a connection in use is never closed here, and nobody waits for one. What is idle
gives way to what is needed: the idle connections to one pool must not hold the descriptors with which
another could be reached.
"""

from __future__ import annotations

from typing import Protocol


class Idler(Protocol):
    """A transport, as the others see it."""

    def close_idle(self) -> bool:
        """Close the connection that has been idle for longest. False: none is idle."""


class Berths:
    """One per process. ``limit``: connections that may be open before idle ones are closed."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self._idlers: dict[Idler, int] = {}
        """Who has connections, and how many."""

    def take(self, idler: Idler) -> bool:
        """A connection is about to be opened. True: another one is being closed for it, which has
        happened when the loop has turned once."""
        is_full = self.taken >= self.limit
        gives_way = is_full and any(other.close_idle() for other in self._idlers)
        self.taken += 1
        self._idlers[idler] = self._idlers.get(idler, 0) + 1
        return gives_way

    def leave(self, idler: Idler) -> None:
        """A connection is closed, or was never opened. Exactly once for each ``take``."""
        self.taken -= 1
        left = self._idlers.pop(idler) - 1
        if left:
            self._idlers[idler] = left
