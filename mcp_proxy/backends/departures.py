"""Backends on their way out of a pool, and what is remembered of those that are not in it. Pure.

Rules of this file: a backend leaves in steps. It is drained; when its time is over, or it cannot be reached
any more, its sessions are lost; when it holds nothing it is forgotten, but for its id. An id that was never
known here is not the same as one that has left: another replica may have heard of the backend first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mcp_proxy.backends import Backend, Drain

MEMORY: Final = 4096
"""Ids that are remembered of each kind, some 200 bytes each."""


class Departures:
    """Of the backends of one pool."""

    def __init__(self) -> None:
        self.wanted: frozenset[str] = frozenset()
        """Ids that the configuration or discovery named last; only others may leave."""
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

    def has_left(self, id: str) -> bool:
        """It was in the pool, and is not any more."""
        return id in self._gone

    def first_heard_s(self, id: str, at_s: float) -> float:
        """Since when somebody else knows a backend that was never in the pool. ``at_s``: the present."""
        if id not in self._strangers:
            _remember(self._strangers, id, at_s)
        return self._strangers[id]


def _remember(memory: dict[str, float], id: str, at_s: float) -> None:
    if len(memory) >= MEMORY:
        del memory[next(iter(memory))]
    memory[id] = at_s
