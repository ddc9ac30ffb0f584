"""The documents that the admin listener sends and takes, as types: ``/openapi.json`` is made of them.

Rules of this file: values only. ``Status`` and what belongs to it stand in the seam.
"""

from __future__ import annotations

import msgspec

from mcp_proxy.admin import BackendStatus, State
from mcp_proxy.telemetry.app_log import Level


class Reason(msgspec.Struct, frozen=True):
    """What went wrong."""

    reason: str
    """A stable word."""
    detail: str
    """A sentence for people."""


class Refusal(msgspec.Struct, frozen=True):
    """Every error has this form."""

    error: Reason


class Backends(msgspec.Struct, frozen=True):
    """Backends; one that is in several pools occurs once for each."""

    backends: list[BackendStatus]


class DrainOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How long what the backend has may go on."""

    for_: str | None = msgspec.field(name="for", default=None)
    """A duration as in the configuration, such as 5m; 0s is now; not given, the pool's setting."""


class LogLevel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much the proxy says about itself."""

    level: Level


class Draining(msgspec.Struct, frozen=True):
    """The proxy has begun to stop."""

    draining: bool


class Session(msgspec.Struct, frozen=True):
    """A session without anything that could be used as the session."""

    name: str
    """40 hex digits, a hash of route and session id."""
    route: str
    pool: str
    backend: str
    principal: str
    generation: int
    """How often it was made anew at another backend."""
    created: int | None
    """Unix seconds; null when not known."""
    expires_in_s: float | None
    moved: bool


class Sessions(msgspec.Struct, frozen=True):
    """A page of sessions."""

    sessions: list[Session]
    cursor: str
    """Of the next page; empty on the last one."""


class Ended(msgspec.Struct, frozen=True):
    ended: str
    """Name of the session."""


class Restored(msgspec.Struct, frozen=True):
    restored: int
    skipped: int
    """Existed already, or were ended."""


class BackendEvent(msgspec.Struct, frozen=True):
    """A backend has changed its state. ``backend`` on ``/events``."""

    pool: str
    id: str
    state: State | None
    """Null: it has left."""
    was: State | None
    """Null: it has come."""


class MissedEvent(msgspec.Struct, frozen=True):
    """``missed`` on ``/events``: the reader was too slow, or the proxy too busy."""

    missed: int
    """Events that this reader will not get."""


class EndEvent(msgspec.Struct, frozen=True):
    """``end`` on ``/events``: the last event."""

    reason: str
    """``draining``: the proxy stops. ``failed``: see its log."""
