"""The hardened door: an HTTP/1.1 server protocol for uvicorn's ``http=`` hook.

Rules of this file: llhttp (httptools) decides what is valid; this file cuts the stream into
messages. A parser lives for one message and never sees a byte beyond it. Hence nothing can be
parsed as a new request that was sent as a body (``Upgrade``, RFC 9110 section 7.8), a
pipelined request never hides the end of the connection, and trailer fields are checked by the
parser and read by nobody. Every wait has a deadline and every size a limit. An answer given
before the request was read whole closes the connection.

A client repeats its heads, but for the number in Content-Length. A head that was accepted
once on a connection is accepted again if it has the same bytes, without being parsed again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from http import HTTPStatus
from typing import Any, Final, cast

import httptools

from mcp_proxy.chunked import ChunkedFeeder
from mcp_proxy.downstream.settings import SHED_CONNECTIONS, DoorSettings, settings_of
from mcp_proxy.headers import VALUE_LIMIT, parse_line
from mcp_proxy.repeat import RepeatedHead
from mcp_proxy.wire import Admission, Conversation, Fields, Headers, Rejection, Request

TARGET_LIMIT: Final = 8 * 1024
"""Request target. nginx and most CDNs stop there."""

PIPELINE_LIMIT: Final = 64 * 1024
"""Bytes accepted behind a request that is being answered. Reading never stops (that would
hide the client's disconnect), so the bound ends the connection instead."""

LINGER_LIMIT: Final = 64 * 1024
"""Bytes of an unwanted body that are read and dropped so that the client can read the answer
before the close (RFC 9112 section 9.6)."""

CHUNK_OVERHEAD: Final = 16 * 1024
"""Chunked framing may take as much as the body plus this: extensions and one-byte chunks
are a way to spend our time (CVE-2023-39326)."""


class State(Enum):
    HEAD = "head"
    """Between requests or inside a head."""
    BODY = "body"
    SERVING = "serving"
    """The request is whole and is being answered."""
    LINGERING = "lingering"
    """Answered early; the rest of the request is dropped, then the connection closes."""
    CLOSED = "closed"


class Http11Protocol(asyncio.Protocol):
    """One connection. Implements Reply for the request it is serving."""

    __slots__ = (
        "__weakref__", "_admission", "_body_bytes", "_chunked", "_connections", "_conversation", "_feeder",
        "_has_served", "_headers_done", "_is_draining", "_is_fresh", "_is_full", "_is_head", "_is_http10",
        "_is_surplus", "_keep_alive", "_left", "_must_close", "_parser", "_parts", "_peer", "_pending",
        "_raw", "_repeated", "_reply_chunked", "_scheme", "_seen", "_settings", "_state", "_transport",
        "_unsent", "_wire_bytes", "is_complete", "on_body",
    )  # fmt: skip

    def __init__(self, config: Any, server_state: Any, app_state: Any = None, _loop: Any = None) -> None:
        """Called by uvicorn: ``uvicorn.Config``, ``uvicorn.server.ServerState``."""
        # process
        self._settings: DoorSettings = settings_of(config)
        self._connections: set[Any] = server_state.connections
        # connection
        self._transport: asyncio.Transport
        self._peer = ""
        self._scheme = "http"
        self._state = State.HEAD
        self._is_fresh = True
        """Has answered since its keep-alive deadline was last looked at."""
        self._is_full = False
        """The client reads slower than it is written to."""
        self._is_draining = False
        self._unsent = 0
        """Bytes left to send when that was last looked at, once the connection is to be closed."""
        self._is_surplus = False
        """Accepted above the limit of connections, only to be told so."""
        self._must_close = False
        self._pending = b""
        # request
        self._raw = b""
        self._parts: list[bytes] = []
        self.on_body: Callable[[bytes], None] = self._parts.append
        """Called by the parser; a bound C method spares a Python frame per chunk."""
        self._headers_done = False
        self.is_complete = False
        self._keep_alive = False
        self._is_http10 = False
        self._chunked = False
        self._left = 0
        self._wire_bytes = 0
        self._body_bytes = 0
        self._feeder: ChunkedFeeder | None = None
        self._seen = 0
        self._is_head = False
        self._has_served = False
        self._admission: Admission | None = None
        self._parser: httptools.HttpRequestParser | None = None
        self._repeated: RepeatedHead[Admission] | None = None
        # response
        self._conversation: Conversation | None = None
        self._reply_chunked = False

    def __repr__(self) -> str:
        return f"<Http11Protocol {self._peer} {self._state.value}>"

    # --- asyncio.Protocol ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        peername = transport.get_extra_info("peername")
        if isinstance(peername, tuple):
            self._peer = peername[0]
        if transport.get_extra_info("sslcontext") is not None:
            self._scheme = "https"
        self._connections.add(self)
        connections = self._settings.count_connection()
        self._is_surplus = connections > self._settings.connections_limit
        if connections <= self._settings.connections_limit + SHED_CONNECTIONS:
            self._settings.head_due.arm(self)
            self._settings.keepalive_due.arm(self)
        else:
            self._state = State.CLOSED
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = State.CLOSED
        self._connections.discard(self)
        self._settings.forget(self)
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            conversation.disconnect()
        self._raw = self._pending = b""
        self._parser = self._feeder = self._repeated = None  # they refer back to this object

    def pause_writing(self) -> None:
        self._is_full = True
        if self._conversation is not None:
            self._conversation.pause()

    def resume_writing(self) -> None:
        self._is_full = False
        if self._conversation is not None:
            self._conversation.resume()

    def data_received(self, data: bytes) -> None:
        state = self._state
        try:
            if state is State.HEAD:
                if self._pending:
                    data, self._pending = self._pending + data, b""
                elif (
                    self._repeated is not None
                    and not self._raw
                    and self._serve_repeated(self._repeated, data)
                ):
                    return
                self._read(data)
            elif state is State.BODY:
                self._read(data)
            elif state is State.SERVING:
                self._pipeline(data)
            elif state is State.LINGERING:
                self._drop(data)
        except httptools.HttpParserError:
            self._refuse(Rejection("bad_request", "the request is not valid HTTP/1.1"))
        except _Refused as refused:
            self._refuse(refused.rejection, refused.request)

    def shutdown(self) -> None:
        """uvicorn stops: close when idle, finish what is in progress, end idle streams."""
        self._must_close = self._is_draining = True
        if self._state is State.HEAD and not self._raw:
            self._leave()
        elif self._conversation is not None:
            self._conversation.drain()

    # --- reading requests ------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        while data:
            if self._state is State.HEAD:
                data = self._read_head(data)
            elif self._state is State.BODY:
                data = self._read_body(data)
            elif self._state is State.SERVING:
                self._pipeline(data)
                return
            elif self._state is State.LINGERING:
                self._drop(data)
                return
            else:
                return
            if self.is_complete and self._state is State.BODY:
                self._serve()

    def _serve_repeated(self, repeated: RepeatedHead[Admission], data: bytes) -> bool:
        """Serve a request that came in one piece, its head as before. False: it is not one."""
        length = repeated.match(data)
        settings = self._settings
        if length <= 0 or length > settings.handler.body_limit:
            return False
        self._state = State.SERVING
        conversation = settings.handler.handle(repeated.value, data[-length:], self)
        if self._state is State.SERVING:
            self._begin_conversation(conversation)
        return True

    def _read_head(self, data: bytes) -> bytes:
        """Take a head from ``data``; returns what follows it."""
        known = len(self._raw)
        if not known and data[0] in b"\r\n":
            return data.lstrip(b"\r\n")  # RFC 9112 section 2.2: empty lines before a request
        raw = self._raw + data if known else data
        end = raw.find(b"\r\n\r\n", known - 3 if known > 3 else 0) + 4
        limit = self._settings.head_limit
        if end == 3 or end > limit:
            if len(raw) > limit or end > limit:
                reason = "head_too_large" if b"\r\n" in raw[: TARGET_LIMIT + 32] else "uri_too_long"
                raise _Refused(reason, f"the limit is {limit} bytes")
            self._feed_head(data, raw)  # refuses garbage now instead of at the deadline
            if self._headers_done:
                raise _Refused("bad_request", "the head has bare line ends")
            if not known and self._has_served:  # the first head's deadline runs from the accept
                self._settings.head_due.arm(self)
            self._raw = raw
            return b""
        self._raw = b""
        head = raw[:end]
        self._feed_head(raw[known:end] if known else head, head)
        if not self._headers_done:
            raise _Refused("bad_request", "the head is not complete")
        self._open(head)
        return raw[end:]

    def _feed_head(self, new: bytes, head: bytes) -> None:
        """Feed the ``new`` bytes of ``head``, which is all of it so far."""
        parser = self._parser
        if parser is None:
            self._parser = parser = httptools.HttpRequestParser(self)
            self._headers_done = self.is_complete = False
        try:
            parser.feed_data(new)
        except httptools.HttpParserUpgrade:
            if head.startswith(b"CONNECT "):
                raise _Refused("method_not_allowed", "this is not a forward proxy") from None
            # The parser would stop here and leave the body to be read as another request.
            # The upgrade is declined (RFC 9110 section 7.8 lets a server ignore it) by
            # parsing the head again without it. Java clients send ``Upgrade: h2c`` always.
            self._parser = parser = httptools.HttpRequestParser(self)
            self._headers_done = self.is_complete = False
            parser.feed_data(_without_upgrade(head))

    def _open(self, head: bytes) -> None:
        """The head is valid: read its fields, ask the gateway, get ready for the body."""
        lines = head[:-4].split(b"\r\n")
        request_line = lines[0].split(b" ")
        if len(request_line) != 3:
            raise _Refused("bad_request", "the request line must be method, target and version")
        method, target, version = request_line
        if version != b"HTTP/1.1" and version != b"HTTP/1.0":
            raise _Refused("http_version", "use HTTP/1.1")
        self._is_http10 = version == b"HTTP/1.0"
        self._is_head = method == b"HEAD"
        if len(lines) - 1 > self._settings.fields_limit:
            raise _Refused("head_too_large", f"the limit is {self._settings.fields_limit} header fields")
        headers, length, expects = self._read_fields(lines[1:])
        if len(head) > VALUE_LIMIT:
            _check_values(headers)
        if target[:1] != b"/":
            target = _origin_form(target, headers)
        if len(target) > TARGET_LIMIT:
            raise _Refused("uri_too_long", f"the limit is {TARGET_LIMIT} bytes")
        request = Request(method, target, headers, self._peer, self._scheme)
        self._begin_body(request, head, length, expects)

    def _read_fields(self, lines: list[bytes]) -> tuple[Headers, int, bool]:
        """Fields, Content-Length, and whether 100-continue is expected; notes ``_chunked``."""
        headers: Headers = []
        length = 0
        self._chunked = False
        expects = False
        for line in lines:
            pair = parse_line(line)
            headers.append(pair)
            name, value = pair
            if name in _FRAMING:
                if name == b"content-length":
                    length = int(value)
                elif name == b"transfer-encoding":
                    self._check_coding(value)
                elif value.lower() == b"100-continue":
                    expects = True
                else:
                    raise _Refused("expectation_failed", "only 100-continue is understood")
        return headers, length, expects

    def _check_coding(self, value: bytes) -> None:
        """RFC 9112 section 6.1: a coding that is not understood is 501; HTTP/1.0 has none."""
        if self._is_http10 or self._chunked or value.lower() != b"chunked":
            raise _Refused("not_implemented", "only the transfer coding chunked is understood")
        self._chunked = True

    def _begin_body(self, request: Request, head: bytes, length: int, expects: bool) -> None:
        settings = self._settings
        self._state = State.BODY
        self._left = length
        self._wire_bytes = self._body_bytes = self._seen = 0
        has_body = length > 0 or self._chunked
        if has_body and request.method != b"POST":
            raise _Refused("bad_request", "only POST has a body here", request)
        admission = settings.handler.admit(request)
        if isinstance(admission, Rejection):
            raise _Refused(admission.reason, request=request, rejection=admission)
        if length > settings.handler.body_limit:
            raise _Refused("body_too_large", f"the limit is {settings.handler.body_limit} bytes", request)
        if self._is_surplus:
            raise _Refused("overloaded", "too many connections", request)
        self._admission = admission
        if self._chunked and self._parser is not None:
            self._feeder = ChunkedFeeder(self._parser, self)
        else:
            self._parser = None
        if not has_body:
            self._serve()
            return
        settings.body_due.arm(self)
        if expects:
            if not self._is_http10:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif length and not self._closes():
            self._repeated = RepeatedHead.of(head, admission)

    def _read_body(self, data: bytes) -> bytes:
        """Take body bytes from ``data``; returns what is behind the request."""
        if self._chunked:
            return self._read_chunked(data)
        left = self._left
        rest = b""
        if len(data) >= left:
            data, rest = data[:left], data[left:]
            self.is_complete = True
        self._left = left - len(data)
        self._parts.append(data)
        return rest

    def _read_chunked(self, data: bytes) -> bytes:
        assert self._feeder is not None
        rest = self._feeder.feed(data)
        parts = self._parts
        self._body_bytes += sum(map(len, parts[self._seen :]))
        self._seen = len(parts)
        self._wire_bytes += len(data) - len(rest)
        if self._body_bytes > self._settings.handler.body_limit:
            raise _Refused("body_too_large", f"the limit is {self._settings.handler.body_limit} bytes")
        if self._wire_bytes > 2 * self._body_bytes + CHUNK_OVERHEAD:
            raise _Refused("bad_request", "the chunked framing is larger than the body")
        return rest

    def _serve(self) -> None:
        """The request is whole."""
        self._state = State.SERVING
        self.is_complete = self._headers_done = False
        self._parser = self._feeder = None
        self._has_served = True
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        admission, self._admission = self._admission, None
        assert admission is not None
        conversation = self._settings.handler.handle(admission, body, self)
        if self._state is State.SERVING:
            self._begin_conversation(conversation)

    def _begin_conversation(self, conversation: Conversation) -> None:
        """The request is being served. Tell it what happened before."""
        self._conversation = conversation
        if self._is_full:
            conversation.pause()
        if self._is_draining:
            conversation.drain()

    def _pipeline(self, data: bytes) -> None:
        """Keep the next requests, unparsed, until it is their turn (RFC 9112 section 9.3.2)."""
        self._pending += data
        if len(self._pending) > PIPELINE_LIMIT:
            self._state = State.CLOSED
            self._transport.abort()

    def _resume(self) -> None:
        if self._pending and self._state is State.HEAD:
            data, self._pending = self._pending, b""
            self.data_received(data)

    def _drop(self, data: bytes) -> None:
        self._wire_bytes += len(data)
        if self._wire_bytes > LINGER_LIMIT:
            self._state = State.CLOSED
            self._transport.abort()

    def _refuse(self, rejection: Rejection, request: Request | None = None) -> None:
        """Answer before the request is whole. What follows on the wire is not a request."""
        self._must_close = True
        if request is None:
            admission = self._admission
            request = (
                Request(b"", b"", [], self._peer, self._scheme) if admission is None else admission.request
            )
        self._settings.handler.refuse(request, rejection, self)

    # --- httptools callbacks ---------------------------------------------------------

    def on_headers_complete(self) -> None:
        self._headers_done = True
        assert self._parser is not None
        self._keep_alive = self._parser.should_keep_alive()

    def on_message_complete(self) -> None:
        self.is_complete = True

    # --- Reply -----------------------------------------------------------------------

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        if status in _BODYLESS:
            self._transport.write(self._build_head(status, headers, b"", b""))
        else:
            framing = b"content-length: " + str(len(body)).encode() + b"\r\n"
            self._transport.write(self._build_head(status, headers, framing, b"" if self._is_head else body))
        self._finish()

    def start(self, status: int, headers: Headers, length: int | None) -> None:
        self._reply_chunked = length is None and not self._is_http10 and status not in _BODYLESS
        self._repeated = None  # a stream may stay for hours, and this memory with it
        if status in _BODYLESS:
            framing = b""
        elif length is not None:
            framing = b"content-length: %d\r\n" % length
        elif self._reply_chunked:
            framing = b"transfer-encoding: chunked\r\n"
        else:
            framing = b""  # HTTP/1.0: the close ends the body
        self._transport.write(self._build_head(status, headers, framing, b""))

    def write(self, chunk: bytes) -> None:
        if self._reply_chunked:
            self._transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        else:
            self._transport.write(chunk)

    def end(self) -> None:
        if self._reply_chunked:
            self._transport.write(b"0\r\n\r\n")
        self._finish()

    def abort(self) -> None:
        self._state = State.CLOSED
        self._conversation = None
        if self._is_http10 and not self._reply_chunked:
            self._transport.abort()  # a clean close would look like the end of the body
        else:
            self._leave()  # what was sent arrives, the framing shows the loss

    def _build_head(self, status: int, headers: Headers, framing: bytes, body: bytes) -> bytes:
        fields = headers if type(headers) is Fields else Fields(headers)
        block = fields.block
        date = b"" if fields.has_date else self._settings.date_line
        end = b"connection: close\r\n\r\n" if self._closes() else b"\r\n"
        return b"".join((STATUS_LINES[status], block, date, framing, end, body))

    def _closes(self) -> bool:
        return self._must_close or not self._keep_alive or self._is_http10

    def _finish(self) -> None:
        """The answer is complete: next request, or close."""
        self._conversation = None
        if self._closes():
            self._part()
            return
        self._state = State.HEAD
        self._is_fresh = True
        if self._pending:
            asyncio.get_running_loop().call_soon(self._resume)

    def _part(self) -> None:
        """Close, so that the client can still read the answer."""
        if self._state is State.SERVING and not self._pending:
            self._leave()
        else:
            # RFC 9112 section 9.6: closing with unread bytes would reset the connection and
            # could destroy the answer before the client has read it.
            self._settings.linger_due.arm(self)
            self._state = State.LINGERING
            self._wire_bytes = 0
            self._pending = b""
            if self._transport.can_write_eof():  # not with TLS: the client reads Connection: close
                self._transport.write_eof()

    def _leave(self) -> None:
        """Close when everything has been sent; a request that comes now is not run."""
        self._state = State.CLOSED
        self._transport.close()
        self._unsent = self._transport.get_write_buffer_size()
        self._settings.linger_due.arm(self)

    # --- deadlines: each looks whether it still applies ------------------------------

    def expire_head(self) -> None:
        """``limits.head_timeout`` after accept, or after the first byte of a later head."""
        if self._state is State.HEAD:
            if self._raw:
                self._refuse(Rejection("request_timeout", "the request head took too long"))
            elif not self._has_served:
                self._leave()

    def expire_body(self) -> None:
        if self._state is State.BODY:
            self._refuse(Rejection("request_timeout", "the request body took too long"))

    def expire_keepalive(self) -> None:
        # Not re-armed at every answer: a dictionary move per request would buy a precision that
        # nobody needs. An idle connection is closed after one to two times the delay.
        if self._state is State.HEAD and not self._raw and not self._is_fresh:
            self._leave()
        else:
            self._is_fresh = False
            self._settings.keepalive_due.arm(self)

    def expire_linger(self) -> None:
        unsent = self._transport.get_write_buffer_size()
        if 0 < unsent < self._unsent:  # slow, but reading
            self._unsent = unsent
            self._settings.linger_due.arm(self)
        else:
            self._transport.abort()


_BODYLESS: Final = frozenset((204, 304))

_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding", b"expect"))


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


STATUS_LINES: Final = {status: _status_line(status) for status in range(200, 600)}


class _Refused(Exception):
    """The request is answered here and now, and the connection closes."""

    def __init__(
        self,
        reason: str,
        detail: str = "",
        request: Request | None = None,
        *,
        rejection: Rejection | None = None,
    ) -> None:
        super().__init__(reason)
        self.rejection = rejection or Rejection(reason, detail)
        self.request = request


def _without_upgrade(head: bytes) -> bytes:
    """The head with Upgrade, HTTP2-Settings and Connection removed; ``close`` is kept."""
    lines = head[:-4].split(b"\r\n")
    kept = lines[:1]
    closes = False
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name == b"connection":
            closes = closes or b"close" in {token.strip() for token in value.lower().split(b",")}
        elif name not in _UPGRADE_FIELDS:
            kept.append(line)
    if closes:
        kept.append(b"connection: close")
    return b"\r\n".join(kept) + b"\r\n\r\n"


_UPGRADE_FIELDS: Final = frozenset((b"upgrade", b"http2-settings"))


def _origin_form(target: bytes, headers: Headers) -> bytes:
    """Absolute-form (RFC 9112 section 3.2.2) is accepted if it names the very Host."""
    scheme, mark, rest = target.partition(b"://")
    if mark and scheme.lower() in (b"http", b"https"):
        authority, slash, path = rest.partition(b"/")
        hosts = [value for name, value in headers if name == b"host"]
        if slash and hosts == [authority]:
            return b"/" + path
    raise _Refused("bad_request", "the request target must be a path on this host")


def _check_values(headers: Headers) -> None:
    if any(len(value) > VALUE_LIMIT for _, value in headers):
        raise _Refused("head_too_large", f"a header value is longer than {VALUE_LIMIT} bytes")
