"""Ready-made behaviours for the scripted backend: JSON answers, a session server, event streams.

Rules of this file: each is an ordinary handler, so a test may wrap or replace it. What a stream
sends and when is the test's decision: it takes the ``Stream`` and sends event by event.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any

from tests.tools import PATIENCE_S
from tests.tools.backend import Handler
from tests.tools.http1 import LAST_CHUNK
from tests.tools.recording import Conn, Seen

JSON = ("Content-Type", "application/json")
NO_SESSION = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"Session not found"}}'


def result(message: dict[str, Any], **value: object) -> bytes:
    """A JSON-RPC result for this request."""
    return json.dumps({"jsonrpc": "2.0", "id": message.get("id"), "result": value}).encode()


def json_answer(*fields: tuple[str, str], status: int = 200) -> Handler:
    """Every POST is answered at once with its own method and id."""

    async def handle(request: Seen, conn: Conn) -> None:
        message = json.loads(await request.whole())
        if "id" not in message:
            await conn.answer(202, [])
        else:
            await conn.answer(status, [JSON, *fields], result(message, method=message["method"]))

    return handle


def raw_answer(*pieces: bytes, then: str = "stay") -> Handler:
    """These bytes, each as a read of its own for the peer; then ``stay``, ``close`` or ``reset``."""

    async def handle(request: Seen, conn: Conn) -> None:
        await request.whole()
        await conn.send_apart(pieces)
        if then == "close":
            conn.close()
        elif then == "reset":
            conn.reset()

    return handle


class Stream:
    """An event stream in progress, in the hands of the test."""

    def __init__(self, request: Seen, conn: Conn) -> None:
        self.request = request
        self.conn = conn
        self.is_over = False

    def finished(self) -> None:
        """The test wrote the end itself, or there is none."""
        self.is_over = True
        self.conn.wake()

    async def send(self, event: bytes) -> None:
        """One chunk; the peer's process has read it when this returns."""
        await self.conn.send_chunk(event)
        await self.conn.consumed()

    async def end(self) -> None:
        """A clean end; the connection stays."""
        await self.conn.send(LAST_CHUNK)
        self.finished()

    def reset(self) -> None:
        self.finished()
        self.conn.reset()

    def close(self) -> None:
        """FIN in the middle."""
        self.finished()
        self.conn.close()


class Streams:
    """Answers every request with an event stream that the test drives: ``await streams.next()``."""

    def __init__(self, extra_head: str = "") -> None:
        self._extra_head = extra_head
        self._opened: asyncio.Queue[Stream] = asyncio.Queue()

    async def next(self) -> Stream:
        async with asyncio.timeout(PATIENCE_S):
            return await self._opened.get()

    async def __call__(self, request: Seen, conn: Conn) -> None:
        await request.whole()
        await conn.stream_head(self._extra_head)
        stream = Stream(request, conn)
        self._opened.put_nowait(stream)
        await conn.until(lambda: stream.is_over or bool(conn.closed_by))


class McpServer:
    """A stateful server of the 2025 revisions: initialize, sessions, GET stream, DELETE, 404.

    ``tool`` answers requests inside a session; by default with the method's name.
    """

    def __init__(self, name: str = "server", tool: Handler | None = None) -> None:
        self.name = name
        self.sessions: set[str] = set()
        self.streams = Streams()
        self.tool = tool or json_answer()

    async def __call__(self, request: Seen, conn: Conn) -> None:
        body = await request.whole()
        session = (request.head.one("mcp-session-id") or b"").decode()
        message = json.loads(body) if body else {}
        if message.get("method") == "initialize":
            await self._initialize(message, conn)
        elif session and session not in self.sessions:
            await conn.answer(404, [JSON], NO_SESSION)
        elif request.method == b"DELETE":
            self.sessions.discard(session)
            await conn.answer(200, [])
        elif request.method == b"GET":
            await self.streams(request, conn)
        else:
            await self.tool(request, conn)

    async def _initialize(self, message: dict[str, Any], conn: Conn) -> None:
        session = f"{self.name}-{secrets.token_hex(8)}"
        self.sessions.add(session)
        value = result(
            message,
            protocolVersion="2025-11-25",
            capabilities={},
            serverInfo={"name": self.name, "version": "1"},
        )
        await conn.answer(200, [JSON, ("Mcp-Session-Id", session)], value)


INITIALIZE = json.dumps(
    {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
).encode()
