"""Servers for the users of the load test: the bundled one in a thread, and one that answers what it is told.

Rules of this file: users are blocking code, so servers run in threads of this process, on loopback. What a
server has received is all that a test may know of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from mcp_proxy.load import Facts, Plan, Target, Tool, messages
from mcp_proxy.load.client import Answer, Client
from mcp_proxy.load.ledger import Ledger
from mcp_proxy.load.stub import Stub
from mcp_proxy.load.stub_http import Exchange, Request
from mcp_proxy.load.users import Scenario
from tests.tools import PATIENCE_S

FACTS = Facts(
    legacy="2025-11-25",
    modern=True,
    sessions=True,
    get_stream=True,
    get_ids=True,
    answer_ids=True,
    listen=True,
    lists_tools=True,
    tool=Tool("echo"),
    stream_tool=Tool("count", {}, 4),
)
"""Of the bundled server."""


def plan_for(where: Target, facts: Facts = FACTS, **over: Any) -> Plan:
    """Of a test: patience is short, since nothing here takes long."""
    values = {"timeout_s": PATIENCE_S, "patience_s": PATIENCE_S, "hold_s": 1.0, **over}
    return Plan(where, "smoke", 1.0, 1, {"session": 1.0}, facts, **values)


def only(**facts: object) -> Facts:
    """The bundled server, as far as these facts go."""
    return msgspec.structs.replace(FACTS, **facts)


def failures(user: Scenario) -> list[str]:
    """Of a user, each with its operation."""
    return [f"{entry.operation}: {entry.reason}" for entry in user.ledger.failures.values()]


def until(condition: Callable[[], object]) -> None:
    """Bounded; what is waited for happens in another thread."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "in vain"
        threading.Event().wait(0.005)


class RunningStub:
    """The bundled server, and what it has been asked."""

    def __init__(self, tick_s: float) -> None:
        self.stub = Stub()
        self.requests: list[Request] = []
        self.before: Callable[[Request, Exchange], bool] | None = None
        """Sees every request first; True: it has answered."""
        self._tick_s = tick_s
        self._exchanges: list[Exchange] = []
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _exchange(self) -> Exchange:
        exchange = Exchange(self._handle)
        self._exchanges.append(exchange)
        return exchange

    def _handle(self, request: Request, exchange: Exchange) -> None:
        self.requests.append(request)
        if self.before is None or not self.before(request, exchange):
            self.stub(request, exchange)

    def _run(self) -> None:
        async def serve() -> None:
            server = await self._loop.create_server(self._exchange, "127.0.0.1", 0)
            self.target = Target("http", "127.0.0.1", server.sockets[0].getsockname()[1], "/mcp")
            self._over = asyncio.Event()
            self._started.set()
            while not self._over.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._tick_s):
                        await self._over.wait()
                self.stub.tick()
            server.close()
            for exchange in self._exchanges:
                exchange.cut()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(serve())

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(PATIENCE_S)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    def stub_call(self, what: Callable[[], None]) -> None:
        """Done by the server's own thread."""
        self._loop.call_soon_threadsafe(what)

    def methods(self) -> list[str]:
        """HTTP method of each request, for POSTs the JSON-RPC method."""
        return [_method(request) for request in self.requests]


def _method(request: Request) -> str:
    if request.method != "POST":
        return request.method
    message = msgspec.json.decode(request.body)
    return str(message["method"])


@contextlib.contextmanager
def running_stub(tick_s: float = 0.01) -> Iterator[RunningStub]:
    server = RunningStub(tick_s)
    server.start()
    try:
        yield server
    finally:
        server.stop()


Script = Callable[[bytes, socket.socket], None]
"""Takes a whole request and answers on the socket; the connection is closed if it shuts it down."""


class RawServer:
    """Answers every request as its script does; ``requests`` are the raw ones."""

    def __init__(self, script: Script) -> None:
        self.requests: list[bytes] = []
        self._script = script
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.target = Target("http", "127.0.0.1", self._listening.getsockname()[1], "/mcp")
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while request := _whole_request(connection):
                self.requests.append(request)
                self._script(request, connection)

    def close(self) -> None:
        for sock in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def _whole_request(connection: socket.socket) -> bytes:
    data = b""
    while True:
        head, mark, body = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        if mark and len(body) >= length:
            return data
        more = connection.recv(65536)
        if not more:
            return b""
        data += more


@contextlib.contextmanager
def raw_server(*answers: bytes | Script) -> Iterator[RawServer]:
    """The answers in turn, the last again and again. Bytes are sent as they are."""
    left = list(answers)

    def script(request: bytes, connection: socket.socket) -> None:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, bytes):
            connection.sendall(answer)
        else:
            answer(request, connection)

    server = RawServer(script)
    try:
        yield server
    finally:
        server.close()


def http(status: int, body: bytes = b"", *fields: str, kind: str = "application/json") -> bytes:
    """A whole answer."""
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", f"content-type: {kind}", *fields]
    return "\r\n".join([*lines, "\r\n"]).encode() + body


def then_close(data: bytes) -> Script:
    """Send, and end the connection."""

    def script(request: bytes, connection: socket.socket) -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_RDWR)

    return script


def then_reset(data: bytes) -> Script:
    """Send, and reset the connection."""

    def script(request: bytes, connection: socket.socket) -> None:
        connection.sendall(data)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.close()

    return script


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


RESULT = b'{"jsonrpc":"2.0","id":1,"result":{}}'
OK = http(200, RESULT)
EVENT = b"data: " + RESULT + b"\n\n"
PROGRESS = b'id: 1\ndata: {"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":1}}\n\n'


def client_of(
    server: RawServer | Target,
    *,
    verify: bool = True,
    timeout_s: float = PATIENCE_S,
    patience_s: float = PATIENCE_S,
) -> Client:
    where = server if isinstance(server, Target) else server.target
    return Client(where, Ledger(), "session", timeout_s=timeout_s, patience_s=patience_s, verify=verify)


def ask(client: Client, name: str = "tools/call") -> Answer:
    return client.ask(name, 1, messages.request(1, name), [], splits=True)


def reasons(client: Client) -> list[str]:
    return [entry.reason for entry in client.ledger.failures.values()]
