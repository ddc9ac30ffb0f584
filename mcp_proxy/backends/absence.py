"""Backends that cannot be reached, and when to look for them again. Pure but for the clock's queue.

Rules of this file: a failed connect is a fact, so it counts at once and not only after several; what ends
it is a connect that succeeds, of a request or of a look. Looking keeps the absence a fact while there is
no traffic. A backend that is drained is looked for too: nobody needs to wait for one that is gone.
"""

from __future__ import annotations

from typing import Final

from mcp_proxy.backends import Backend
from mcp_proxy.clock import Deadlines

LOOK_S: Final = 2.0
"""Between two looks. One costs both sides a connection, and whoever restarts takes about so long."""


class Absence:
    """Of the backends of one pool."""

    def __init__(self) -> None:
        self._waiting: Deadlines[Backend] = Deadlines(LOOK_S, self._is_due)
        self._due: list[Backend] = []
        self._looking: set[Backend] = set()

    def refused(self, backend: Backend, at_s: float) -> None:
        """A connect failed."""
        if backend.unreachable_since_s is None:
            backend.unreachable_since_s = at_s
        self._waiting.arm(backend, at_s)

    def watch(self, backend: Backend, at_s: float) -> None:
        """Look for it as well, though nothing is known to be wrong with it: it is drained."""
        self._waiting.arm(backend, at_s)

    def reached(self, backend: Backend, at_s: float) -> bool:
        """It accepted a connection or answered. True: it had been away."""
        was_away = backend.unreachable_since_s is not None
        backend.unreachable_since_s = None
        if backend.drain is None:
            self._waiting.disarm(backend)
        else:
            self.watch(backend, at_s)
        return was_away

    def due(self, at_s: float) -> list[Backend]:
        """Backends that it is time to look for; say ``looked`` of each. None of them twice at a time."""
        self._waiting.sweep(at_s)
        due, self._due = self._due, []
        self._looking.update(due)
        return due

    def looked(self, backend: Backend) -> None:
        """The look at it is over; ``refused`` or ``reached`` follows, or nothing if it was in vain."""
        self._looking.discard(backend)

    def drop(self, backend: Backend) -> None:
        """It is no backend of the pool any more."""
        self._waiting.disarm(backend)

    def _is_due(self, backend: Backend) -> None:
        if backend not in self._looking:
            self._due.append(backend)
