"""What active checks make of one backend: a single result proves nothing, several in a row do.

Rules of this file: pure. A check that could not find out is no result.
"""

from __future__ import annotations


class Health:
    """``fall`` failures in a row make it unhealthy, ``rise`` successes in a row healthy again."""

    __slots__ = ("_against", "fall", "is_healthy", "rise")

    def __init__(self, fall: int, rise: int, *, is_healthy: bool = True) -> None:
        self.fall = fall
        self.rise = rise
        self.is_healthy = is_healthy
        self._against = 0
        """Results in a row that contradict ``is_healthy``."""

    def add(self, is_well: bool) -> bool:
        """One more result; the verdict from now on."""
        if is_well is self.is_healthy:
            self._against = 0
            return self.is_healthy
        self._against += 1
        if self._against >= (self.rise if is_well else self.fall):
            self.is_healthy = is_well
            self._against = 0
        return self.is_healthy
