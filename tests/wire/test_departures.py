"""A client that leaves is passed on at once, whatever the exchange was doing and whatever the client
had sent behind it (S3); and every exchange leaves one line that says who ended it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.tools.client import Client, call, get, post
from tests.tools.mcp_backend import McpServer, Streams, json_answer, raw_answer
from tests.tools.recording import Conn, Seen
from tests.tools.tarpit import Tarpit
from tests.wire.rig import Rig, bench, case

BEHIND = {
    "nothing": b"",
    "a request": post(call(2)),
    "half a request": post(call(2))[:-9],
    "a hundred requests": post(call(2)) * 100,
}
LEAVE: dict[str, Callable[[Client], None]] = {"closes": Client.close, "resets": Client.reset}

behind = pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND.keys())
leaves = pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE.keys())


async def ended(rig: Rig, lines_before: int) -> dict[str, Any]:
    """The access line of the exchange that has just ended; there is exactly one."""

    async def is_written() -> bool:
        return len(rig.proxy.access_lines()) > lines_before

    await rig.proxy.until(is_written, "an access line")
    (line,) = rig.proxy.access_lines()[lines_before:]
    return line


async def lines_settled(rig: Rig) -> int:
    """Number of access lines when the log is up to date with what was asked before."""
    client = await rig.client()
    await client.ask(post(call(77), target="/settled"))
    client.close()

    async def is_written() -> bool:
        return any(line["status"] == 404 and not line["route"] for line in rig.proxy.access_lines()[-1:])

    await rig.proxy.until(is_written, "the line of a 404")
    return len(rig.proxy.access_lines())


@pytest.fixture
async def tarpit() -> AsyncIterator[Tarpit]:
    async with Tarpit() as tarpit:
        yield tarpit


@behind
@leaves
async def test_a_client_that_leaves_while_connecting_ends_the_connect(
    tmp_path: Any, tarpit: Tarpit, leave: Callable[[Client], None], behind: bytes
) -> None:
    hanging = {"backends": [tarpit.url], "timeouts": {"connect": "60s"}}
    routes = [{"path": "/mcp", "pool": "tools"}, {"path": "/hang", "pool": "hang"}]
    async with bench(tmp_path, {"pools": {"hang": hanging}, "routes": routes}) as rig, case(rig):
        client = await rig.client()
        await client.send_apart([post(call(), target="/hang") + behind])

        async def connects() -> bool:
            return tarpit.attempts() == 1

        async def gave_up() -> bool:
            return tarpit.attempts() == 0

        await rig.proxy.until(connects, "the proxy connects")
        leave(client)
        await rig.proxy.until(gave_up, "the proxy gives the connect up")


async def silent(request: Seen, conn: Conn) -> None:
    await request.whole()
    await conn.gone()


@behind
@leaves
async def test_a_client_that_leaves_before_the_head_closes_the_backend_side(
    rig: Rig, leave: Callable[[Client], None], behind: bytes
) -> None:
    rig.script(silent)
    lines = await lines_settled(rig)
    client = await rig.client()
    await client.send_apart([post(call()) + behind])
    (request,) = await rig.backend.arrived()
    leave(client)

    assert await request.conn.gone() in ("fin", "rst")
    line = await ended(rig, lines)
    assert (line["end"], line["status"], line["method"]) == ("CH", 0, "tools/call")
    assert [one.body for one in rig.taken()] == [call()]


@behind
@leaves
async def test_a_client_that_leaves_in_the_middle_of_a_body_closes_the_backend_side(
    rig: Rig, leave: Callable[[Client], None], behind: bytes
) -> None:
    half = raw_answer(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\nhello")

    async def hanging(request: Seen, conn: Conn) -> None:
        await half(request, conn)
        await conn.gone()

    rig.script(hanging)
    lines = await lines_settled(rig)
    client = await rig.client()
    await client.send_apart([post(call()) + behind])
    (request,) = await rig.backend.arrived()
    await rig.backend.until(lambda: request.conn.bytes_sent > 0)
    await request.conn.consumed()
    leave(client)

    assert await request.conn.gone() in ("fin", "rst")
    assert (await ended(rig, lines))["end"] == "CD"
    assert len(rig.taken()) == 1


@behind
@leaves
@pytest.mark.parametrize("events", [0, 3])
async def test_a_client_that_leaves_a_stream_closes_the_backend_side(
    rig: Rig, leave: Callable[[Client], None], behind: bytes, events: int
) -> None:
    streams = Streams()
    rig.script(streams)
    lines = await lines_settled(rig)
    client = await rig.client()
    await client.send(post(call()) + behind)
    stream = await streams.next()
    await client.head()
    for number in range(events):
        event = b"data: %d\n\n" % number
        await stream.send(event)
        await client.body_until(event)
    leave(client)

    assert await stream.conn.gone() in ("fin", "rst")
    line = await ended(rig, lines)
    assert (line["end"], line["status"], line["stream"]) == ("CD", 200, True)
    assert len(rig.taken()) == 1


@behind
@leaves
async def test_a_client_that_leaves_a_listening_stream_closes_the_backend_side(
    rig: Rig, leave: Callable[[Client], None], behind: bytes
) -> None:
    server = McpServer()
    rig.script(server)
    client = await rig.client()
    session = await rig.session(client)
    await client.send(get(session) + behind)
    stream = await server.streams.next()
    await client.head("GET")
    leave(client)

    assert await stream.conn.gone() in ("fin", "rst")
    assert [one.method for one in rig.taken()] == [b"GET"]


ENDS = {
    "clean": (json_answer(), "--", 200),
    "backend closes before the head": (raw_answer(b"", then="close"), "SH", 502),
    "backend resets before the head": (raw_answer(b"", then="reset"), "SH", 502),
    "backend answers garbage": (raw_answer(b"garbage\r\n\r\n"), "SH", 502),
    "backend resets in the body": (
        raw_answer(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata:", then="reset"),
        "SD",
        200,
    ),
}


@pytest.mark.parametrize(("handler", "end", "status"), ENDS.values(), ids=ENDS.keys())
async def test_the_access_line_says_who_ended_the_exchange_and_where(
    rig: Rig, handler: Any, end: str, status: int
) -> None:
    rig.script(handler)
    lines = await lines_settled(rig)
    client = await rig.client()
    assert (await client.ask(post(call()))).status == status
    line = await ended(rig, lines)
    rig.backend.take_one()

    assert (line["end"], line["status"]) == (end, status)
    assert (line["route"], line["pool"], line["method"], line["name"]) == (
        "/mcp",
        "tools",
        "tools/call",
        "echo",
    )
