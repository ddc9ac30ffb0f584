"""What is told of a backend, from its facts; and of one that several processes know.

Rules of this file: pure; the time is an argument.
"""

from __future__ import annotations

from typing import Final

from mcp_proxy.admin import BackendStatus, DrainStatus, Era, State
from mcp_proxy.backends import Backend, Ejection

_ERAS: Final[dict[bool | None, Era]] = {True: "modern", False: "legacy", None: "unknown"}

_GRAVITY: Final[dict[State, int]] = {
    "up": 0,
    "trial": 1,
    "ejected": 2,
    "unhealthy": 3,
    "down": 4,
    "draining": 5,
}
"""Draining is what an operator has to see first: whatever else is true, it gets nothing new."""


def status_of(backend: Backend, pool: str, at_s: float) -> BackendStatus:
    return BackendStatus(
        id=backend.id,
        up=backend.is_up,
        sessions=backend.sessions,
        inflight=backend.inflight,
        streams=backend.streams,
        pool=pool,
        weight=backend.weight,
        state=state_of(backend),
        era=_ERAS[backend.is_modern],
        drain=_drain_of(backend, at_s),
        ejections=backend.ejections,
    )


def state_of(backend: Backend) -> State:
    if backend.drain is not None:
        return "draining"
    if backend.unreachable_since_s is not None:
        return "down"
    if not backend.is_healthy:
        return "unhealthy"
    if backend.ejection is Ejection.NONE:
        return "up"
    return "ejected" if backend.ejection is Ejection.OUT else "trial"


def _drain_of(backend: Backend, at_s: float) -> DrainStatus | None:
    drain = backend.drain
    if drain is None:
        return None
    return DrainStatus(drain.by, round(max(0.0, drain.deadline_s - at_s), 1), drain.sessions)


def merged(one: BackendStatus, other: BackendStatus) -> BackendStatus:
    """The same backend as two processes see it: loads are added, and the graver view counts."""
    drains = [each.drain for each in (one, other) if each.drain is not None]
    first = drains[0] if drains else None
    return BackendStatus(
        id=one.id,
        up=one.up and other.up,
        sessions=one.sessions + other.sessions,
        inflight=one.inflight + other.inflight,
        streams=one.streams + other.streams,
        pool=one.pool,
        weight=one.weight,
        state=max(one.state, other.state, key=_GRAVITY.__getitem__),
        era=one.era if one.era != "unknown" else other.era,
        drain=None
        if first is None
        else DrainStatus(
            first.by, max(drain.left_s for drain in drains), sum(drain.sessions for drain in drains)
        ),
        ejections=max(one.ejections, other.ejections),
    )
