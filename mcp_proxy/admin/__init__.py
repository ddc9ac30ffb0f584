"""The seam to the admin listener: what it may ask of a running proxy.

Rules of this file: values and a Protocol, so that importing the seam never imports Starlette.
All calls come from the event loop. Synchronous ones must be cheap; of the others arguments and results
are what msgspec can encode.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from mcp_proxy.sessions import Listed, Page
from mcp_proxy.telemetry.app_log import Level
from mcp_proxy.telemetry.recent import Recent


class Check(NamedTuple):
    """One line of ``/readyz?verbose``. Open to anybody who reaches the listener, token or not."""

    name: str
    """E.g. ``pool weather``, ``sessions``, ``drain``."""
    ok: bool
    """One check that is not ok takes the proxy out of rotation."""
    detail: str = ""
    """E.g. ``1 of 2 backends up``; no addresses, no secrets."""


State = Literal["up", "down", "unhealthy", "ejected", "trial", "draining"]
"""Of a backend, the gravest that is true: ``down`` is unreachable, ``unhealthy`` what active checks say,
``trial`` an ejected one that may show whether it works again."""

Era = Literal["modern", "legacy", "unknown"]


class DrainStatus(msgspec.Struct, frozen=True):
    """A backend that gets nothing new and keeps what it has, for a while."""

    by: str
    """``operator``, ``discovery`` or ``reload``."""
    left_s: float
    """Until its streams end and its sessions are lost; 0 when that time is over."""
    sessions: int
    """When it began."""


class BackendStatus(msgspec.Struct, frozen=True):
    """One backend of one pool."""

    id: str
    """``http(s)://host:port/path``."""
    up: bool
    """Reachable, healthy and not ejected."""
    sessions: int
    inflight: int
    streams: int
    pool: str = ""
    weight: int = 1
    state: State = "up"
    era: Era = "unknown"
    drain: DrainStatus | None = None
    ejections: int = 0
    """In a row, without a success in between."""


class PoolStatus(msgspec.Struct, frozen=True):
    """The backends of one pool."""

    backends: list[BackendStatus]


class WorkerStatus(msgspec.Struct, frozen=True):
    """One process of several."""

    pid: int
    uptime_s: float
    inflight: int


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """The document at ``/status.json``."""

    version: str
    uptime_s: float
    pid: int
    """Of the process that answers."""
    listen: str
    """``host:port`` of the data listener."""
    pools: dict[str, PoolStatus]
    limits: dict[str, int | float | None]
    """Named limits in bytes, seconds or pieces; None is no limit."""
    counters: dict[str, int]
    """Totals since the start; empty with ``telemetry.metrics: false``."""
    workers: list[WorkerStatus] = []
    """Those that serve, when there are several; the rest of the document is their sum."""
    draining: bool = False
    """The proxy itself stops: it takes nothing new."""


Exposition = tuple[bytes, str]
"""The text of the metrics and its content type."""


class AdminView(Protocol):
    """A running proxy, as the admin listener sees it."""

    def alive(self) -> bool:
        """The process works. Never depends on backends or the registry: a restart heals neither."""

    def ready(self) -> list[Check] | Awaitable[list[Check]]:
        """Ready when every check is ok. False for good once draining."""

    def status(self) -> Status | Awaitable[Status]: ...

    def metrics(self, accept: str | None) -> Exposition | Awaitable[Exposition | None] | None:
        """None when metrics are switched off."""

    def configuration(self) -> dict[str, Any]:
        """All of the configuration in force, as JSON values and without secrets."""

    def drain_proxy(self) -> None:
        """As SIGTERM. Idempotent: unlike a second signal, a second call hurries nothing."""

    async def recent(self, cursor: str) -> Recent:
        """What has ended since the answer with this cursor; the first question has an empty one. Whoever
        stops asking costs nothing any more. As ``telemetry.recent.Ring``."""

    def log_level(self) -> Level:
        """What is said in the application log."""

    def set_log_level(self, level: Level) -> Awaitable[None] | None:
        """In every process, also in those to come, until the last one ends."""

    # --- backends --------------------------------------------------------------------

    async def drain_backend(
        self, backend_id: str, pool: str | None, seconds: float | None
    ) -> list[BackendStatus]:
        """Nothing new for this backend, in that pool or in all that have it; what it has may go on for
        ``seconds``, or as the configuration says. Its status afterwards; empty if nobody knows it."""

    async def undrain_backend(self, backend_id: str, pool: str | None) -> list[BackendStatus]:
        """It stays after all, whoever drained it. No error if it was not drained."""

    # --- sessions; each raises StoreError if the registry cannot be asked ----------------

    async def sessions_page(self, cursor: str, limit: int) -> Page:
        """As ``SessionStore.page``. Raises ValueError for a cursor that was not issued."""

    async def session(self, name: str) -> Listed | None: ...

    async def end_session(self, name: str) -> bool:
        """End the session here and, as well as possible, at its backend; False if there is none."""

    async def restore_sessions(self, sessions: list[Listed]) -> int:
        """As ``SessionStore.restore``."""

    def pool_of(self, session: Listed) -> str:
        """Name of the pool; empty if neither the route nor the backend is of this configuration."""
