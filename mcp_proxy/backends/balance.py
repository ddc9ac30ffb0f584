"""Choosing a backend for a request that no session binds.

Rules of this file: no I/O; the only state is a cursor. O(backends), which is right for the
static pools of this version.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mcp_proxy.backends import Backend


class LeastSessions:
    """The backend with the fewest sessions per weight; ties go to fewer requests in
    flight, then in turn, so that idle pools are filled evenly."""

    def __init__(self) -> None:
        self._cursor = 0

    def choose(self, backends: Sequence[Backend], tried: Collection[str], at_s: float) -> Backend | None:
        self._cursor += 1
        best: Backend | None = None
        best_load: tuple[bool, float, float] | None = None
        count = len(backends)
        for offset in range(count):
            backend = backends[(self._cursor + offset) % count]
            if backend.id in tried:
                continue
            load = (
                backend.avoid_until_s > at_s,
                backend.sessions / backend.weight,
                backend.inflight / backend.weight,
            )
            if best_load is None or load < best_load:
                best, best_load = backend, load
        return best


class RoundRobin:
    """In turn, a backend of weight n gets n turns of each round."""

    def __init__(self) -> None:
        self._cursor = 0

    def choose(self, backends: Sequence[Backend], tried: Collection[str], at_s: float) -> Backend | None:
        turns = [backend for backend in backends for _ in range(backend.weight) if backend.id not in tried]
        if not turns:
            return None
        self._cursor += 1
        preferred = [backend for backend in turns if backend.avoid_until_s <= at_s] or turns
        return preferred[self._cursor % len(preferred)]
