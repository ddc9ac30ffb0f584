"""Backends on their way out of a pool, and what is remembered of those that are not in it. Pure.

Rules of this file: a backend leaves in steps. It is drained; when its time is over, or it cannot be reached
any more, its sessions are lost; when it holds nothing it is forgotten, but for its id. An id that was never
known here is not the same as one that has left: another replica may have heard of the backend first.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

from mcp_proxy.backends import Backend, Drain

MEMORY: Final = 4096
"""Ids that are remembered of each kind, some 200 bytes each."""

MEMORY_S: Final = 600.0
"""How long an id means the same backend when it is not in the pool: addresses of pods are given again."""


class Departures:
    """Of the backends of one pool."""

    def __init__(self) -> None:
        self.wanted: frozenset[str] = frozenset()
        """Ids that the configuration or discovery named last; only others may leave."""
        self.closing: frozenset[str] = frozenset()
        """Of these, those that are about to leave."""
        self._leaving: dict[Backend, bool] = {}
        """The backends that are drained, and whether ``overdue`` has named them."""
        self._gone: dict[str, float] = {}
        self._strangers: dict[str, float] = {}
        """When they were first heard of."""

    def drain(self, backend: Backend, drain: Drain) -> None:
        backend.drain = drain
        self._leaving[backend] = False

    def stay(self, backend: Backend) -> None:
        backend.drain = None
        self._leaving.pop(backend, None)

    def overdue(self, is_lost: Callable[[Backend], bool]) -> list[Backend]:
        """Backends whose sessions are lost from now on, each once."""
        over = [backend for backend, is_told in self._leaving.items() if not is_told and is_lost(backend)]
        self._leaving.update((backend, True) for backend in over)
        return over

    def is_over(self, backend: Backend) -> bool:
        """``overdue`` has named it, and its streams have ended: nobody would end others."""
        return self._leaving.get(backend, False)

    def parted(self, at_s: float) -> list[Backend]:
        """Backends that have let go of everything: forgotten here, but for their ids."""
        if not self._leaving:
            return []
        gone = [
            backend
            for backend, is_told in self._leaving.items()
            if is_told and backend.id not in self.wanted and not backend.inflight
        ]
        for backend in gone:
            del self._leaving[backend]
            _remember(self._gone, backend.id, at_s)
        return gone

    def come(self, id: str) -> None:
        """The backend of this id is in the pool, again or for the first time."""
        self._gone.pop(id, None)
        self._strangers.pop(id, None)

    def has_left(self, id: str, at_s: float) -> bool:
        """It was in the pool, and is not any more, since not long ago."""
        return at_s - self._gone.get(id, -inf) < MEMORY_S

    def is_unheard_of(self, id: str, at_s: float, for_s: float) -> bool:
        """Somebody else has known the backend for so long, and nobody has named it here."""
        if at_s - self._strangers.get(id, -inf) >= for_s + MEMORY_S:
            _remember(self._strangers, id, at_s)
        return at_s - self._strangers[id] >= for_s


def _remember(memory: dict[str, float], id: str, at_s: float) -> None:
    memory.pop(id, None)
    if len(memory) >= MEMORY:
        del memory[next(iter(memory))]
    memory[id] = at_s
