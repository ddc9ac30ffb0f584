"""The load generator: plain sockets and one epoll, because it shares the machine with what it measures.

Requests look like those of the official Python SDK over httpx2. A connection is bound to a session that
was opened through the candidate. Every call must be answered with exactly the backend's bytes.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from typing import NamedTuple

from tests.bench.backend import MARK, tool_answer
from tests.bench.procs import BenchError

STALL_S = 10.0
"""Without a byte for so long a candidate counts as stuck."""
OPEN_AT_ONCE = 64
"""Streams being opened at a time: below every listen backlog."""
CALLS_IN_SCRIPT = 64
"""Calls of a connection before it begins again with the first."""
_READ_BYTES = 65536

_COMMON = (
    "Host: 127.0.0.1:{port}\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
    "User-Agent: python-httpx2/2.16.2\r\n"
)
_MCP = (
    "accept: application/json, text/event-stream\r\ncontent-type: application/json\r\n"
    "mcp-session-id: {session}\r\nmcp-protocol-version: 2025-11-25\r\n{extra}"
)
_POST = "POST /mcp HTTP/1.1\r\n" + _COMMON + _MCP + "Content-Length: {length}\r\n\r\n{body}"
_GET = "GET /mcp HTTP/1.1\r\n" + _COMMON + "Cache-Control: no-store\r\n" + _MCP + "\r\n"
_CALL = (
    '{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{tool}",'
    '"arguments":{{{arguments}}},"_meta":{{"progressToken":{id}}}}}}}'
)
_INITIALIZE = (
    '{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25",'
    '"capabilities":{},"clientInfo":{"name":"mcp","version":"0.1.0"}}}'
)
_JSON = {"accept": "application/json, text/event-stream", "content-type": "application/json"}


def tool_request(
    port: int, session: str, request_id: int, tool: str, arguments: str, extra: str = ""
) -> bytes:
    """A ``tools/call`` as the SDK sends it; ``extra`` are further header lines."""
    body = _CALL.format(id=request_id, tool=tool, arguments=arguments)
    return _POST.format(port=port, session=session, extra=extra, length=len(body), body=body).encode()


def open_sessions(port: int, count: int) -> list[str]:
    """Session ids of ``count`` ``initialize`` requests through the candidate."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=STALL_S)
    with contextlib.closing(connection):
        return [_initialize(connection) for _ in range(count)]


def _initialize(connection: http.client.HTTPConnection) -> str:
    connection.request("POST", "/mcp", _INITIALIZE, _JSON)
    response = connection.getresponse()
    body = response.read()
    session = response.headers["mcp-session-id"]
    if response.status != 200 or not session:
        raise BenchError(f"initialize: {response.status} {body[:200]!r}")
    return session


def call_once(port: int, sessions: Iterable[str], status: int = 200) -> None:
    """One ``tools/call`` in each session, one after the other, over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=STALL_S)
    body = _CALL.format(id=1, tool="weather", arguments="")
    with contextlib.closing(connection):
        for session in sessions:
            connection.request("POST", "/mcp", body, {**_JSON, "mcp-session-id": session})
            response = connection.getresponse()
            answer = response.read()
            if response.status != status:
                raise BenchError(f"tools/call: {response.status} {answer[:200]!r}")


class Control:
    """The benchmark's own line to the backend, past the candidate."""

    def __init__(self, backend_port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", backend_port, timeout=STALL_S)

    def __call__(self, **command: float) -> dict[str, int]:
        self._connection.request("POST", "/control", json.dumps(command), _JSON)
        answer: dict[str, int] = json.loads(self._connection.getresponse().read())
        return answer

    def close(self) -> None:
        self._connection.close()


class Calls(NamedTuple):
    elapsed_s: float
    latencies_s: list[float]
    """One per completed call."""


class _Caller:
    """One keep-alive connection with one call in flight."""

    __slots__ = ("_answer", "_rest", "_script", "sent_at", "sock")

    def __init__(self, port: int, session: str, first_id: int, *, traced: bool) -> None:
        self.sock = _connect(port)
        script = [
            (_script_request(port, session, request_id, traced=traced), tool_answer(b"%d" % request_id))
            for request_id in range(first_id, first_id + CALLS_IN_SCRIPT)
        ]
        self._script = cycle(script)
        self._answer = b""
        self._rest = b""
        self.sent_at = 0.0

    def call(self, at_s: float) -> None:
        request, self._answer = next(self._script)
        self.sent_at = at_s
        self.sock.send(request)

    def is_answered(self, data: bytes) -> bool:
        """Whether the answer is complete with these bytes. Raises BenchError if it is another one."""
        data = self._rest + data
        if data.startswith(b"HTTP/1.1 200") and data.endswith(
            (self._answer, self._answer + b"\r\n0\r\n\r\n")
        ):
            self._rest = b""
            return True
        if not data or len(data) > 4096 or not b"HTTP/1.1 200".startswith(data[:12]):
            raise BenchError(f"unexpected answer to a call: {data[:400]!r}")
        self._rest = data
        return False


def _script_request(port: int, session: str, request_id: int, *, traced: bool) -> bytes:
    """Ids and arguments differ from call to call, and so do the lengths of the bodies."""
    city = "Llanfairpwllgwyngyll"[: 4 + request_id % 16]
    trace = f"traceparent: 00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01\r\n" if traced else ""
    return tool_request(port, session, request_id, "weather", f'"city":"{city}"', trace)


class CallLoad:
    """A closed loop: every connection sends its next call when the last one is answered.

    ``traced``: every call has a ``traceparent`` of its own, so that no two heads are alike.
    """

    def __init__(self, port: int, connections: int, *, traced: bool = False) -> None:
        sessions = open_sessions(port, connections)
        self._callers: dict[int, _Caller] = {}
        for number, session in enumerate(sessions):
            caller = _Caller(port, session, 1 + number * CALLS_IN_SCRIPT, traced=traced)
            self._callers[caller.sock.fileno()] = caller
        self._epoll = _watch(self._callers)

    def run(self, seconds: float) -> Calls:
        """Call for so long, then wait for what is in flight: afterwards nothing is owed."""
        callers, clock, latencies = self._callers, time.perf_counter, []
        started = clock()
        until = started + seconds
        for caller in callers.values():
            caller.call(clock())
        in_flight = len(callers)
        while in_flight:
            for descriptor in _ready(self._epoll):
                caller = callers[descriptor]
                if not caller.is_answered(caller.sock.recv(_READ_BYTES)):
                    continue
                now = clock()
                latencies.append(now - caller.sent_at)
                if now < until:
                    caller.call(now)
                else:
                    in_flight -= 1
        return Calls(clock() - started, latencies)

    def run_paced(self, seconds: float, per_s: float) -> Calls:
        """An open loop: calls begin at this rate, each on a connection that is free."""
        callers, clock, latencies = self._callers, time.perf_counter, []
        free = deque(callers.values())
        started = due = clock()
        until = started + seconds
        while due < until or len(free) < len(callers):
            now = clock()
            while due <= now and due < until and free:
                free.popleft().call(now)
                due += 1 / per_s
            wait_s = due - now if free and due < until else STALL_S
            for descriptor, _ in self._epoll.poll(max(wait_s, 0.0)):
                caller = callers[descriptor]
                if caller.is_answered(caller.sock.recv(_READ_BYTES)):
                    latencies.append(clock() - caller.sent_at)
                    free.append(caller)
            if clock() > until + STALL_S:
                raise BenchError(f"no byte for {STALL_S:.0f} s")
        return Calls(clock() - started, latencies)

    def close(self) -> None:
        self._epoll.close()
        for caller in self._callers.values():
            caller.sock.close()


class Streams:
    """Open event streams, each on a connection of its own, counted by the mark in their events."""

    def __init__(self, port: int, requests: Iterable[bytes]) -> None:
        """Returns when the response head of every stream is here. Raises BenchError otherwise."""
        self.events = 0
        self.reads = 0
        self._socks: dict[int, socket.socket] = {}
        self._epoll = select.epoll()
        try:
            for batch in _batches(requests, OPEN_AT_ONCE):
                self._open(port, batch)
        except BaseException:
            self.close()
            raise

    def _open(self, port: int, batch: list[bytes]) -> None:
        heads: dict[int, bytes] = {}
        for request in batch:
            sock = _connect(port)
            self._socks[sock.fileno()] = sock
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            heads[sock.fileno()] = b""
            sock.send(request)
        while heads:
            for descriptor in _ready(self._epoll):
                data = self._socks[descriptor].recv(_READ_BYTES)
                self.events += data.count(MARK)
                head = heads.get(descriptor, b"") + data
                if not head.startswith(b"HTTP/1.1 200"):
                    raise BenchError(f"a stream was not opened: {head[:400]!r}")
                if b"\r\n\r\n" in head:
                    del heads[descriptor]
                else:
                    heads[descriptor] = head

    def __len__(self) -> int:
        return len(self._socks)

    def read_for(self, seconds: float) -> None:
        until = time.perf_counter() + seconds
        while (left := until - time.perf_counter()) > 0:
            self._read(self._epoll.poll(left))

    def read_until(self, events: int) -> None:
        """Read until so many events have arrived in total. Raises BenchError if they do not come."""
        while self.events < events:
            self._read([(descriptor, 0) for descriptor in _ready(self._epoll)])

    def _read(self, ready: list[tuple[int, int]]) -> None:
        for descriptor, _ in ready:
            data = self._socks[descriptor].recv(_READ_BYTES)
            if not data:
                raise BenchError("a stream was closed")
            self.events += data.count(MARK)
            self.reads += 1

    def close(self) -> None:
        self._epoll.close()
        for sock in self._socks.values():
            sock.close()
        self._socks.clear()


def listening_streams(port: int, sessions: list[str]) -> Streams:
    """One idle GET stream per session."""
    return Streams(port, (_GET.format(port=port, session=session, extra="").encode() for session in sessions))


def event_streams(port: int, count: int) -> Streams:
    """``tools/call`` requests that are answered by a paced SSE stream."""
    sessions = open_sessions(port, count)
    return Streams(port, (tool_request(port, session, 7, "events", "") for session in sessions))


def flood(port: int, chunks: int) -> Streams:
    """A ``tools/call`` that is answered by ``chunks`` large events at once. Nothing reads them yet."""
    (session,) = open_sessions(port, 1)
    return Streams(port, [tool_request(port, session, 9, "flood", f'"count":{chunks}')])


def wait_until(is_reached: Callable[[], bool], what: str) -> None:
    """Poll a condition that no descriptor reports. Raises BenchError after STALL_S."""
    until = time.monotonic() + STALL_S
    while not is_reached():
        if time.monotonic() > until:
            raise BenchError(f"not reached in {STALL_S:.0f} s: {what}")
        time.sleep(0.05)


def _connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), STALL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A timeout costs a poll(2) per read, and epoll has said already that there is something.
    sock.settimeout(None)
    return sock


def _watch(descriptors: Iterable[int]) -> select.epoll:
    epoll = select.epoll()
    for descriptor in descriptors:
        epoll.register(descriptor, select.EPOLLIN)
    return epoll


def _ready(epoll: select.epoll) -> list[int]:
    ready = epoll.poll(STALL_S)
    if not ready:
        raise BenchError(f"no byte for {STALL_S:.0f} s")
    return [descriptor for descriptor, _ in ready]


def _batches(items: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
