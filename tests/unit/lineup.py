"""Backends for the tests of who is next, and what they are judged by."""

from __future__ import annotations

from mcp_proxy.backends import Backend, Drain, Ejection, Standing


def make(
    name: str,
    *,
    weight: int = 1,
    sessions: int = 0,
    opening: int = 0,
    inflight: int = 0,
    standing: Standing = Standing.GOOD,
    is_modern: bool | None = None,
    warm_from_s: float | None = None,
) -> Backend:
    backend = Backend(name, 80, b"/mcp", weight=weight)
    backend.sessions = sessions
    backend.opening = opening
    backend.inflight = inflight
    backend.is_modern = is_modern
    backend.warm_from_s = warm_from_s
    stand(backend, standing)
    return backend


def stand(backend: Backend, standing: Standing) -> None:
    """Make facts of which ``standing`` follows."""
    backend.drain = Drain(0.0, 10.0, "operator") if standing is Standing.CLOSED else None
    backend.unreachable_since_s = 0.0 if standing is Standing.POOR else None
    backend.ejection = Ejection.DUE if standing is Standing.TRIAL else Ejection.NONE
    assert backend.standing is standing
