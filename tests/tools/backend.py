"""A scripted backend that records every byte it is sent and answers exactly as a test says.

Rules of this file: it reads as strictly as RFC 9112 allows and notes each breach in
``violations``, because a proxy must not write what a strict server refuses. A test takes the
requests it expected with ``take``; whatever is left is a request that nobody expected.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType

from tests.tools.http1 import Malformed, parse_head
from tests.tools.recording import Changes, Conn, Seen

Handler = Callable[[Seen, Conn], Awaitable[None]]


class Backend:
    """``async with Backend(handler) as backend``. ``handler`` may be replaced at any time."""

    def __init__(self, handler: Handler, *, receive_buffer: int | None = None) -> None:
        self.handler = handler
        self.violations: list[str] = []
        self.connections: list[Conn] = []
        self.port = 0
        self._receive_buffer = receive_buffer
        self._requests: list[Seen] = []
        self._changes = Changes()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    @property
    def open_connections(self) -> list[Conn]:
        return [conn for conn in self.connections if not conn.closed_by and not conn.is_closed]

    @property
    def busy(self) -> list[Conn]:
        """Connections with a request in progress."""
        return [conn for conn in self.open_connections if conn.is_busy]

    def take(self) -> list[Seen]:
        """Requests since the last call."""
        taken, self._requests = self._requests, []
        return taken

    def take_one(self) -> Seen:
        """The only request since the last call."""
        (request,) = self.take()
        return request

    async def arrived(self, count: int = 1) -> list[Seen]:
        """Wait until ``count`` heads have arrived since the last ``take``; does not take them."""
        await self.until(lambda: len(self._requests) >= count)
        return self._requests[:]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that an accepted connection, a byte, FIN or RST makes true."""
        await self._changes.until(condition)

    # -- listening -----------------------------------------------------------------------------

    def listen(self) -> None:
        """Accept connections, on the same port as before."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._receive_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(4096)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener))

    async def refuse(self) -> None:
        """New connections are refused; those that exist stay."""
        if self._listener is not None and self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
            self._listener.close()
            self._listener = None

    async def down(self) -> None:
        """As if the process was killed: refuse, and reset every connection."""
        await self.refuse()
        await self._end_tasks()
        for conn in self.open_connections:
            conn.reset()

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Backend:
        self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()
        await self._end_tasks()
        for conn in self.connections:
            conn.close()

    # -- one connection ------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            conn = Conn(sock, len(self.connections), self._changes)
            self.connections.append(conn)
            self._spawn(self._read(conn))
            self._changes.notify()

    async def _read(self, conn: Conn) -> None:
        request: Seen | None = None
        buffer = b""
        try:
            while data := await self._next_bytes(conn):
                buffer += data
                while buffer:
                    if request is None or request.is_complete:
                        head, end, rest = buffer.partition(b"\r\n\r\n")
                        if not end:
                            break
                        request, buffer = self._begin(conn, head + end), rest
                    buffer = request.feed(buffer)
                self._changes.notify()
                await asyncio.sleep(0)  # a handler may stop the reading here
            conn.closed_by = "fin"
        except ConnectionError:
            conn.closed_by = "" if conn.is_closed else "rst"
        except Malformed as breach:
            self.violations.append(str(breach))
            conn.reset()
        self._left(conn)

    async def _next_bytes(self, conn: Conn) -> bytes:
        await conn.reading.wait()
        return b"" if conn.is_closed else await conn.receive()

    def _begin(self, conn: Conn, raw: bytes) -> Seen:
        request = Seen(parse_head(raw), conn)
        self._requests.append(request)
        if conn.is_busy and conn.bytes_sent == 0:
            self.violations.append("a request behind one that has no answer yet")
        conn.requests += 1
        conn.bytes_sent = 0
        conn.handler = self._spawn(self._handle(request, conn, conn.handler))
        return request

    async def _handle(self, request: Seen, conn: Conn, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await asyncio.wait([previous])
        try:
            await self.handler(request, conn)
        except ConnectionError:
            pass  # The peer left first; `closed_by` says how.
        except Exception as error:  # A handler's mistake belongs into the test's report.
            if not conn.is_closed:
                self.violations.append(f"the handler failed: {error!r}")
                conn.reset()
        self._changes.notify()
        if conn.closed_by:
            conn.close()

    def _left(self, conn: Conn) -> None:
        """The peer sent FIN or RST. Its requests' handlers may still want to write."""
        self._changes.notify()
        if not conn.is_busy:
            conn.close()
