"""The seam to backends: what a backend is, as the gateway sees it.

Counters live here, in one place; balancing reads them, the gateway writes them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, Protocol

AVOID_S: Final = 2.0
"""After a failed connect a backend is tried last for so long; then a probe looks for it."""


class Backend:
    """One replica of a pool. Mutable counters, identity fixed."""

    __slots__ = (
        "avoid_until_s", "host", "id", "inflight", "origin", "path", "port", "sessions", "streams", "tls",
        "unreachable_since_s", "weight",
    )  # fmt: skip

    def __init__(self, host: str, port: int, path: bytes, *, tls: bool = False, weight: int = 1) -> None:
        self.host = host
        self.port = port
        self.path = path
        self.tls = tls
        self.weight = weight
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.origin = f"{'https' if tls else 'http'}://{authority}"
        self.id = self.origin + path.decode("ascii")
        self.sessions = 0
        self.inflight = 0
        self.streams = 0
        self.unreachable_since_s: float | None = None
        """``clock.now()`` of the first connect failure since the last success."""
        self.avoid_until_s = 0.0
        """Until then other backends are preferred: its last connect failed."""

    def reached(self) -> None:
        """It accepted a connection or answered."""
        self.unreachable_since_s = None
        self.avoid_until_s = 0.0

    def refused(self, at_s: float) -> None:
        """A connect failed at ``at_s``."""
        if self.unreachable_since_s is None:
            self.unreachable_since_s = at_s
        self.avoid_until_s = at_s + AVOID_S

    def __repr__(self) -> str:
        state = "up" if self.unreachable_since_s is None else "unreachable"
        counts = f"sessions={self.sessions} inflight={self.inflight} streams={self.streams}"
        return f"<Backend {self.id} {state} {counts}>"


class Balance(Protocol):
    """Chooses a backend for a request that is not bound to one. Pure but for its cursor."""

    def choose(self, backends: Sequence[Backend], tried: Collection[str], at_s: float) -> Backend | None:
        """The best backend whose id is not in ``tried``; None if there is none. ``at_s``:
        the present. Backends to be avoided are chosen only if there is no other."""
