"""What the connections of one process share: limits, deadlines, the Date of this second.

Rules of this file: uvicorn builds a protocol object per connection from its own config only,
so the shared part travels on the application object, as its attribute ``http11``.
"""

from __future__ import annotations

import ipaddress
import resource
import time
from collections.abc import Hashable, Sequence
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Final, Protocol

import msgspec

from mcp_proxy.clock import Deadlines
from mcp_proxy.downstream.known import KNOWN_BYTES, KnownHeads
from mcp_proxy.downstream.reader import RequestReader
from mcp_proxy.downstream.stagger import Stagger
from mcp_proxy.forwarding import Network, plain_address
from mcp_proxy.quotas import share_of
from mcp_proxy.wire import Admission, Handler, Rejection

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

DRAIN_S: Final = 30.0
"""Default of ``limits.drain``."""

STAGGER_SHARE: Final = 3
"""Streams end in the first third of the grace: what is left of it is for the rest of their events and
for those that come late."""

STAGGER_S: Final = 10.0
"""Longer would spare nobody: of 10,000 clients 1,000 come back in a second then."""

LEAVE_S: Final = 5.0
"""How long a client may take nothing at all of its last answer."""

RESERVED_FDS: Final = 48
"""Descriptors for listeners, logs, the event loop, the registry and the admin listener."""

SHED_CONNECTIONS: Final = 64
"""Connections above the limit that are still accepted, only to be told 503: so many clients may come at
once before one is reset, which SDK clients take for a crash."""

SHED_OF_ONE: Final = 16
"""The same for the connections of one client above its limit, and 429."""

LINGER_LIMIT: Final = 64 * 1024
"""Bytes of an unwanted body that are read and dropped so that the client can read the answer
before the close (RFC 9112 section 9.6)."""

NO_ROOM: Final = Rejection("overloaded", "too many connections")
"""There are too many even to be told so."""

_TOO_MANY: Final = Rejection("overloaded", "too many connections")
_TOO_MANY_OF_ONE: Final = Rejection("too_many_requests", "limits.per_client.connections is reached")


OWN_BYTES: Final = 4 * 1024
"""Of heads that a connection remembers for itself: those of a few methods and tools."""

TRUST_LIMIT: Final = 4096
"""Addresses of which is remembered whether they are trusted proxies."""


class Timed(Hashable, Protocol):
    """A connection, as its deadlines see it."""

    def expire_head(self) -> None: ...
    def expire_body(self) -> None: ...
    def expire_keepalive(self) -> None: ...
    def expire_linger(self) -> None: ...
    def expire_leave(self) -> None: ...
    def expire_parting(self) -> None: ...
    def expire_grace(self) -> None: ...
    def drain_conversation(self) -> None: ...


class DoorLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the configuration says of connections; may change while they are open."""

    head: int
    """Bytes."""
    fields: int
    head_timeout_s: float | None
    client_connections: int | None = None
    """How many one address may have."""
    trusted_proxies: Sequence[Network] = ()
    """Connections of these carry everybody's requests, and there may be any number of them."""
    drain_s: float = DRAIN_S


class DoorSettings:
    """One per process. ``sweep`` is a job for the Ticker."""

    def __init__(self, handler: Handler, limits: DoorLimits, *, connections_limit: int) -> None:
        self.handler = handler
        self.is_draining = False
        """The process is to end: answers say that their connections close."""
        self.connections_limit = connections_limit
        self.connections = 0
        self.heads: KnownHeads[Admission] = KnownHeads(KNOWN_BYTES)
        """Of the clients that trusted proxies mix over their connections."""
        self._by_client: dict[str, int] = {}
        """Of all peers that have any, so that limits and proxies may change at any time."""
        self.head_due: Deadlines[Timed] = Deadlines(None, lambda timed: timed.expire_head())
        self.body_due: Deadlines[Timed] = Deadlines(None, lambda timed: timed.expire_body())
        self.keepalive_due: Deadlines[Timed] = Deadlines(KEEPALIVE_S, lambda timed: timed.expire_keepalive())
        self.leave_due: Deadlines[Timed] = Deadlines(LEAVE_S, lambda timed: timed.expire_leave())
        self.linger_due: Deadlines[Timed] = Deadlines(LINGER_S, lambda timed: timed.expire_linger())
        self.parting_due: Deadlines[Timed] = Deadlines(PARTING_S, lambda timed: timed.expire_parting())
        self.grace_due: Deadlines[Timed] = Deadlines(None, lambda timed: timed.expire_grace())
        self.drains: Stagger[Timed] = Stagger(0.0, lambda timed: timed.drain_conversation())
        self.date_line = b""
        self._date_due_s = 0.0
        self._all_due = (
            self.head_due, self.body_due, self.keepalive_due, self.linger_due, self.leave_due,
            self.parting_due, self.grace_due,
        )  # fmt: skip
        self.follow(limits)
        self.sweep(0.0)

    def follow(self, limits: DoorLimits) -> None:
        """From now on: sizes for new connections, times for what begins now, shorter ones for all."""
        self.limits = limits
        self._is_trusted = lru_cache(maxsize=TRUST_LIMIT)(self._judge)
        head_s = limits.head_timeout_s
        self.head_due.follow(head_s)
        self.body_due.follow(None if head_s is None else head_s * BODY_TIMEOUT_FACTOR)
        self.grace_due.follow(limits.drain_s)
        self.drains.window_s = min(limits.drain_s / STAGGER_SHARE, STAGGER_S)

    def sweep(self, at_s: float) -> None:
        self.leave_due.sweep(at_s)  # first: the others lead to it
        self.linger_due.sweep(at_s)
        self.parting_due.sweep(at_s)
        self.drains.sweep(at_s)
        self.grace_due.sweep(at_s)
        self.head_due.sweep(at_s)
        self.body_due.sweep(at_s)
        self.keepalive_due.sweep(at_s)
        if at_s >= self._date_due_s:
            self._date_due_s = at_s + 0.5
            self.date_line = b"date: %b\r\n" % formatdate(time.time(), usegmt=True).encode()

    def reader(self) -> RequestReader:
        """For a new connection."""
        return RequestReader(
            head_limit=self.limits.head, fields_limit=self.limits.fields, body_limit=self.handler.body_limit
        )

    def count_connection(self, peer: str) -> Rejection | None:
        """A connection from ``peer`` was accepted. What its first request is to be told, None to serve
        it, ``NO_ROOM`` to abort it; ``forget`` follows in any case."""
        self.connections += 1
        client = share_of(peer)
        count = self._by_client[client] = self._by_client.get(client, 0) + 1
        surplus = self.connections - self.connections_limit
        if surplus > 0:
            return _TOO_MANY if surplus <= SHED_CONNECTIONS else NO_ROOM
        if self.limits.client_connections is None or count <= self.limits.client_connections:
            return None
        if not client or self._is_trusted(peer):
            return None
        return _TOO_MANY_OF_ONE if count <= self.limits.client_connections + SHED_OF_ONE else NO_ROOM

    def forget(self, timed: Timed, peer: str) -> None:
        self.connections -= 1
        client = share_of(peer)
        count = self._by_client.pop(client) - 1
        if count:
            self._by_client[client] = count
        for due in self._all_due:
            due.disarm(timed)
        self.drains.discard(timed)

    def heads_for(self, peer: str) -> KnownHeads[Admission]:
        """Where a connection remembers heads. What only one client can send is forgotten with its connection,
        and it cannot push out what others have."""
        return self.heads if peer and self._is_trusted(peer) else KnownHeads(OWN_BYTES)

    def linger_limit(self, peer: str) -> int:
        """Bytes of an unwanted body that are dropped. nginx sends all of a body before it reads the answer,
        and makes 502 of one that it could not read: what it took from its client is taken from it."""
        return self.handler.body_limit + LINGER_LIMIT if peer and self._is_trusted(peer) else LINGER_LIMIT

    def _judge(self, peer: str) -> bool:
        address = ipaddress.ip_address(plain_address(peer))
        return any(address in network for network in self.limits.trusted_proxies)


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
