"""The bundled load test: what is to be done (Plan), to whom (Target), and what is known of it (Facts).

Rules of this package: what decides and counts is pure, what talks is blocking code over a socket, and only
``generator`` and ``locustfile`` know locust and gevent. The command starts ``python -m mcp_proxy.load`` for
the load itself, so that nothing is patched in its own process. This file holds records only.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import msgspec

CLASSES = ("session", "modern", "stream", "reconnect", "abuse")
"""The kinds of users, in the order of the reports."""


class LoadError(Exception):
    """The load test cannot start. The text is a sentence for the terminal."""


class Target(msgspec.Struct, frozen=True):
    """Where requests go, taken apart once."""

    scheme: str
    host: str
    port: int
    path: str
    """With the query, as it stands in the request line."""

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def target(url: str) -> Target:
    """A URL as people write it; without a path it means ``/mcp``. Raises ValueError with a sentence."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no URL of an MCP server; write http://host:port/mcp")
    if parts.username is not None:
        raise ValueError("credentials do not belong into a URL; use --header 'Authorization: ...'")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"{url!r} has characters that a request line cannot have")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise ValueError(f"{url!r} has no valid port") from None
    path = parts.path if parts.path not in ("", "/") or parts.query else "/mcp"
    query = f"?{parts.query}" if parts.query else ""
    return Target(parts.scheme, parts.hostname, port, (path or "/") + query)


class Tool(msgspec.Struct, frozen=True):
    """A tool that may be called again and again, and how it answered when it was tried."""

    name: str
    arguments: dict[str, Any] = {}
    events: int | None = None
    """Notifications before the answer, if that many are certain."""


class Facts(msgspec.Struct):
    """What the probe found out about a server."""

    legacy: str | None = None
    """The handshake revision that was negotiated; None: no ``initialize``."""
    modern: bool = False
    sessions: bool = False
    """``initialize`` names a session."""
    get_stream: bool = False
    get_ids: bool = False
    """Events of the GET stream carry ids, so it can be resumed."""
    answer_ids: bool = False
    """Events of an SSE answer carry ids, so it can be resumed."""
    listen: bool = False
    """``subscriptions/listen`` opens a stream."""
    lists_tools: bool = False
    tool: Tool | None = None
    stream_tool: Tool | None = None
    """One that is answered by an event stream with events before the answer."""
    is_proxy: bool = False
    """mcp-proxy answers: its refusals are known exactly."""
    abuses: list[str] = []
    """Names of those that the server refuses, or ought to."""
    notes: list[str] = []
    """What is left out and why, one sentence each."""

    def serves(self, kind: str) -> bool:
        """Whether users of this kind have anything to do here."""
        if kind == "session":
            return self.legacy is not None
        if kind == "modern":
            return self.modern
        if kind == "stream":
            return self.get_stream or self.listen
        if kind == "reconnect":
            return self.sessions and (self.get_ids or self.answer_ids)
        return bool(self.abuses)


class Plan(msgspec.Struct):
    """One run of the generator."""

    target: Target
    shape: str
    time_s: float
    users: int
    mix: dict[str, float]
    """Weight by kind of user; those without weight are not there."""
    facts: Facts
    counts: dict[str, int] | None = None
    """Users of each kind, where their number never changes; weights then mean nothing."""
    headers: list[tuple[str, str]] = []
    pace: float | None = 10.0
    """Turns a second and user; None: as fast as answers come."""
    hold_s: float = 10.0
    """How long a stream holder keeps one stream."""
    timeout_s: float = 30.0
    """Without its answer for so long a request has failed."""
    patience_s: float = 30.0
    """For so long in all a user obeys ``Retry-After`` for one request."""
    seed: int = 1
    warm_up_s: float = 0.0
    """At first, times are not counted."""
    holds_on: bool = False
    """The load goes on after ``time_s`` until it is released."""
    locust_html: str | None = None
    """File for locust's own report."""
    verify: bool = True
    """Server certificates are verified."""
