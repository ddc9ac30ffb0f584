"""The HTTP side of the bundled server: requests in, answers out, on one loop.

Rules of this file: what is wrong with a request as HTTP is answered here, the rest goes to a handler. Small
and fast before complete: the stub must not be what is measured. Connections are kept; a request that is
pipelined behind another waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from email.utils import formatdate
from typing import Final, Protocol, cast

import httptools

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
"""As the official Python SDK has it."""

_PHRASES: Final = {200: "OK", 202: "Accepted", 204: "No Content", 400: "Bad Request", 403: "Forbidden"}


class Request:
    """One request, whole."""

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.headers: dict[str, str] = {}
        self.body = b""


class Handler(Protocol):
    """Answers by ``exchange.answer`` or ``exchange.begin_stream``."""

    def __call__(self, request: Request, exchange: Exchange) -> None: ...


class Exchange(asyncio.Protocol):
    """One connection, and the request on it that is being answered."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._transport: asyncio.Transport | None = None
        self._waiting: list[Request] = []
        self._is_busy = False
        self._size = 0
        self._begin()
        self.on_gone: Callable[[], None] | None = None
        """Called once when the client goes while a stream is open."""

    def _begin(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._request = Request()

    # --- from the loop -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports only look like asyncio's
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        gone, self.on_gone = self.on_gone, None
        if gone is not None:
            gone()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.answer(400, b"bad request", "text/plain", close=True)

    # --- from the parser -----------------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        self._request.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= MAX_BODY_BYTES:
            self._request.body += data

    def on_message_complete(self) -> None:
        request, self._request = self._request, Request()
        size, self._size = self._size, 0
        request.method = self._parser.get_method().decode("latin-1")
        if size > MAX_BODY_BYTES:
            self.answer(413, b"too large", "text/plain")
            return
        self._waiting.append(request)
        self._next()

    def _next(self) -> None:
        if self._waiting and not self._is_busy:
            self._is_busy = True
            self._handler(self._waiting.pop(0), self)

    # --- to the client -------------------------------------------------------------------------

    def answer(
        self,
        status: int,
        body: bytes = b"",
        kind: str = "application/json",
        *fields: str,
        close: bool = False,
    ) -> None:
        """All of it at once. ``fields`` are header lines."""
        lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, 'Error')}", f"date: {formatdate(usegmt=True)}"]
        lines += [*fields, f"content-length: {len(body)}"]
        lines += [f"content-type: {kind}"] if body else []
        lines += ["connection: close"] if close else []
        self._write("\r\n".join([*lines, "\r\n"]).encode("latin-1") + body)
        if close and self._transport is not None:
            self._transport.close()
        self._is_busy = False
        self._next()

    def begin_stream(self, *fields: str) -> None:
        """The head of an event stream."""
        lines = ["HTTP/1.1 200 OK", f"date: {formatdate(usegmt=True)}", *fields]
        lines += ["content-type: text/event-stream", "cache-control: no-cache, no-transform"]
        lines += ["x-accel-buffering: no", "transfer-encoding: chunked", "\r\n"]
        self._write("\r\n".join(lines).encode("latin-1"))

    def send(self, data: bytes) -> None:
        """A piece of the stream, as one chunk."""
        self._write(b"%x\r\n%b\r\n" % (len(data), data))

    def end_stream(self) -> None:
        self.on_gone = None
        self._write(b"0\r\n\r\n")
        self._is_busy = False
        self._next()

    def cut(self) -> None:
        """Break off, as a crash would."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def is_gone(self) -> bool:
        return self._transport is None

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)
