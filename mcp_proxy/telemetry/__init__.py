"""The seam to telemetry: one frozen record per exchange, sinks are plug-ins."""

from __future__ import annotations

from typing import Protocol

import msgspec

from mcp_proxy.errors import Fault, Phase
from mcp_proxy.telemetry.traces import Trace


class RequestRecord(msgspec.Struct, frozen=True, gc=False):
    """Everything worth knowing about one exchange, written when it has ended."""

    time_s: float
    """Wall clock (Unix seconds) at the end."""
    route: str
    """Route path, ``""`` when none matched."""
    pool: str
    backend: str
    """Backend id of the last attempt, ``""`` when none was chosen."""
    era: str
    """``legacy`` ``modern`` or ``""``."""
    http_method: str
    """``GET POST DELETE OPTIONS`` or ``other``."""
    method: str
    """JSON-RPC method as the client sent it, ``""`` if none. Unbounded: fold before using
    it as a label."""
    name: str
    """Tool, prompt or resource of the request; of a task 8 hex digits of a keyed hash; ``""`` if none."""
    kind: str
    """``request notification response batch`` or ``""``."""
    status: int
    """Status sent to the client; 0 if none was."""
    reason: str
    """Word of ``replies.TABLE`` when the proxy authored the answer, else ``""``."""
    session: str
    """8 hex digits of a keyed hash of the session id, ``""`` if none. Never the id."""
    peer: str
    """Client address, after trusted proxies; the TCP peer for refusals by a door."""
    duration_s: float
    """From the whole request to the last byte handed to the socket; 0 for refusals by a door."""
    upstream_s: float
    """Of that, the wait for backends: in each attempt from the request's first byte until there was nothing
    more to come, or until it was given up; 0 when nothing was sent. The rest is the proxy's own time."""
    bytes_in: int
    """Request body."""
    bytes_out: int
    """Response body handed to the door."""
    is_stream: bool
    """The answer was ``text/event-stream``."""
    attempts: int
    """Backends tried, 0 when answered locally."""
    ended_by: Fault
    phase: Phase
    request_id: str = ""
    """``X-Request-Id``, as every peer of the exchange was told it."""
    principal: str = ""
    """``Principal.digest`` of who asked, ``""`` for nobody in particular."""
    ttfb_s: float = 0.0
    """From the whole request until the head of the answer was handed to the socket; 0 if none was."""
    idle_s: float = 0.0
    """Of a stream: for how long nothing had been sent when it ended."""
    trace: Trace | None = None
    """Set when the exchange was sampled."""


class Sink(Protocol):
    """Receives every record once. Must not block. One that raises loses the record, and is counted."""

    def record(self, record: RequestRecord) -> None: ...


class Meters(Protocol):
    """Counts what is not an exchange of its own. Must not raise and must not block."""

    def lookup(self, store: str, result: str) -> None:
        """A session lookup: ``hit``, ``cold`` (found by asking the registry), ``miss`` or ``error``."""

    def store_error(self, operation: str) -> None:
        """The registry failed at ``get``, ``create`` or ``delete``."""

    def reinitialized(self, pool: str, result: str) -> None:
        """The session of a lost backend was to be made anew: ``done`` or ``failed``."""

    def upstream_failure(self, pool: str, phase: str) -> None:
        """An attempt failed: ``connect``, ``head`` or ``body``; retried or not."""

    def stream_opened(self, pool: str) -> None: ...

    def stream_closed(self, pool: str, reason: str) -> None:
        """``end`` (cleanly by the backend), ``client``, ``backend``, ``timeout``, ``drain`` or ``proxy``."""
