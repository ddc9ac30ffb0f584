"""What the parent asks of a worker.

Rules of this file: a call that has the name of an AdminView method is that method of the worker's
``ServiceView``; the others are steps in the life of the worker and are answered in ``child.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from mcp_proxy.admin import BackendStatus, Check, Status
from mcp_proxy.sessions import Listed, Page
from mcp_proxy.telemetry.app_log import Level
from mcp_proxy.telemetry.recent import Recent
from mcp_proxy.telemetry.snapshot import Snapshot
from mcp_proxy.workers.link import Call

if TYPE_CHECKING:
    from mcp_proxy.config import Config


class Setup(msgspec.Struct, frozen=True):
    """Everything that a worker is told. ``config`` has the worker's share of the limits."""

    config: Config
    log_level: str
    digest_key: bytes
    """The same session has the same hash in the records of all workers."""


SERVE: Final[Call[None]] = Call("serve", None, bytes)
"""Begin, as the pickled ``Setup`` says. Answered when the worker listens; raises StartupError."""
DRAIN: Final[Call[None]] = Call("drain", None)
"""Stop listening after ``limits.drain_delay``, then end when the exchanges in progress have ended, or at
``limits.drain``."""
HURRY: Final[Call[None]] = Call("hurry", None)
"""End without waiting for exchanges."""
RELOAD: Final[Call[None]] = Call("reload", None, bytes)
"""Put the pickled ``Config`` in force; it has the worker's share of the limits. Raises StartupError."""
REOPEN: Final[Call[None]] = Call("reopen", None)
"""Log files were renamed."""
SNAPSHOT: Final[Call[Snapshot]] = Call("snapshot", Snapshot)
ENDED: Final[Call[Snapshot]] = Call("ended", Snapshot)
"""Answered when everything has ended and is counted; then the worker waits for the link to close."""

READY: Final[Call[list[Check]]] = Call("ready", list[Check])
STATUS: Final[Call[Status]] = Call("status", Status)
SET_LOG_LEVEL: Final[Call[None]] = Call("set_log_level", None, Level)

SESSIONS_PAGE: Final[Call[Page]] = Call("sessions_page", Page, str, int)
SESSION: Final[Call[Listed | None]] = Call("session", Listed | None, str)
END_SESSION: Final[Call[bool]] = Call("end_session", bool, str)
RESTORE_SESSIONS: Final[Call[int]] = Call("restore_sessions", int, list[Listed])

RECENT: Final[Call[Recent]] = Call("recent", Recent, str)
DRAIN_BACKEND: Final[Call[list[BackendStatus]]] = Call(
    "drain_backend", list[BackendStatus], str, str | None, float | None
)
UNDRAIN_BACKEND: Final[Call[list[BackendStatus]]] = Call(
    "undrain_backend", list[BackendStatus], str, str | None
)

OF_VIEW: Final[tuple[Call[Any], ...]] = (
    READY,
    STATUS,
    SNAPSHOT,
    SET_LOG_LEVEL,
    SESSIONS_PAGE,
    SESSION,
    END_SESSION,
    RESTORE_SESSIONS,
    RECENT,
    DRAIN_BACKEND,
    UNDRAIN_BACKEND,
)
"""Calls that a worker's ``ServiceView`` answers itself, by their name."""
