"""What the backends of these tests do, and what is sent to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mcp_proxy.upstream import Outgoing
from mcp_proxy.wire import Fields
from tests.tools.receiver import RecordingReceiver
from tests.tools.recording import Conn, Seen

POST = Outgoing(b"POST", b"/mcp", Fields([(b"accept", b"application/json")]), b"{}")
LISTEN = Outgoing(b"GET", b"/mcp", Fields([(b"accept", b"text/event-stream")]), b"", stream=True)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"

Handler = Callable[[Seen, Conn], Awaitable[None]]
Send = Callable[..., RecordingReceiver]


async def whole(request: Seen, conn: Conn) -> None:
    await request.whole()
    await conn.answer(200, [("Content-Type", "application/json")], b'{"ok":true}')


async def events(request: Seen, conn: Conn) -> None:
    await conn.stream_head()
    await conn.send_chunk(b"data: 1\n\n")


def raw(answer: bytes, end: str = "") -> Handler:
    async def handler(request: Seen, conn: Conn) -> None:
        await request.whole()
        await conn.send(answer)
        await conn.consumed()
        if end == "fin":
            conn.close()
        elif end == "rst":
            conn.reset()

    return handler
