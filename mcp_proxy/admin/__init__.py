"""The seam to the admin listener: what it may ask of a running proxy.

Rules of this file: values and a Protocol, so that importing the seam never imports Starlette.
All calls come from the event loop, are synchronous, and must be cheap.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec


class Check(NamedTuple):
    """One line of ``/readyz?verbose``. Open to anybody who reaches the listener, token or not."""

    name: str
    """E.g. ``pool weather``, ``sessions``, ``drain``."""
    ok: bool
    """One check that is not ok takes the proxy out of rotation."""
    detail: str = ""
    """E.g. ``1 of 2 backends up``; no addresses, no secrets."""


class BackendStatus(msgspec.Struct, frozen=True):
    id: str
    up: bool
    sessions: int
    inflight: int
    streams: int


class PoolStatus(msgspec.Struct, frozen=True):
    backends: list[BackendStatus]


class Status(msgspec.Struct, frozen=True):
    """The document at ``/status.json``."""

    version: str
    uptime_s: float
    pid: int
    """Of the worker that answers."""
    listen: str
    """``host:port`` of the data listener."""
    pools: dict[str, PoolStatus]
    limits: dict[str, int | float | None]
    """Named limits in bytes, seconds or pieces; None is no limit."""
    counters: dict[str, int]
    """Totals since the start."""


class AdminView(Protocol):
    """A running proxy, as the admin listener sees it."""

    def alive(self) -> bool:
        """The process works. Never depends on backends or the registry: a restart heals neither."""

    def ready(self) -> list[Check]:
        """Ready when every check is ok. False for good once draining."""

    def status(self) -> Status: ...

    def metrics(self, accept: str | None) -> tuple[bytes, str] | None:
        """The exposition and its content type; None when metrics are switched off."""
