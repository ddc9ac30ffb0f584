"""What a scripted backend knows of one connection and of one request on it.

Rules of this file: nothing is interpreted beyond framing, and framing as strictly as
``http1.py`` reads it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from tests.tools import PATIENCE_S
from tests.tools.http1 import Body, Head, Malformed, chunk, request_length
from tests.tools.wire import Wire


class Changes:
    """Wakes whoever waits for a condition over recorded facts."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds. Raises TimeoutError after the usual patience."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await self._next.wait()


class Seen:
    """One request as it arrived."""

    def __init__(self, head: Head, conn: Conn) -> None:
        self.head = head
        self.conn = conn
        self.method, self.target, self.version = head.start
        self.headers = head.headers
        self._body = Body(request_length(head))

    @property
    def raw(self) -> bytes:
        """The head as received."""
        return self.head.raw

    @property
    def body(self) -> bytes:
        """What has arrived of the body, without transfer coding."""
        return bytes(self._body.content)

    @property
    def is_complete(self) -> bool:
        return self._body.done

    def feed(self, data: bytes) -> bytes:
        """Returns what does not belong to this request."""
        self._body.feed(data)
        surplus, self._body.surplus = self._body.surplus, b""
        if self._body.trailers:
            raise Malformed("trailer fields in a request")
        return surplus

    async def whole(self) -> bytes:
        """The complete body. Raises ConnectionError when the peer leaves before its end."""
        await self.conn.until(lambda: self.is_complete or bool(self.conn.closed_by))
        if not self.is_complete:
            raise ConnectionResetError("the peer left in the middle of its request")
        return self.body

    def __repr__(self) -> str:
        return f"<Seen {self.method.decode()} {self.target.decode()} on connection {self.conn.number}>"


class Conn(Wire):
    """One connection from the peer. A handler writes raw bytes with ``send``."""

    def __init__(self, sock: socket.socket, number: int, changes: Changes) -> None:
        super().__init__(sock)
        self.number = number
        self.closed_by = ""
        """How the *peer* ended it: ``fin``, ``rst`` or not yet."""
        self.requests = 0
        self.bytes_sent = 0
        self.handler: asyncio.Task[None] | None = None
        self._changes = changes
        self.reading = asyncio.Event()
        """Cleared by a handler: stop taking bytes from the kernel."""
        self.reading.set()

    async def send(self, data: bytes) -> None:
        self.bytes_sent += len(data)
        await super().send(data)
        self.wake()

    async def answer(self, status: int, headers: list[tuple[str, str]], body: bytes = b"") -> None:
        """A whole answer with Content-Length, in one write."""
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers)
        await self.send(f"HTTP/1.1 {status} X\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async def stream_head(self, extra: str = "", status: int = 200) -> None:
        """Head of a chunked event stream."""
        await self.send(
            f"HTTP/1.1 {status} OK\r\nContent-Type: text/event-stream\r\n{extra}"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )

    async def send_chunk(self, data: bytes) -> None:
        await self.send(chunk(data))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that an arriving byte or FIN or RST makes true."""
        await self._changes.until(condition)

    def wake(self) -> None:
        """Have every ``until`` look again."""
        self._changes.notify()

    async def gone(self) -> str:
        """Wait for the peer to leave: ``fin`` or ``rst``."""
        await self.until(lambda: bool(self.closed_by))
        return self.closed_by

    @property
    def is_busy(self) -> bool:
        return self.handler is not None and not self.handler.done()
