"""The hardened door: an HTTP/1.1 server protocol for uvicorn's ``http=`` hook.

Rules of this file: what is a request is decided by ``reader.py``; this file serves one request
at a time and answers it. A pipelined request never hides the end of the connection. Every wait
has a deadline and every buffer a limit. An answer given before the request was read whole closes
the connection, in a way that lets the client read it.

A client repeats its heads, but for the number in Content-Length. A head that was accepted
once on a connection is accepted again if it has the same bytes, without being parsed again. One
that differs in its trace or number, or comes from a proxy that mixes its clients, is looked up.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from http import HTTPStatus
from typing import Any, Final, cast

import httptools

from mcp_proxy.downstream.known import KnownHeads, Shape
from mcp_proxy.downstream.reader import Head, Refused
from mcp_proxy.downstream.settings import LINGER_LIMIT, NO_ROOM, DoorSettings, settings_of
from mcp_proxy.repeat import RepeatedHead
from mcp_proxy.sockets import unsent_bytes
from mcp_proxy.wire import Admission, Conversation, Fields, Headers, Rejection, Request

PIPELINE_LIMIT: Final = 64 * 1024
"""Bytes accepted behind a request that is being answered. Reading never stops (that would
hide the client's disconnect), so the bound ends the connection instead."""


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
        "__weakref__", "_admission", "_connections", "_conversation", "_dropped", "_has_served",
        "_heads", "_is_draining", "_is_fresh", "_is_full", "_is_head", "_is_http10", "_keep_alive",
        "_must_close", "_peer", "_pending", "_reader", "_repeated", "_reply_chunked", "_says_close",
        "_scheme", "_settings", "_shape", "_state", "_surplus", "_transport", "_unsent", "own",
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
        self._surplus: Rejection | None = None
        """Accepted above a limit of connections, only to be told this."""
        self._must_close = False
        self._pending = b""
        # request
        self._reader = self._settings.reader()
        self._is_head = False
        self._is_http10 = False
        self._keep_alive = False
        self._has_served = False
        self._dropped = 0
        """Bytes of an unwanted body."""
        self._admission: Admission | None = None
        self._repeated: RepeatedHead[Admission] | None = None
        self._shape: Shape | None = None
        self._heads: KnownHeads[Admission] | None = None
        """Those of all connections, if a trusted proxy is at the other end."""
        # response
        self._conversation: Conversation | None = None
        self.own = b""
        self._reply_chunked = False
        self._says_close = False
        """The head of the last answer had ``Connection: close``."""

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
        self._surplus = self._settings.count_connection(self._peer)
        if self._surplus is not NO_ROOM:
            self._settings.head_due.arm(self)
            self._settings.keepalive_due.arm(self)
        else:
            self._state = State.CLOSED
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = State.CLOSED
        self._connections.discard(self)
        self._settings.forget(self, self._peer)
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            conversation.disconnect()
        self._pending = b""
        self._repeated = self._shape = self._heads = None
        self._reader.clear()

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
                elif self._reader.is_empty and (
                    (self._repeated is not None and self._serve_repeated(self._repeated, data))
                    or (self._shape is not None and self._serve_known(self._shape, data))
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
        except Refused as refused:
            self._refuse(refused.rejection, refused.request)

    def shutdown(self) -> None:
        """uvicorn stops: finish what is in progress, end idle streams one after the other, close when
        idle for a moment. Bounded by ``limits.drain``: uvicorn by itself would wait for ever."""
        if self._is_draining:
            return
        self._must_close = self._is_draining = True
        settings = self._settings
        settings.grace_due.arm(self)
        if self._state is State.HEAD and self._reader.is_empty:
            settings.parting_due.arm(self)
        elif self._conversation is not None:
            settings.drains.add(self)

    # --- reading requests ------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        reader = self._reader
        while data:
            if self._state is State.HEAD:
                data = self._read_head(data)
            elif self._state is State.BODY:
                data = reader.read_body(data)
            elif self._state is State.SERVING:
                self._pipeline(data)
                return
            elif self._state is State.LINGERING:
                self._drop(data)
                return
            else:
                return
            if reader.is_complete and self._state is State.BODY:
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

    def _serve_known(self, shape: Shape, data: bytes) -> bool:
        """Serve a request that came in one piece, its head known but for values that vary."""
        cut = shape.cut(data)
        heads, settings = self._heads, self._settings
        if cut is None or heads is None or cut.end > settings.limits.head:
            return False
        admission = heads.get(cut.key)
        if admission is None or len(data) - cut.end != cut.length:
            return False
        if not 0 < cut.length <= settings.handler.body_limit:
            return False
        if cut.values:
            admission = settings.handler.vary(admission, cut.values)
        self._state = State.SERVING
        conversation = settings.handler.handle(admission, data[cut.end :], self)
        heads.remember(cut.key, admission)  # with what serving has built
        if self._state is State.SERVING:
            self._begin_conversation(conversation)
        return True

    def _learn(self, raw: bytes, admission: Admission) -> None:
        """A head that may come again, with a body."""
        if self._heads is None:
            self._heads = self._settings.heads_for(self._peer)
        shape = Shape.of(raw, b"%b %b\n" % (self._scheme.encode(), self._peer.encode()))
        cut = None if shape is None else shape.cut(raw)
        if cut is not None:
            self._shape = shape
            self._heads.remember(cut.key, admission)
        self._repeated = None if cut is not None and cut.values else RepeatedHead.of(raw, admission)

    def _read_head(self, data: bytes) -> bytes:
        """Take a head from ``data``; returns what follows it."""
        reader = self._reader
        was_empty = reader.is_empty
        head, rest = reader.read_head(data)
        if head is not None:
            self._admit(head)
        elif was_empty and not reader.is_empty and self._has_served:
            self._settings.head_due.arm(self)  # that of the first head runs from the accept
        return rest

    def _admit(self, head: Head) -> None:
        """Ask the gateway, get ready for the body."""
        settings = self._settings
        self._state = State.BODY
        self._is_head = head.method == b"HEAD"
        self._is_http10 = head.is_http10
        self._keep_alive = head.keep_alive
        request = Request(head.method, head.target, head.headers, self._peer, self._scheme)
        if head.has_body and head.method != b"POST":
            raise Refused(Rejection("bad_request", "only POST has a body here"), request)
        admission = settings.handler.admit(request)
        if isinstance(admission, Rejection):
            raise Refused(admission, request)
        limit = settings.handler.body_limit
        if head.length > limit:
            raise Refused(Rejection("body_too_large", f"the limit is {limit} bytes"), request)
        if self._surplus is not None:
            raise Refused(self._surplus, request)
        self._admission = admission
        if not head.has_body:
            self._serve()
            return
        settings.body_due.arm(self)
        if head.expects and not head.is_http10:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif not head.expects and head.length and not self._closes():
            self._learn(head.raw, admission)

    def _serve(self) -> None:
        """The request is whole."""
        self._state = State.SERVING
        self._has_served = True
        body = self._reader.take_body()
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
            self._settings.drains.add(self)

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
        self._dropped += len(data)
        if self._dropped > LINGER_LIMIT and self._dropped > self._settings.linger_limit(self._peer):
            self._state = State.CLOSED
            self._transport.abort()

    def _refuse(self, rejection: Rejection, request: Request | None = None) -> None:
        """Answer before the request is whole. What follows on the wire is not a request."""
        self._must_close = True
        self._reader.clear()
        if request is None:
            admission = self._admission
            request = (
                Request(b"", b"", [], self._peer, self._scheme) if admission is None else admission.request
            )
        self._settings.handler.refuse(request, rejection, self)

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
        if self._heads is not self._settings.heads:
            self._heads = None
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
        self._says_close = self._closes()
        end = b"connection: close\r\n\r\n" if self._says_close else b"\r\n"
        return b"".join((STATUS_LINES[status], block, self.own, date, framing, end, body))

    def _closes(self) -> bool:
        # While the process drains everything is served, and clients and the pools of proxies in
        # front move elsewhere, one answer after the other.
        return self._must_close or not self._keep_alive or self._settings.is_draining

    def _finish(self) -> None:
        """The answer is complete: next request, or close."""
        self._conversation = None
        if self._says_close or (self._must_close and self._pending):
            self._part()
            return
        if self._must_close:
            # The drain began behind the head of this answer, which did not say that the connection
            # closes: the next request may be on its way.
            self._settings.parting_due.arm(self)
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
            self._dropped = 0
            self._pending = b""
            if self._transport.can_write_eof():  # not with TLS: the client reads Connection: close
                self._transport.write_eof()

    def _leave(self) -> None:
        """Close when everything has been sent; a request that comes now is not run."""
        self._state = State.CLOSED
        self._transport.close()
        self._unsent = unsent_bytes(self._transport)
        self._settings.leave_due.arm(self)

    # --- deadlines: each looks whether it still applies ------------------------------

    def expire_head(self) -> None:
        """``limits.head_timeout`` after accept, or after the first byte of a later head."""
        if self._state is State.HEAD:
            if not self._reader.is_empty:
                self._refuse(Rejection("request_timeout", "the request head took too long"))
            elif not self._has_served:
                self._leave()

    def expire_body(self) -> None:
        if self._state is State.BODY:
            self._refuse(Rejection("request_timeout", "the request body took too long"))

    def drain_conversation(self) -> None:
        """It is this connection's turn to end its stream."""
        if self._conversation is not None:
            self._conversation.drain()

    def expire_grace(self) -> None:
        """``limits.drain`` after ``shutdown``."""
        if self._conversation is not None:
            self._conversation.expire()
        elif self._state is State.HEAD or self._state is State.BODY:
            self._leave()

    def expire_parting(self) -> None:
        if self._state is State.HEAD and self._reader.is_empty:
            self._leave()

    def expire_keepalive(self) -> None:
        # Not re-armed at every answer: a dictionary move per request would buy a precision that
        # nobody needs. An idle connection is closed after one to two times the delay.
        if self._state is State.HEAD and self._reader.is_empty and not self._is_fresh:
            self._leave()
        else:
            self._is_fresh = False
            self._settings.keepalive_due.arm(self)

    def expire_linger(self) -> None:
        if self._state is State.LINGERING and unsent_bytes(self._transport):
            self._leave()  # it has not got all of the answer yet
        else:
            self._transport.abort()

    def expire_leave(self) -> None:
        unsent = unsent_bytes(self._transport)
        if 0 < unsent < self._unsent:  # slow, but reading
            self._unsent = unsent
            self._settings.leave_due.arm(self)
        else:
            self._transport.abort()


_BODYLESS: Final = frozenset((204, 304))


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


STATUS_LINES: Final = {status: _status_line(status) for status in range(200, 600)}
