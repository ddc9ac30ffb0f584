"""The backend of the benchmark: a stub that is cheap enough not to be what is measured.

Run as ``python -m tests.bench.backend PORT``. It speaks legacy stateful Streamable HTTP as far as the
benchmark needs it (initialize, three tools, GET stream, DELETE) and trusts what it reads: requests
come from the load generator by way of a proxy, so two searches replace an HTTP parser. ``POST
/control`` is the benchmark's own channel, used without a proxy between.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import uuid
from email.utils import formatdate
from typing import cast

import uvloop

MARK = b"~"
"""Occurs once in every event and nowhere else on the wire, so that events can be counted in raw bytes,
whatever the chunk framing or the cuts between reads."""
EVENT_BYTES = 150
FLOOD_CHUNK_BYTES = 16 * 1024
TEXT = b"It is 21.5 degrees in Reykjavik, light rain, wind from the south west at 7 m/s."

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_SESSION = re.compile(rb"\r\nmcp-session-id: *([!-~]+)", re.IGNORECASE)
_ID = re.compile(rb'"id":(\d+)')
_TOOL = re.compile(rb'"name":"(\w+)"')
_COUNT = re.compile(rb'"count":(\d+)')

_JSON_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: %b\r\nserver: uvicorn\r\n"
    b"content-type: application/json\r\nmcp-session-id: %b\r\ncontent-length: %d\r\n\r\n"
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: %b\r\nserver: uvicorn\r\n"
    b"cache-control: no-cache, no-transform\r\nconnection: keep-alive\r\ncontent-type: text/event-stream\r\n"
    b"mcp-session-id: %b\r\nx-accel-buffering: no\r\ntransfer-encoding: chunked\r\n\r\n"
)


def tool_answer(request_id: bytes) -> bytes:
    """The body that answers a ``tools/call`` of ``weather``; the load generator compares every byte."""
    return (
        b'{"jsonrpc":"2.0","id":%b,"result":{"content":[{"type":"text","text":"%b"}],"isError":false,'
        b'"_meta":{"units":"metric"}}}' % (request_id, TEXT)
    )


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def sse_event(size: int) -> bytes:
    """One SSE event of ``size`` bytes with one MARK in it."""
    start = (
        b'event: message\r\ndata: {"jsonrpc":"2.0","method":"notifications/progress","params":{'
        b'"progressToken":1,"message":"~'
    )
    end = b'"}}\r\n\r\n'
    return start + b"." * (size - len(start) - len(end)) + end


_EVENT_CHUNK = _chunk(sse_event(EVENT_BYTES))
_FLOOD_CHUNK = _chunk(sse_event(FLOOD_CHUNK_BYTES))
_LAST_CHUNK = b"0\r\n\r\n"


class Pacer:
    """Writes one event to every stream, one per loop iteration, at a fixed interval.

    The interval does not depend on the proxy: every candidate sees the same arrivals, each event is its
    own segment, and nobody looks cheap because it fell behind and read several at once. The streams
    take turns back to back, since with pauses between single events the cost of falling asleep and
    waking up, which is the kernel's and varies with the machine's load, would drown the proxy's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.streams: dict[Stub, None] = {}
        self.sent = 0
        self._loop = loop
        self._interval_s = 0.0
        self._turn: list[Stub] = []

    def set_interval(self, seconds: float) -> None:
        """Between two events of a stream; 0 stops."""
        was_stopped = not self._interval_s
        self._interval_s = seconds
        self._turn.clear()
        if was_stopped and seconds:
            self._start_turn()

    def finish(self) -> None:
        """End every stream cleanly."""
        for stream in self.streams:
            stream.send(_LAST_CHUNK)
        self.streams.clear()

    def _start_turn(self) -> None:
        if not self._interval_s:
            return
        self._loop.call_later(self._interval_s, self._start_turn)
        if not self._turn:
            self._turn = list(self.streams)
            self._emit()

    def _emit(self) -> None:
        if self._turn:
            self._turn.pop().send(_EVENT_CHUNK)
            self.sent += 1
            self._loop.call_soon(self._emit)


class State:
    """What the connections of one backend share."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.sessions: set[bytes] = set()
        self.listeners: dict[Stub, None] = {}
        self.pacer = Pacer(loop)
        self.flooded_bytes = 0
        self._turn_clock()

    def _turn_clock(self) -> None:
        """A real server's Date changes every second, and with it every response head."""
        self.date = formatdate(usegmt=True).encode()
        self.loop.call_later(1.0, self._turn_clock)

    def control(self, command: dict[str, float]) -> dict[str, int]:
        if "interval" in command:
            self.pacer.set_interval(command["interval"])
        if "finish" in command:
            self.pacer.finish()
        if "emit" in command:
            for listener in self.listeners:
                listener.send(_EVENT_CHUNK)
        return {
            "sessions": len(self.sessions),
            "listeners": len(self.listeners),
            "events_sent": self.pacer.sent,
            "flooded_bytes": self.flooded_bytes,
        }


class Stub(asyncio.Protocol):
    """One connection. Requests are answered in the order and in the iteration in which they arrive."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._rest = b""
        self._flood_left = 0
        self._is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an instance: uvloop's transports only look like asyncio's.
        self.send = cast("asyncio.Transport", transport).write

    def connection_lost(self, exc: Exception | None) -> None:
        self._flood_left = 0
        self._state.listeners.pop(self, None)
        self._state.pacer.streams.pop(self, None)

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._flood()

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        while data:
            head_end = data.find(b"\r\n\r\n") + 4
            if head_end < 4:
                break
            length = _LENGTH.search(data, 0, head_end)
            end = head_end + (int(length[1]) if length else 0)
            if len(data) < end:
                break
            self._serve(data[:head_end], data[head_end:end])
            data = data[end:]
        self._rest = data

    def _serve(self, head: bytes, body: bytes) -> None:
        session = _SESSION.search(head)
        if session is None:
            self._serve_outside_session(head, body)
        elif session[1] not in self._state.sessions:
            self.send(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        elif head.startswith(b"POST"):
            self._serve_post(session[1], body)
        elif head.startswith(b"GET"):
            self._state.listeners[self] = None
            self.send(_STREAM_HEAD % (self._state.date, session[1]))
        else:
            self._state.sessions.discard(session[1])
            self.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    def _serve_outside_session(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"POST /control"):
            answer = json.dumps(self._state.control(json.loads(body))).encode()
            self.send(_JSON_HEAD % (self._state.date, b"-", len(answer)) + answer)
        elif b'"initialize"' in body:
            session_id = uuid.uuid4().hex.encode()
            self._state.sessions.add(session_id)
            answer = (
                b'{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25","capabilities":'
                b'{"tools":{}},"serverInfo":{"name":"stub","version":"1"}}}'
            )
            self.send(_JSON_HEAD % (self._state.date, session_id, len(answer)) + answer)
        else:
            self.send(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

    def _serve_post(self, session_id: bytes, body: bytes) -> None:
        tool, request_id = _TOOL.search(body), _ID.search(body)
        if tool is None or request_id is None:
            self.send(
                b"HTTP/1.1 202 Accepted\r\nmcp-session-id: %b\r\ncontent-length: 0\r\n\r\n" % session_id
            )
        elif tool[1] == b"weather":
            answer = tool_answer(request_id[1])
            self.send(_JSON_HEAD % (self._state.date, session_id, len(answer)) + answer)
        elif tool[1] == b"events":
            self.send(_STREAM_HEAD % (self._state.date, session_id))
            self._state.pacer.streams[self] = None
        else:
            count = _COUNT.search(body)
            self._flood_left = int(count[1]) if count else 0
            self.send(_STREAM_HEAD % (self._state.date, session_id))
            self._flood()

    def _flood(self) -> None:
        """One chunk per iteration: uvloop reports a full buffer only when an iteration ends."""
        if self._is_paused or not self._flood_left:
            return
        self._flood_left -= 1
        self._state.flooded_bytes += len(_FLOOD_CHUNK)
        self.send(_FLOOD_CHUNK)
        if self._flood_left:
            self._state.loop.call_soon(self._flood)
        else:
            self.send(_LAST_CHUNK)


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    state = State(loop)
    server = await loop.create_server(lambda: Stub(state), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
