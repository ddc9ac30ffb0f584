"""One HTTP/1.1 connection to a backend.

Rules of this file: llhttp (httptools) decides what is valid and decodes chunked bodies; this
file decides where one response ends and whether the connection may carry another. A parser
lives for one response and is fed the bytes of that response and never more, so nothing behind
it can be mistaken for part of it. Header fields are read from the very bytes that the parser
accepted; trailer fields are accepted by the parser and read by nobody. What is not certainly
right is an error (RFC 9112 section 6.3); a connection that saw one is never used again.

A backend repeats its heads, but for the number in Content-Length, at least within a session. A
head that was accepted once is accepted again if it has the same bytes, without being parsed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol, cast

import httptools

from mcp_proxy.chunked import ChunkedFeeder
from mcp_proxy.errors import Phase, UpstreamError
from mcp_proxy.headers import HeaderError, parse_line, read_response
from mcp_proxy.repeat import RepeatedHead
from mcp_proxy.sockets import keep_alive
from mcp_proxy.upstream import Outgoing, Receiver
from mcp_proxy.wire import Fields, Headers

HEAD_LIMIT: Final = 64 * 1024
"""Response head. Twice what is accepted from clients; nginx's default is 4 to 8 KiB."""

INTERIM_LIMIT: Final = 8
"""1xx responses swallowed before the final one (RFC 9110 section 15.2 puts no bound)."""

KNOWN_HEAD: Final = 4 * 1024
"""Size of a head that is remembered; a thousand may be."""

COPY_LIMIT: Final = 64 * 1024
"""Bodies up to this are joined with the head into one write; above, copying costs more."""


class State(Enum):
    IDLE = "idle"
    HEAD = "head"
    """Request written, response head not complete."""
    BODY = "body"
    CLOSED = "closed"


Known = RepeatedHead[tuple[int, Fields]]
"""A response head that was accepted: its status and the headers to pass on."""


class Owner(Protocol):
    """The pool, as its connections see it."""

    def recall(self, session: bytes) -> Known | None:
        """The head that came last within a session."""

    def remember(self, session: bytes, known: Known) -> None: ...

    def released(self, connection: Connection) -> None:
        """The response is complete and the connection may carry another request."""

    def gone(self, connection: Connection) -> None:
        """The connection is closed. Called exactly once."""

    def progressed(self, connection: Connection) -> None:
        """The head or bytes of the body arrived. Called only if a timeout is configured."""


class Connection(asyncio.Protocol):
    """Implements Call for the request it carries; one request at a time."""

    __slots__ = (
        "__weakref__", "_begun", "_chunked", "_feeder", "_head_done", "_host", "_interim", "_keep_alive",
        "_left", "_owner", "_parser", "_parts", "_paused", "_raw", "_receiver", "_repeated", "_reused",
        "_session", "_state", "_surplus", "_transport", "_watched", "is_complete", "on_body",
    )  # fmt: skip

    def __init__(self, owner: Owner, host: bytes, *, watched: bool) -> None:
        """``host``: value of the Host header. ``watched``: report progress to the owner."""
        # connection
        self._owner = owner
        self._host = host
        self._watched = watched
        self._state = State.IDLE
        self._transport: asyncio.Transport
        self._reused = False
        self._paused = False
        self._repeated: Known | None = None
        self._session = b""
        # response
        self._receiver: Receiver | None = None
        self._begun = False
        """A byte of the response has arrived."""
        self._raw = b""
        self._parser: httptools.HttpResponseParser | None = None
        self._feeder: ChunkedFeeder | None = None
        self._parts: list[bytes] = []
        self.on_body: Callable[[bytes], None] = self._parts.append
        """Called by the parser; a bound C method spares a Python frame per chunk."""
        self._head_done = False
        self.is_complete = False
        self._surplus = False
        self._keep_alive = False
        self._chunked = False
        self._left: int | None = 0
        """Bytes of the body to come; None when chunked or delimited by the close."""
        self._interim = 0

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
        body, headers = outgoing.body, outgoing.headers
        self._session = outgoing.session
        self._repeated = self._owner.recall(outgoing.session)
        framing: tuple[bytes, ...] = (b"\r\n",)
        if body or outgoing.method == b"POST":
            framing = (b"content-length: ", str(len(body)).encode(), b"\r\n\r\n")
        head = (
            outgoing.method,
            b" ",
            outgoing.target,
            b" HTTP/1.1\r\nhost: ",
            self._host,
            b"\r\n",
            headers.block,
            outgoing.own,
        )
        if len(body) <= COPY_LIMIT:
            self._transport.write(b"".join((*head, *framing, body)))
        else:
            self._transport.write(b"".join((*head, *framing)))
            self._transport.write(body)

    def close(self) -> None:
        """Let go of an idle connection."""
        self._transport.close()

    def fail(self, kind: str, detail: str) -> None:
        """End the request in progress, if any, with an error and the connection with it."""
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
        sock = transport.get_extra_info("socket")
        if sock is not None:
            keep_alive(sock)

    def connection_lost(self, exc: Exception | None) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            if self._state is State.BODY and self._left is None and not self._chunked and exc is None:
                self._state = State.CLOSED
                receiver.on_end()  # close-delimited, RFC 9112 section 6.3 rule 8
            else:
                how = "closed" if exc is None else "reset"
                error = self._error("lost", f"the backend {how} the connection")
                self._state = State.CLOSED
                receiver.on_error(error)
        self._state = State.CLOSED
        self._parser = self._feeder = self._repeated = None  # the parser refers back
        self._owner.gone(self)

    def data_received(self, data: bytes) -> None:
        repeated = self._repeated
        if repeated is not None and not self._begun and self._state is State.HEAD:
            length = repeated.match(data)
            if length >= 0:
                self._deliver_whole(repeated, data, length)
                return
        self._begun = True
        try:
            while data and self._receiver is not None:
                data = self._read_head(data) if self._state is State.HEAD else self._read_body(data)
        except httptools.HttpParserError as error:
            self.fail("invalid", f"the response is not valid HTTP/1.1: {error}")
        except httptools.HttpParserUpgrade:
            self.fail("invalid", "the backend switched protocols, which nobody asked for")
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

    def _deliver_whole(self, repeated: Known, data: bytes, length: int) -> None:
        """A response that came in one piece, its head as before."""
        receiver, self._receiver = self._receiver, None
        assert receiver is not None
        self._keep_alive = True
        self._settle()
        status, fields = repeated.value
        receiver.on_whole(status, fields, data[-length:] if length else b"")
        if self._state is State.IDLE:
            self._owner.released(self)

    def _read_head(self, data: bytes) -> bytes:
        """Take the head from ``data``; returns what follows it."""
        known = len(self._raw)
        raw = self._raw + data if known else data
        end = raw.find(b"\r\n\r\n", known - 3 if known > 3 else 0) + 4
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
            self._head_done = False
        if end == 3 or end > HEAD_LIMIT:
            if len(raw) > HEAD_LIMIT:
                raise _Invalid(f"the response head is larger than {HEAD_LIMIT} bytes")
            self._parser.feed_data(data)  # refuses garbage now instead of waiting for its end
            if self._head_done:
                raise _Invalid("the response head has bare line ends")
            self._raw = raw
            return b""
        self._parser.feed_data(raw[known:end])
        if not self._head_done:
            raise _Invalid("the response head is incomplete")
        self._raw = b""
        rest = raw[end:]
        status = self._parser.get_status_code()
        if status < 200:
            self._swallow_interim(status)
        else:
            self._deliver_head(status, raw[:end], rest)
        return b"" if self._surplus else rest

    def _swallow_interim(self, status: int) -> None:
        """1xx: not forwarded, ASGI has no way to. 101 was never asked for."""
        self._interim += 1
        if status < 100 or status == 101 or self._interim > INTERIM_LIMIT:
            raise _Invalid(f"unexpected interim response {status}")
        self._parser = None

    def _deliver_head(self, status: int, head: bytes, rest: bytes) -> None:
        if status > 599 or not head.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")):
            raise _Invalid("the status line has an unknown version or status")
        forward, length = read_response(self._read_fields(head))
        if status in _BODYLESS:
            # A body that is announced may come all the same (uvicorn sends one): it would be
            # taken for the next response.
            self._keep_alive = self._keep_alive and not length and not self._chunked
            self._chunked = False
            length = 0
        elif self._chunked and length is not None:
            raise _Invalid("the response has both Content-Length and Transfer-Encoding")
        elif length is not None and self._keep_alive:
            repeated = RepeatedHead.of(head, (status, forward)) if len(head) <= KNOWN_HEAD else None
            if repeated is not None:
                self._owner.remember(self._session, repeated)
        if not self._chunked:
            self._parser = None
        elif self._parser is not None:
            self._feeder = ChunkedFeeder(self._parser, self)
            self._repeated = None  # a stream may stay for hours, and this memory with it
        self._left = length
        self.is_complete = length == 0
        self._surplus = self.is_complete and bool(rest)
        self._state = State.BODY
        receiver = self._receiver
        assert receiver is not None
        receiver.on_head(status, forward, length)
        if self.is_complete and self._receiver is receiver:
            self._finish()

    def _read_fields(self, head: bytes) -> Headers:
        """The header fields of a head that the parser accepted; notes ``_chunked``."""
        self._chunked = False
        headers: Headers = []
        for line in head[:-4].split(b"\r\n")[1:]:
            pair = parse_line(line)
            headers.append(pair)
            name, value = pair
            if name == b"transfer-encoding":
                # llhttp accepts codings before and after chunked and leaves them undecoded
                if value.lower() != b"chunked" or self._chunked or head[7] != _VERSION_11:
                    raise _Invalid("the response has a Transfer-Encoding other than chunked")
                self._chunked = True
        return headers

    def _read_body(self, data: bytes) -> bytes:
        """Take body bytes from ``data``; returns what is behind the response."""
        left = self._left
        if self._chunked:
            data = self._decode(data)
        elif left is not None:
            if len(data) >= left:
                self.is_complete = True
                self._surplus = len(data) > left
                data = data[:left]
            self._left = left - len(data)
        receiver = self._receiver
        assert receiver is not None
        if data:
            receiver.on_body(data)
        if self.is_complete and self._receiver is receiver:
            self._finish()
        return b""

    def _decode(self, data: bytes) -> bytes:
        """Body bytes of chunked ``data``."""
        assert self._feeder is not None
        self._surplus = bool(self._feeder.feed(data))
        parts = self._parts
        if not parts:
            return b""
        chunk = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        return chunk

    def _finish(self) -> None:
        """The response is complete: hand over, then decide about reuse."""
        receiver, self._receiver = self._receiver, None
        self._settle()
        assert receiver is not None
        receiver.on_end()
        if self._state is State.IDLE:
            self._owner.released(self)

    def _settle(self) -> None:
        """Get ready for the next request, or close."""
        if self._paused:
            self.resume()
        if self._keep_alive and not self._surplus and not self._transport.get_write_buffer_size():
            self._state = State.IDLE
            self._reused = True
            self.is_complete = self._begun = self._chunked = False
            self._interim = 0
            self._parser = self._feeder = None
        else:
            # Not close(): that would go on sending the rest of a request that was answered early.
            self._state = State.CLOSED
            self._transport.abort()

    # --- httptools callbacks ---------------------------------------------------------

    def on_headers_complete(self) -> None:
        self._head_done = True
        assert self._parser is not None
        self._keep_alive = self._parser.should_keep_alive()

    def on_message_complete(self) -> None:
        if self._chunked:
            self.is_complete = True


_BODYLESS: Final = frozenset((204, 304))

_VERSION_11: Final = ord("1")


class _Invalid(Exception):
    """The response breaks a rule that the parser does not enforce."""
