"""The seam to backends: how a request leaves and how its answer is pushed back.

A transport pushes: head, chunks and end are method calls on the Receiver in the same loop
iteration in which the bytes arrived. No transport imports the gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

import msgspec

from mcp_proxy.errors import UpstreamError
from mcp_proxy.wire import Fields


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A request towards one backend. The transport adds Content-Length (when there is a
    body or the method is POST) and Host; it owns everything hop-by-hop."""

    method: bytes
    target: bytes
    """Path and query on the backend."""
    headers: Fields
    """End-to-end headers only, lower-case names, no Host, no framing."""
    body: bytes
    session: bytes = b""
    """Session that the request belongs to, empty if none. Answers within one have much in common."""
    own: bytes = b""
    """Lines of this one request beside ``headers``, each with its CR LF."""
    stream: bool = False
    """Expected to stay open for long (GET stream, ``subscriptions/listen``)."""


class Receiver(Protocol):
    """Gets the answer. Legal order: ``on_whole`` | ``on_head`` ``on_body``* ``on_end``, or
    ``on_error`` once at any point. Nothing is called any more after ``Call.cancel``."""

    def on_whole(self, status: int, headers: Fields, body: bytes) -> None:
        """A response that arrived in one piece: ``on_head``, ``on_body`` unless it is empty, and
        ``on_end`` at once. The Call is over when this is called."""

    def on_head(self, status: int, headers: Fields, length: int | None) -> None:
        """Final response head (1xx never show up). ``headers`` are end-to-end only, without
        Content-Length; ``length`` is the validated Content-Length, 0 for bodyless answers,
        None when the length is unknown. The same block may be delivered again with another
        response: it must not be changed."""

    def on_body(self, chunk: bytes) -> None:
        """Body bytes without transfer coding, never empty, never more than framing allows."""

    def on_end(self) -> None:
        """The body is complete according to RFC 9112 section 6.3."""

    def on_error(self, error: UpstreamError) -> None: ...


class Call(Protocol):
    """One request in progress, as its owner sees it. Valid until ``on_end``, ``on_error``
    or ``cancel``; must be dropped then (a connection may already serve another owner)."""

    def pause(self) -> None:
        """Stop reading from the backend."""

    def resume(self) -> None: ...

    def cancel(self) -> None:
        """Close the backend's side at once (reset, not drain)."""


class Transport(Protocol):
    """Connections to one backend."""

    def send(self, outgoing: Outgoing, receiver: Receiver, *, fresh: bool = False) -> Call:
        """Start a request. Never raises and never blocks: failures reach ``on_error``, which
        is never called before ``send`` returned. ``fresh``: do not reuse an idle connection."""

    async def probe(self) -> bool | None:
        """Whether a connection can be opened now, within the connect timeout; None if that
        could not be found out (no descriptor, no name resolution). Sends nothing: SDK servers
        create a session for whatever they are asked. Never raises."""

    @property
    def open_connections(self) -> int: ...

    @property
    def is_idle(self) -> bool:
        """No call is in progress."""

    def sweep(self, at_s: float) -> None:
        """Fire due timeouts; a job for the Ticker. Costs next to nothing while nothing is open."""

    async def aclose(self) -> None:
        """Close idle connections and abort calls in progress. Idempotent."""


class Spawner(Protocol):
    """Owns the tasks that a transport needs (``tasks.Tasks``)."""

    def spawn(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...
