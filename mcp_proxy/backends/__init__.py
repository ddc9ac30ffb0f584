"""The seam to backends: what a backend is, what it may be chosen for, and where backends come from.

Rules of this file: values only. What is known about a backend stands in one place, here; balancing reads
it, the pool writes it. ``standing`` follows from the rest and is never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, Protocol
from urllib.parse import urlsplit

import msgspec


class Standing(Enum):
    """What a backend may be chosen for, when no session binds the request."""

    GOOD = "good"
    TRIAL = "trial"
    """Its ejection is over: one request may find out whether it works again."""
    POOR = "poor"
    """Unreachable, unhealthy or ejected: chosen only when there is no better one."""
    CLOSED = "closed"
    """It is drained: nothing new for it, whatever happens to the others."""

    __hash__ = object.__hash__  # Enum's is written in Python


class Ejection(Enum):
    """Where a backend is in its pool's circuit breaker (``ejection.py``)."""

    NONE = "none"
    OUT = "out"
    """Ejected; time has to pass."""
    DUE = "due"
    """Time has passed: the next request is the probe."""
    PROBED = "probed"
    """The probe is on its way."""

    __hash__ = object.__hash__


class Drain(msgspec.Struct, frozen=True):
    """A backend that lets go: nothing new, what it has goes on until ``deadline_s``."""

    since_s: float
    deadline_s: float
    """By ``clock.now()``; then its streams end, and its sessions are lost."""
    by: str
    """``operator``, ``discovery`` or ``reload``."""
    sessions: int = 0
    """When it began, to show how far it is."""


class Backend:
    """One replica of a pool. Mutable facts, identity fixed."""

    __slots__ = (
        "drain", "ejection", "ejections", "failures", "host", "id", "inflight", "is_healthy", "is_modern",
        "is_suspect", "opening", "origin", "path", "port", "released_s", "sessions", "streams", "tls",
        "unreachable_since_s", "warm_from_s", "weight",
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
        # load
        self.sessions = 0
        """Sessions that live here, as far as this process knows."""
        self.opening = 0
        """Requests in flight that will make a session here."""
        self.inflight = 0
        self.streams = 0
        # facts
        self.unreachable_since_s: float | None = None
        """``clock.now()`` of the first connect failure since the last success."""
        self.is_healthy = True
        """What active checks say; True without them."""
        self.is_modern: bool | None = None
        """Speaks 2026-07-28; None while nobody has found out."""
        self.drain: Drain | None = None
        self.warm_from_s: float | None = None
        """When it came, or came back: from then on its share grows for ``slow_start``. None: it is warm."""
        # circuit breaker, written by ejection.py
        self.ejection = Ejection.NONE
        self.failures = 0
        """In a row."""
        self.ejections = 0
        """In a row, for the growing time of the next."""
        self.released_s = 0.0
        """OUT, PROBED: when it becomes DUE. NONE: when it came back."""
        self.is_suspect = False
        """A good answer would be news: ``failures``, ``ejection`` or ``unreachable_since_s`` is set."""

    @property
    def standing(self) -> Standing:
        if self.drain is not None:
            return Standing.CLOSED
        if self.unreachable_since_s is not None or not self.is_healthy:
            return Standing.POOR
        if self.ejection is Ejection.NONE:
            return Standing.GOOD
        return Standing.TRIAL if self.ejection is Ejection.DUE else Standing.POOR

    @property
    def is_up(self) -> bool:
        """Reachable, healthy and not ejected."""
        return self.unreachable_since_s is None and self.is_healthy and self.ejection is Ejection.NONE

    def __repr__(self) -> str:
        counts = f"sessions={self.sessions} inflight={self.inflight} streams={self.streams}"
        return f"<Backend {self.id} {self.standing.value} {counts}>"


class Endpoint(msgspec.Struct, frozen=True, order=True):
    """Where a backend is said to be."""

    host: str
    port: int
    path: str = "/mcp"
    tls: bool = False
    weight: int = 1
    is_open: bool = True
    """False: it is about to leave but still serves what it has (a terminating pod)."""

    def backend(self) -> Backend:
        return Backend(self.host, self.port, self.path.encode("ascii"), tls=self.tls, weight=self.weight)


def endpoint_of(url: str, weight: int = 1) -> Endpoint:
    """Of a URL that the configuration has checked."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    return Endpoint(parts.hostname, port, parts.path or "/", tls=tls, weight=weight)


Publish = Callable[[Sequence[Endpoint]], None]
"""Gets all endpoints that there are now; what is missing has left. Must not raise."""


class Source(Protocol):
    """Finds the endpoints of a pool."""

    async def run(self, publish: Publish) -> None:
        """Look, and publish whatever has changed, until cancelled. A source that cannot be asked
        publishes nothing; it never ends and never raises."""

    def refresh(self) -> None:
        """Look soon, not at the next turn: somebody has met a backend that is not known here."""

    def health(self) -> tuple[bool, str]:
        """Whether the last look succeeded, and a sentence for ``/readyz?verbose`` (no addresses)."""


WEIGHT_LIMIT: Final = 1000
"""Largest weight; what is finer or coarser than that is a mistake."""
