"""What the connections of one process share: limits, deadlines, the Date of this second.

Rules of this file: uvicorn builds a protocol object per connection from its own config only,
so the shared part travels on the application object, as its attribute ``http11``.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Hashable
from email.utils import formatdate
from typing import Any, Final, Protocol

from mcp_proxy.clock import Deadlines
from mcp_proxy.downstream.reader import RequestReader
from mcp_proxy.wire import Handler

KEEPALIVE_S: Final = 75.0
"""Idle time between requests. Longer than nginx keeps its upstream connections (60 s), so
that nginx closes first and never meets a connection that this side is closing."""

BODY_TIMEOUT_FACTOR: Final = 3
"""A body may take three times ``limits.head_timeout``: 4 MiB in 30 s is 140 KB/s."""

LINGER_S: Final = 2.0
"""How long a client may take to read an early answer."""

PARTING_S: Final = 1.0
"""How long an idle connection stays open when the proxy stops. A request may be on its way on it, and
a proxy in front that has sent a POST cannot send it elsewhere when the connection closes (RFC 9110
section 9.2.2). What comes is answered, with ``Connection: close``."""

LEAVE_S: Final = 5.0
"""How long a client may take nothing at all of its last answer."""

RESERVED_FDS: Final = 48
"""Descriptors for listeners, logs, the event loop, the registry and the admin listener."""

SHED_CONNECTIONS: Final = 16
"""Connections above the limit that are still accepted, only to be told 503."""


class Timed(Hashable, Protocol):
    """A connection, as its deadlines see it."""

    def expire_head(self) -> None: ...
    def expire_body(self) -> None: ...
    def expire_keepalive(self) -> None: ...
    def expire_linger(self) -> None: ...
    def expire_leave(self) -> None: ...
    def expire_parting(self) -> None: ...


class DoorSettings:
    """One per process. ``sweep`` is a job for the Ticker."""

    def __init__(
        self,
        handler: Handler,
        *,
        head_limit: int,
        fields_limit: int,
        head_timeout_s: float | None,
        connections_limit: int,
    ) -> None:
        self.handler = handler
        self.head_limit = head_limit
        self.fields_limit = fields_limit
        self.connections_limit = connections_limit
        self.connections = 0
        body_timeout_s = None if head_timeout_s is None else head_timeout_s * BODY_TIMEOUT_FACTOR
        self.head_due: Deadlines[Timed] = Deadlines(head_timeout_s, lambda timed: timed.expire_head())
        self.body_due: Deadlines[Timed] = Deadlines(body_timeout_s, lambda timed: timed.expire_body())
        self.keepalive_due: Deadlines[Timed] = Deadlines(KEEPALIVE_S, lambda timed: timed.expire_keepalive())
        self.leave_due: Deadlines[Timed] = Deadlines(LEAVE_S, lambda timed: timed.expire_leave())
        self.linger_due: Deadlines[Timed] = Deadlines(LINGER_S, lambda timed: timed.expire_linger())
        self.parting_due: Deadlines[Timed] = Deadlines(PARTING_S, lambda timed: timed.expire_parting())
        self.date_line = b""
        self._date_due_s = 0.0
        self._all_due = (
            self.head_due, self.body_due, self.keepalive_due, self.linger_due, self.leave_due,
            self.parting_due,
        )  # fmt: skip
        self.sweep(0.0)

    def sweep(self, at_s: float) -> None:
        self.leave_due.sweep(at_s)  # first: the others lead to it
        self.linger_due.sweep(at_s)
        self.parting_due.sweep(at_s)
        self.head_due.sweep(at_s)
        self.body_due.sweep(at_s)
        self.keepalive_due.sweep(at_s)
        if at_s >= self._date_due_s:
            self._date_due_s = at_s + 0.5
            self.date_line = b"date: %b\r\n" % formatdate(time.time(), usegmt=True).encode()

    def reader(self) -> RequestReader:
        """For a new connection."""
        return RequestReader(
            head_limit=self.head_limit, fields_limit=self.fields_limit, body_limit=self.handler.body_limit
        )

    def count_connection(self) -> int:
        """A connection was accepted; how many there are with it."""
        self.connections += 1
        return self.connections

    def forget(self, timed: Timed) -> None:
        self.connections -= 1
        for due in self._all_due:
            due.disarm(timed)


def raise_fd_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns what is in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):  # some containers report a hard limit that they refuse
            return soft
    return hard


def current_fd_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def connections_for(fd_limit: int) -> int:
    """Client connections that ``fd_limit`` allows: each may need one to a backend as well."""
    return max(8, (fd_limit - RESERVED_FDS - SHED_CONNECTIONS) // 2)


def settings_of(config: Any) -> DoorSettings:
    """The settings that belong to the application of a ``uvicorn.Config``."""
    if not config.loaded:
        config.load()
    app = config.loaded_app
    while app is not None:
        settings = getattr(app, "http11", None)
        if isinstance(settings, DoorSettings):
            return settings
        app = getattr(app, "app", None)  # uvicorn's own middleware, Starlette's
    raise TypeError("Http11Protocol serves applications made by mcp_proxy.asgi.create_app only")
