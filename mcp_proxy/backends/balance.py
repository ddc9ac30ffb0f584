"""Choosing a backend for a request that no session binds.

Rules of this file: no I/O; the only state is a cursor. O(backends), which is right for the
static pools of this version.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mcp_proxy.backends import Backend


class LeastSessions:
    """The backend with the fewest sessions per weight; ties go to fewer requests in flight
    per weight, then in turn by weight, so that idle pools are filled evenly."""

    def __init__(self) -> None:
        self._cursor = 0

    def choose(self, backends: Sequence[Backend], tried: Collection[str], at_s: float) -> Backend | None:
        candidates = _preferred(backends, tried, at_s)
        if len(candidates) <= 1:
            return candidates[0] if candidates else None
        least = min(map(_load, candidates))
        tied = [backend for backend in candidates if _load(backend) == least]
        self._cursor += 1
        return _turn(tied, self._cursor)


class RoundRobin:
    """In turn, a backend of weight n gets n turns of each round."""

    def __init__(self) -> None:
        self._cursor = 0

    def choose(self, backends: Sequence[Backend], tried: Collection[str], at_s: float) -> Backend | None:
        candidates = _preferred(backends, tried, at_s)
        self._cursor += 1
        return _turn(candidates, self._cursor) if candidates else None


def _preferred(backends: Sequence[Backend], tried: Collection[str], at_s: float) -> list[Backend]:
    """Those not tried yet, without those to be avoided unless there are no others."""
    candidates = [backend for backend in backends if backend.id not in tried]
    return [backend for backend in candidates if backend.avoid_until_s <= at_s] or candidates


def _load(backend: Backend) -> tuple[float, float]:
    return backend.sessions / backend.weight, backend.inflight / backend.weight


def _turn(backends: Sequence[Backend], cursor: int) -> Backend:
    turns = [backend for backend in backends for _ in range(backend.weight)]
    return turns[cursor % len(turns)]
