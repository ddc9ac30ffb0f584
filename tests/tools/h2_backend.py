"""A scripted HTTP/2 backend that records requests and resets.

Rules of this file: it writes what a test says, valid or not; it reads with the h2 library, so a
frame that breaks RFC 9113 ends the connection and is noted in ``violations``.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import cast

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from tests.tools import PATIENCE_S
from tests.tools.recording import Changes


class Stream:
    """One request as it arrived."""

    def __init__(self, number: int, headers: list[tuple[bytes, bytes]], conn: H2Conn) -> None:
        self.number = number
        self.headers = headers
        self.conn = conn
        self.body = b""
        self.is_complete = False
        self.reset: int | None = None
        """The error code that the peer reset it with."""

    async def head(self, *headers: tuple[bytes, bytes], status: bytes = b"200", end: bool = False) -> None:
        self.conn.h2.send_headers(self.number, [(b":status", status), *headers], end_stream=end)
        self.conn.flush()

    async def data(self, data: bytes, *, end: bool = False) -> None:
        """As fast as the peer's windows allow."""
        while data:
            await self.conn.changes.until(lambda: self._room() > 0 or self.reset is not None)
            if self.reset is not None:
                return
            piece, data = data[: self._room()], data[self._room() :]
            self.conn.h2.send_data(self.number, piece, end_stream=end and not data)
            self.conn.flush()

    def _room(self) -> int:
        h2 = self.conn.h2
        return min(h2.local_flow_control_window(self.number), h2.max_outbound_frame_size)

    async def answer(self, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        await self.head((b"content-length", b"%d" % len(body)), *headers)
        await self.data(body, end=True)


Handler = Callable[[Stream], Awaitable[None]]


class H2Conn(asyncio.Protocol):
    def __init__(self, backend: H2Backend) -> None:
        self._backend = backend
        self.changes = backend.changes
        self.transport: asyncio.Transport
        self.streams: dict[int, Stream] = {}
        self.is_lost = False
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=False, validate_outbound_headers=False, normalize_outbound_headers=False
            )
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._backend.connections.append(self)
        self.h2.initiate_connection()
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.changes.notify()

    def data_received(self, data: bytes) -> None:
        try:
            events = self.h2.receive_data(data)
        except h2.exceptions.ProtocolError as breach:
            self._backend.violations.append(repr(breach))
            events = []
        for event in events:
            self._happened(event)
        self.flush()
        self.changes.notify()

    def _happened(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            stream = Stream(event.stream_id, list(event.headers or []), self)
            self.streams[event.stream_id] = stream
            self._backend.streams.append(stream)
        elif isinstance(event, h2.events.DataReceived):
            self.streams[event.stream_id].body += event.data or b""
        elif isinstance(event, h2.events.StreamEnded):
            stream = self.streams[event.stream_id]
            stream.is_complete = True
            self._backend.spawn(self._backend.handler(stream))
        elif isinstance(event, h2.events.StreamReset):
            self.streams[event.stream_id].reset = int(event.error_code or 0)

    def flush(self) -> None:
        self.transport.write(self.h2.data_to_send())


class H2Backend:
    """``async with H2Backend(handler, context) as backend``. ``context`` offers ``h2`` by ALPN."""

    def __init__(self, handler: Handler, context: ssl.SSLContext) -> None:
        self.handler = handler
        self.violations: list[str] = []
        self.connections: list[H2Conn] = []
        self.streams: list[Stream] = []
        self.changes = Changes()
        self.port = 0
        self._context = context
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def until(self, condition: Callable[[], bool]) -> None:
        await self.changes.until(condition)

    async def __aenter__(self) -> H2Backend:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: H2Conn(self), "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for conn in self.connections:
            conn.transport.abort()
        async with asyncio.timeout(PATIENCE_S):
            await self._server.wait_closed()
