"""A raw HTTP/1.1 client that sends what it is told and judges what it gets.

Rules of this file: an answer always carries a verdict on its framing, because "the bytes were
right" and "the end was right" are two different things. Nothing is retried, followed or repaired.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tests.tools import PATIENCE_S
from tests.tools.http1 import UNTIL_CLOSE, Body, Head, Malformed, parse_head, response_length
from tests.tools.wire import Wire, pieces


@dataclass(frozen=True)
class Answer:
    """One response, whole or broken."""

    head: Head
    body: bytes
    framing: str
    """``clean``, ``truncated`` (FIN too early), ``reset`` (RST too early) or ``until-close``."""
    interim: list[int] = field(default_factory=list)
    """Status of every 1xx before it."""

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def reason(self) -> str:
        """The proxy's own word for an answer that it authored, else ``""``."""
        return (self.head.one("mcp-proxy-reason") or b"").decode()

    @property
    def says_close(self) -> bool:
        return b"close" in (value.lower() for value in self.head.all("connection"))


class Client(Wire):
    """One connection to a server. Reads strictly; ``Malformed`` and unexpected ends are errors."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._buffer = b""
        self._end = ""
        self._head: Head | None = None
        self._body = Body(0)
        self._interim: list[int] = []

    @classmethod
    async def connect(cls, port: int, *, receive_buffer: int | None = None) -> Client:
        """``receive_buffer`` fixes SO_RCVBUF, so that a reader that stalls is felt early."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def send_cut(self, data: bytes, cuts: Iterable[int]) -> None:
        """``data`` cut at these offsets; the peer reads every piece by itself."""
        await self.send_apart(pieces(data, cuts))

    # -- reading -------------------------------------------------------------------------------

    async def _more(self) -> bool:
        """Read once. False: the peer has ended the connection, ``_end`` says how."""
        if self._end:
            return False
        try:
            async with asyncio.timeout(PATIENCE_S):
                data = await self.receive()
        except ConnectionResetError:
            self._end = "reset"
            return False
        if not data:
            self._end = "truncated"
            return False
        self._buffer += data
        return True

    async def head(self, method: str = "POST") -> Head:
        """The head of the final response. Raises EOFError when the connection ends before it."""
        self._interim = []
        while True:
            while b"\r\n\r\n" not in self._buffer:
                if not await self._more():
                    raise EOFError(f"{self._end} before a response head, after {self._buffer!r}")
            raw, end, self._buffer = self._buffer.partition(b"\r\n\r\n")
            head = parse_head(raw + end)
            if head.status >= 200:
                break
            self._interim.append(head.status)
        self._head = head
        self._body = Body(response_length(head, method.encode()))
        return head

    def _drain(self) -> None:
        self._body.feed(self._buffer)
        self._buffer = self._body.surplus
        self._body.surplus = b""

    async def body_until(self, marker: bytes) -> bytes:
        """Body of the answer in progress as soon as it contains ``marker``, all that has come."""
        self._drain()
        while marker not in self._body.content:
            if not await self._more():
                raise EOFError(f"{self._end} before {marker!r}, after {bytes(self._body.content)!r}")
            self._drain()
        return bytes(self._body.content)

    async def next_piece(self) -> bytes:
        """The next bytes of the body in progress, taken out of it; ``b""`` at its end."""
        self._drain()
        while not self._body.content and not self._body.done and await self._more():
            self._drain()
        piece = bytes(self._body.content)
        self._body.content.clear()
        return piece

    async def rest(self) -> Answer:
        """Finish the answer whose ``head`` was read."""
        assert self._head is not None
        self._drain()
        while not self._body.done and await self._more():
            self._drain()
        if self._body.done:
            verdict = "clean"
        elif self._body.length == UNTIL_CLOSE and self._end == "truncated":
            verdict = "until-close"
        else:
            verdict = self._end
        return Answer(self._head, bytes(self._body.content), verdict, self._interim)

    async def answer(self, method: str = "POST") -> Answer:
        """The next response."""
        await self.head(method)
        return await self.rest()

    async def ask(self, request: bytes, method: str = "POST") -> Answer:
        """Send and read one response."""
        await self.send(request)
        return await self.answer(method)

    async def closed(self) -> str:
        """Wait until the peer ends the connection: ``eof`` or ``reset``. Raises Malformed when it
        sends anything before that: a second answer that nobody asked for."""
        while await self._more():
            pass
        if self._buffer:
            raise Malformed(f"bytes that belong to no response: {self._buffer[:200]!r}")
        return "reset" if self._end == "reset" else "eof"


def post(
    body: bytes,
    *fields: str,
    target: str = "/mcp",
    framing: str | None = None,
    host: str = "localhost",
) -> bytes:
    """A well-formed POST. ``framing`` replaces the Content-Length line (then the body is as given)."""
    lines = [
        f"POST {target} HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        "Accept: application/json, text/event-stream",
        *fields,
        framing if framing is not None else f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def get(*fields: str, target: str = "/mcp", method: str = "GET") -> bytes:
    """A well-formed request without a body."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Accept: text/event-stream", *fields]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def call(id_: int = 1, method: str = "tools/call", name: str = "echo", **arguments: object) -> bytes:
    """The JSON text of a request."""
    params = {"name": name, "arguments": arguments}
    return msgspec.json.encode({"jsonrpc": "2.0", "id": id_, "method": method, "params": params})
