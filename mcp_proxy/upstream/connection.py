"""One HTTP/1.1 connection to a backend.

Rules of this file: llhttp (httptools) decides what is valid and decodes bodies; this file
decides where one response ends and whether the connection may carry another. The parser is
fed the bytes of one response and never more, so nothing behind it can be mistaken for part
of it. Header fields are read from the very bytes that the parser accepted; trailer fields
are accepted by the parser and read by nobody. What is not certainly right is an error
(RFC 9112 section 6.3); a connection that saw one is never used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol, cast

import httptools

from mcp_proxy.errors import Phase, UpstreamError
from mcp_proxy.headers import HeaderError, read_response
from mcp_proxy.upstream import Outgoing, Receiver
from mcp_proxy.wire import Headers

HEAD_LIMIT: Final = 64 * 1024
"""Response head. Twice what is accepted from clients; nginx's default is 4 to 8 KiB."""

INTERIM_LIMIT: Final = 8
"""1xx responses swallowed before the final one (RFC 9110 section 15.2 puts no bound)."""

COPY_LIMIT: Final = 64 * 1024
"""Bodies up to this are joined with the head into one write; above, copying costs more."""


class State(Enum):
    IDLE = "idle"
    HEAD = "head"
    """Request written, response head not complete."""
    BODY = "body"
    CLOSED = "closed"


class Owner(Protocol):
    """The pool, as its connections see it."""

    def released(self, connection: Connection) -> None:
        """The response is complete and the connection may carry another request."""

    def gone(self, connection: Connection) -> None:
        """The connection is closed. Called exactly once."""

    def progressed(self, connection: Connection) -> None:
        """The head or bytes of the body arrived. Called only if a timeout is configured."""


class Connection(asyncio.Protocol):
    """Implements Call for the request it carries; one request at a time."""

    __slots__ = (
        "_chunked", "_complete", "_begun", "_head_done", "_host", "_interim", "_keep_alive", "_left", "_owner",
        "_parser", "_paused", "_parts", "_raw", "_receiver", "_reused", "_state", "_surplus", "_transport", "_watched",
        "on_body", "__weakref__",
    )  # fmt: skip

    def __init__(self, owner: Owner, host: bytes, *, watched: bool) -> None:
        """``host``: value of the Host header. ``watched``: report every read to the owner."""
        # connection
        self._owner = owner
        self._host = host
        self._watched = watched
        self._state = State.IDLE
        self._transport: asyncio.Transport
        self._reused = False
        self._paused = False
        # response
        self._receiver: Receiver | None = None
        self._raw = b""
        self._parts: list[bytes] = []
        self.on_body: Callable[[bytes], None] = self._parts.append  # called by the parser, without a Python frame
        self._begun = False
        self._head_done = False
        self._complete = False
        self._surplus = False
        self._keep_alive = False
        self._chunked = False
        self._left: int | None = 0
        self._interim = 0
        self._parser = httptools.HttpResponseParser(self)

    def __repr__(self) -> str:
        return f"<Connection to {self._host.decode()} {self._state.value}{' reused' if self._reused else ''}>"

    # --- the pool's side -------------------------------------------------------------

    @property
    def is_paused(self) -> bool:
        return self._paused

    @property
    def is_usable(self) -> bool:
        return self._state is State.IDLE and not self._transport.is_closing()

    def send(self, outgoing: Outgoing, receiver: Receiver) -> None:
        """Write a request. The connection must be usable."""
        self._state = State.HEAD
        self._receiver = receiver
        body = outgoing.body
        parts = [outgoing.method, b" ", outgoing.target, b" HTTP/1.1\r\nhost: ", self._host, b"\r\n"]
        for name, value in outgoing.headers:
            parts += (name, b": ", value, b"\r\n")
        if body or outgoing.method == b"POST":
            parts.append(b"content-length: %d\r\n\r\n" % len(body))
        else:
            parts.append(b"\r\n")
        if len(body) <= COPY_LIMIT:
            parts.append(body)
            self._transport.write(b"".join(parts))
        else:
            self._transport.write(b"".join(parts))
            self._transport.write(body)

    def close(self) -> None:
        """Let go of an idle connection."""
        self._transport.close()

    def fail(self, kind: str, detail: str) -> None:
        """End the request in progress with an error and the connection with it."""
        receiver, self._receiver = self._receiver, None
        error = self._error(kind, detail)
        self._state = State.CLOSED
        self._transport.abort()
        if receiver is not None:
            receiver.on_error(error)

    def _error(self, kind: str, detail: str) -> UpstreamError:
        phase = Phase.BODY if self._state is State.BODY else Phase.HEAD
        stale = self._reused and kind == "lost" and not self._begun
        return UpstreamError(phase, kind, detail, sent=True, stale=stale)

    # --- Call: the request's owner ---------------------------------------------------

    def pause(self) -> None:
        if self._state is not State.CLOSED and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if self._state is not State.CLOSED:
                self._transport.resume_reading()

    def cancel(self) -> None:
        self._receiver = None
        self._state = State.CLOSED
        self._transport.abort()  # not close(): unsent request bytes must not go out any more

    # --- asyncio.Protocol ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def connection_lost(self, exc: Exception | None) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            if self._state is State.BODY and self._left is None and not self._chunked and exc is None:
                self._state = State.CLOSED
                receiver.on_end()  # close-delimited, RFC 9112 section 6.3 rule 8
            else:
                how = "closed" if exc is None else "reset"
                error = self._error("invalid" if self._raw else "lost", f"the backend {how} the connection")
                self._state = State.CLOSED
                receiver.on_error(error)
        self._state = State.CLOSED
        self._owner.gone(self)

    def data_received(self, data: bytes) -> None:
        try:
            while data and self._receiver is not None:
                data = self._read_head(data) if self._state is State.HEAD else self._read_body(data)
        except httptools.HttpParserError as error:
            self.fail("invalid", f"the response is not valid HTTP/1.1: {error}")
        except (HeaderError, _Invalid) as error:
            self.fail("invalid", str(error))
        else:
            if data and self._state is State.IDLE:
                # Bytes that belong to no request: a late or a smuggled response.
                self._state = State.CLOSED
                self._transport.abort()
            elif self._watched and self._state is State.BODY:
                self._owner.progressed(self)

    # --- reading one response --------------------------------------------------------

    def _read_head(self, data: bytes) -> bytes:
        """Take the head from ``data``; returns what follows it."""
        known = len(self._raw)
        raw = self._raw + data if known else data
        end = raw.find(b"\r\n\r\n", known - 3 if known > 3 else 0) + 4
        if end == 3 or end > HEAD_LIMIT:
            if len(raw) > HEAD_LIMIT:
                raise _Invalid("the response head is larger than 64 KiB")
            self._feed(data)  # refuses garbage now instead of waiting for its end
            if self._head_done:
                raise _Invalid("the response head has bare line ends")
            self._raw = raw
            return b""
        rest = raw[end:]
        self._feed(raw[known:end])
        if not self._head_done:
            raise _Invalid("the response head is incomplete")
        self._raw = b""
        self._head_done = False
        status = self._parser.get_status_code()
        if status < 200:
            self._swallow_interim(status)
            return rest
        headers = self._read_fields(raw[: end - 4], status)
        self._surplus = self._complete and bool(rest)
        self._deliver_head(status, headers)
        return b"" if self._surplus else rest

    def _swallow_interim(self, status: int) -> None:
        """1xx: not forwarded, ASGI has no way to. 101 was never asked for."""
        self._interim += 1
        if status < 100 or status == 101 or self._interim > INTERIM_LIMIT:
            raise _Invalid(f"unexpected interim response {status}")
        self._complete = False
        self._begun = False

    def _read_fields(self, raw: bytes, status: int) -> Headers:
        """The header fields of a head that the parser accepted."""
        lines = raw.split(b"\r\n")
        if not lines[0].startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")) or status > 599:
            raise _Invalid("the status line has an unknown version or status")
        headers: Headers = []
        self._chunked = False
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            name = name.lower()
            value = value.strip()
            if name == b"transfer-encoding":
                # llhttp accepts codings before and after chunked and leaves them undecoded
                if value.lower() != b"chunked" or self._chunked or lines[0][7] != 0x31:
                    raise _Invalid("the response has a Transfer-Encoding other than chunked")
                self._chunked = True
            headers.append((name, value))
        return headers

    def _deliver_head(self, status: int, headers: Headers) -> None:
        forward, length = read_response(headers)
        if status in _BODYLESS:
            length = 0
        elif self._chunked:
            if length is not None:
                raise _Invalid("the response has both Content-Length and Transfer-Encoding")
        self._left = length
        self._state = State.BODY
        receiver = self._receiver
        assert receiver is not None
        receiver.on_head(status, forward, length)
        if self._complete and self._receiver is not None:
            self._finish()

    def _read_body(self, data: bytes) -> bytes:
        """Take body bytes from ``data``; returns what is behind the response."""
        rest = b""
        left = self._left
        if left is not None:
            if len(data) > left:
                data, rest = data[:left], data[left:]
            self._left = left - len(data)
        if self._chunked:
            self._feed_chunked(data)
        else:
            self._feed(data)
        parts = self._parts
        if parts:
            chunk = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            receiver = self._receiver
            assert receiver is not None
            receiver.on_body(chunk)
        if self._complete and self._receiver is not None:
            self._surplus = self._surplus or bool(rest)
            self._finish()
        return b""

    def _feed_chunked(self, data: bytes) -> None:
        """Feed chunked data; whatever follows the last chunk is surplus and is not looked at."""
        try:
            self._feed(data)
        except httptools.HttpParserError:
            if not self._complete:
                raise
            self._surplus = True

    def _feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def _finish(self) -> None:
        """The response is complete: hand over, then decide about reuse."""
        receiver, self._receiver = self._receiver, None
        self.resume()
        reusable = self._keep_alive and not self._surplus and not self._transport.get_write_buffer_size()
        if reusable:
            self._state = State.IDLE
            self._reused = True
            self._complete = self._begun = False
            self._interim = 0
        else:
            self._state = State.CLOSED
            self._transport.close()
        assert receiver is not None
        receiver.on_end()
        if reusable and self._state is State.IDLE:
            self._owner.released(self)

    # --- httptools callbacks ---------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            # A second response behind the first. Stop here, before any of it is decoded.
            self._surplus = True
            raise _Invalid("surplus bytes behind the response")
        self._begun = True

    def on_headers_complete(self) -> None:
        self._head_done = True

    def on_message_complete(self) -> None:
        self._complete = True
        self._keep_alive = self._parser.should_keep_alive()


_BODYLESS: Final = frozenset((204, 304))


class _Invalid(Exception):
    """The response breaks a rule that the parser does not enforce."""
