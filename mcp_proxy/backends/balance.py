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
        candidates = [backend for backend in backends if backend.id not in tried]
        candidates = [backend for backend in candidates if backend.avoid_until_s <= at_s] or candidates
        if not candidates:
            return None
        self._cursor += 1
        turn = self._cursor % len(candidates)
        return min(candidates[turn:] + candidates[:turn], key=_load)


def _load(backend: Backend) -> tuple[float, float]:
    # plus one: of idle backends, too, the heavier one comes first
    return (backend.sessions + 1) / backend.weight, (backend.inflight + 1) / backend.weight


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
