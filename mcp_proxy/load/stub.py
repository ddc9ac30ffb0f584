"""The bundled MCP server: ``python -m mcp_proxy.load.stub [--port N | --fd N]``.

Rules of this file: an ordinary server of both eras, with all that the users of the load test look at: JSON
and SSE answers, a GET stream with numbered events that outlive a broken connection (``Last-Event-ID``),
DELETE, and the refusals that the specification asks for. State is in memory; the tools read nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import signal
import socket
from collections import deque
from functools import partial
from typing import Any, Final

import msgspec

from mcp_proxy.load.messages import LEGACY, MODERN, encode
from mcp_proxy.load.stub_answers import (
    HANDSHAKE,
    PATH,
    SERVER,
    STEPS,
    UNSUPPORTED,
    VERSION_KEY,
    event,
    progress,
    refusal,
    refuse,
    respond,
    result_body,
    text_result,
    tool_of,
)
from mcp_proxy.load.stub_http import Exchange, Request

TICK_S: Final = 0.25
"""Between two notifications on a GET stream."""
STEP_S: Final = 0.01
"""Between two progress notifications of the tool ``count``."""
KEPT_EVENTS: Final = 256
"""Of a session: a minute of ticks, for clients that come back."""
KEPT_ANSWERS: Final = 4
"""Of a session: streams of calls that can still be resumed."""
MAX_SESSIONS: Final = 100_000


class Stream:
    """A numbered sequence of events, and whoever reads it at the moment."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.reader: Exchange | None = None
        self.is_over = False
        self._number = 0
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=KEPT_EVENTS)

    def emit(self, message: dict[str, Any] | None) -> None:
        """None: an event with an id and without data, to resume from."""
        self._number += 1
        data = b"" if message is None else encode(message)
        event = b"id: %b/%d\ndata: %b\n\n" % (self.key.encode(), self._number, data)
        self._kept.append((self._number, event))
        if self.reader is not None:
            self.reader.send(event)

    def read_by(self, exchange: Exchange, after: int) -> None:
        """From the event behind ``after`` on. Whoever read before is let go: his connection broke."""
        self.let_go()
        self.reader = exchange
        exchange.begin_stream()
        exchange.on_gone = lambda: self.left_by(exchange)
        missed = b"".join(event for number, event in self._kept if number > after)
        if missed:
            exchange.send(missed)
        if self.is_over:
            self.end()

    def left_by(self, exchange: Exchange) -> None:
        if self.reader is exchange:
            self.reader = None

    def let_go(self) -> None:
        """End the reader's stream; he may come back."""
        reader, self.reader = self.reader, None
        if reader is not None:
            reader.end_stream()

    def end(self) -> None:
        self.is_over = True
        self.let_go()


class Session:
    def __init__(self) -> None:
        self.streams: dict[str, Stream] = {"get": Stream("get")}
        self.ticks = 0
        self.is_listened = False
        """A GET stream was opened once; from then on events happen."""

    def keep(self, stream: Stream) -> None:
        """For a client that comes back for the rest of an answer."""
        if len(self.streams) > KEPT_ANSWERS:
            del self.streams[next(key for key in self.streams if key != "get")]
        self.streams[stream.key] = stream


class Stub:
    """The server. ``tick`` is called at intervals."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: set[Exchange] = set()
        self._streams = 0

    def __call__(self, request: Request, exchange: Exchange) -> None:
        status = refusal(request)
        if status is not None:
            exchange.answer(status, b"refused", "text/plain")
        elif request.method == "POST":
            self._post(request, exchange)
        elif request.headers.get("mcp-protocol-version") == MODERN:
            exchange.answer(405, b"", "", "allow: POST")
        elif request.method == "GET":
            self._get(request, exchange)
        else:
            self._delete(request, exchange)

    def tick(self) -> None:
        """One more event for every session whose stream somebody has wanted."""
        for session in self.sessions.values():
            if session.is_listened:
                session.ticks += 1
                data = {"level": "info", "data": {"number": session.ticks}}
                session.streams["get"].emit(
                    {"jsonrpc": "2.0", "method": "notifications/message", "params": data}
                )
        for exchange in self._listening:
            exchange.send(b": alive\n\n")

    # --- sessions ------------------------------------------------------------------------------

    def _session(self, request: Request, exchange: Exchange) -> Session | None:
        """The one that the request names; otherwise it is answered here."""
        key = request.headers.get("mcp-session-id")
        if key is None:
            refuse(exchange, 400, None, -32600, "Missing session id")
            return None
        session = self.sessions.get(key)
        if session is None:
            refuse(exchange, 404, None, -32600, "Session not found")
        return session

    def _get(self, request: Request, exchange: Exchange) -> None:
        session = self._session(request, exchange)
        if session is None:
            return
        key, _, number = request.headers.get("last-event-id", "get/0").partition("/")
        stream = session.streams.get(key)
        is_resumed = "last-event-id" in request.headers
        if stream is None or not number.isdigit():
            refuse(exchange, 400, None, -32600, "Unknown event id")
        elif stream.reader is not None and not is_resumed:
            refuse(exchange, 409, None, -32600, "There is a stream already")
        else:
            session.is_listened = True
            stream.read_by(exchange, int(number))

    def _delete(self, request: Request, exchange: Exchange) -> None:
        session = self._session(request, exchange)
        if session is not None:
            del self.sessions[request.headers["mcp-session-id"]]
            for stream in session.streams.values():
                stream.end()
            exchange.answer(200)

    # --- messages ------------------------------------------------------------------------------

    def _post(self, request: Request, exchange: Exchange) -> None:
        try:
            message = msgspec.json.decode(request.body)
        except (msgspec.DecodeError, RecursionError):
            refuse(exchange, 400, None, -32700, "Parse error")
            return
        if not isinstance(message, dict) or not isinstance(message.get("method"), str):
            refuse(exchange, 400, None, -32600, "Invalid request")
            return
        params = message.get("params")
        meta = params.get("_meta") if isinstance(params, dict) else None
        claimed = meta.get(VERSION_KEY) if isinstance(meta, dict) else None
        version = request.headers.get("mcp-protocol-version")
        if version is not None and version not in HANDSHAKE:
            self._modern(request, exchange, message, version, claimed)
        elif claimed is not None:
            refuse(exchange, 400, message, -32020, "Header mismatch")
        else:
            self._legacy(request, exchange, message)

    def _legacy(self, request: Request, exchange: Exchange, message: dict[str, Any]) -> None:
        if message["method"] == "initialize" and "mcp-session-id" not in request.headers:
            self._initialize(exchange, message)
            return
        session = self._session(request, exchange)
        if session is None:
            return
        if "id" not in message:
            exchange.answer(202)
        elif tool_of(message) == "count":
            self._streams += 1
            stream = Stream(f"call{self._streams}")
            session.keep(stream)
            stream.read_by(exchange, 0)
            stream.emit(None)
            self._spawn(self._count(stream, message))
        else:
            respond(exchange, message)

    def _initialize(self, exchange: Exchange, message: dict[str, Any]) -> None:
        if len(self.sessions) >= MAX_SESSIONS:
            refuse(exchange, 503, message, -32603, "Too many open sessions")
            return
        key = secrets.token_hex(16)
        self.sessions[key] = Session()
        asked = (message.get("params") or {}).get("protocolVersion")
        version = asked if asked in HANDSHAKE else LEGACY
        result: dict[str, Any] = {
            "protocolVersion": version,
            "capabilities": {"tools": {}},
            "serverInfo": SERVER,
        }
        exchange.answer(200, result_body(message, result), "application/json", f"mcp-session-id: {key}")

    async def _count(self, stream: Stream, message: dict[str, Any]) -> None:
        """Goes on when its reader goes: a broken connection cancels nothing in this era."""
        for number in range(1, STEPS + 1):
            stream.emit(progress(message, number))
            await asyncio.sleep(STEP_S)
        stream.emit({"jsonrpc": "2.0", "id": message["id"], "result": text_result("counted")})
        stream.end()

    def _modern(
        self, request: Request, exchange: Exchange, message: dict[str, Any], version: str, claimed: object
    ) -> None:
        method, headers = message["method"], request.headers
        if version != MODERN:
            data = {"supported": [MODERN], "requested": version}
            refuse(exchange, 400, message, UNSUPPORTED, "Unsupported protocol version", data)
        elif "id" not in message:
            exchange.answer(202)
        elif claimed is None:
            refuse(exchange, 400, message, -32602, "Missing _meta")
        elif (
            claimed != version
            or headers.get("mcp-method") != method
            or (method == "tools/call" and headers.get("mcp-name") != tool_of(message))
        ):
            refuse(exchange, 400, message, -32020, "Header mismatch")
        elif method == "subscriptions/listen":
            self._listen(exchange, message)
        elif tool_of(message) == "count":
            exchange.begin_stream()
            task = self._spawn(self._count_modern(exchange, message))
            exchange.on_gone = partial(_cancel, task)
        else:
            respond(exchange, message)

    def _listen(self, exchange: Exchange, message: dict[str, Any]) -> None:
        exchange.begin_stream()
        meta = {"io.modelcontextprotocol/subscriptionId": message["id"]}
        method = "notifications/subscriptions/acknowledged"
        exchange.send(event({"jsonrpc": "2.0", "method": method, "params": {"_meta": meta}}))
        self._listening.add(exchange)
        exchange.on_gone = lambda: self._listening.discard(exchange)

    async def _count_modern(self, exchange: Exchange, message: dict[str, Any]) -> None:
        """Cancelled when its reader goes, as this era has it."""
        for number in range(1, STEPS + 1):
            exchange.send(event(progress(message, number)))
            await asyncio.sleep(STEP_S)
        exchange.send(event({"jsonrpc": "2.0", "id": message["id"], "result": text_result("counted")}))
        exchange.end_stream()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


async def serve(listening: socket.socket) -> None:
    """Until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stub, over = Stub(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    server = await loop.create_server(lambda: Exchange(stub), sock=listening, backlog=1024)
    async with server:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await over.wait()
            stub.tick()
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="the MCP server of the load test")
    parser.add_argument("--port", type=int, default=0, help="of 127.0.0.1")
    parser.add_argument("--fd", type=int, help="an inherited listening socket")
    options = parser.parse_args()
    if options.fd is not None:
        listening = socket.socket(fileno=options.fd)
    else:
        listening = socket.create_server(("127.0.0.1", options.port))
    print(f"http://127.0.0.1:{listening.getsockname()[1]}{PATH}", flush=True)
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(listening))
    else:
        uvloop.run(serve(listening))


if __name__ == "__main__":
    main()
