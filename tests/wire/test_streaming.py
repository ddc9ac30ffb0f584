"""Streams: every event at once, every end told truthfully, every departure passed on (S1-S5)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.tools.client import Client, call, get, post
from tests.tools.http1 import LAST_CHUNK, chunk
from tests.tools.mcp_backend import McpServer, Stream, Streams, json_answer
from tests.tools.recording import Conn, Seen
from tests.wire.rig import Rig, bench, case

CONFIG = {"limits": {"json_hold": "64KiB"}}

EVENT = b': comment\r\nid: %d\r\nretry: 5\r\ndata: {"n": %d}\r\n\r\ndata:\n\n'


def event(number: int) -> bytes:
    return EVENT % (number, number)


async def opened(rig: Rig) -> tuple[Client, Stream]:
    """An event stream that answers a POST, with its head at the client."""
    streams = Streams()
    rig.script(streams)
    client = await rig.client()
    await client.send(post(call()))
    stream = await streams.next()
    head = await client.head()
    assert (head.status, head.all("content-type")) == (200, [b"text/event-stream"])
    rig.backend.take_one()
    return client, stream


# -- S1 ----------------------------------------------------------------------------------------


async def test_the_head_of_a_stream_leaves_before_its_first_event(rig: Rig) -> None:
    client, stream = await opened(rig)
    await stream.end()

    assert (await client.rest()).framing == "clean"


async def test_every_event_is_delivered_before_the_next_one_is_sent(rig: Rig) -> None:
    client, stream = await opened(rig)
    sent = b""
    for number in range(100):
        await stream.conn.send_chunk(event(number))
        sent += event(number)
        assert await client.body_until(event(number)) == sent
    await stream.end()
    answer = await client.rest()

    assert (answer.body, answer.framing) == (sent, "clean")


@pytest.mark.parametrize("cuts", [(1,), (7, 8, 9), (20, 45)], ids=str)
async def test_a_part_of_an_event_is_not_held_until_the_event_is_whole(
    rig: Rig, cuts: tuple[int, ...]
) -> None:
    client, stream = await opened(rig)
    text = event(1)
    sent = b""
    for start, end in zip((0, *cuts), (*cuts, len(text)), strict=True):
        await stream.conn.send_chunk(text[start:end])
        sent += text[start:end]
        assert await client.body_until(sent) == sent
    await stream.end()

    assert (await client.rest()).framing == "clean"


async def test_a_stream_of_one_byte_writes_arrives_byte_for_byte(rig: Rig) -> None:
    client, stream = await opened(rig)
    wire = b"".join(chunk(event(number)) for number in range(3)) + LAST_CHUNK
    await stream.conn.send_apart(wire[at : at + 1] for at in range(len(wire)))
    stream.finished()
    answer = await client.rest()

    assert (answer.body, answer.framing) == (event(0) + event(1) + event(2), "clean")


# -- S2 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("events", [0, 1, 5])
async def test_a_broken_stream_is_seen_as_broken_after_its_events(rig: Rig, events: int, how: str) -> None:
    client, stream = await opened(rig)
    for number in range(events):
        await stream.send(event(number))
    getattr(stream, how)()
    answer = await client.rest()

    assert answer.framing in ("truncated", "reset")
    assert answer.body == b"".join(event(number) for number in range(events))


async def test_a_clean_end_is_clean_and_the_connection_goes_on(rig: Rig) -> None:
    client, stream = await opened(rig)
    await stream.send(event(1))
    await stream.end()
    answer = await client.rest()
    rig.script(json_answer())
    following = await client.ask(post(call(2)))

    assert (answer.framing, answer.body) == ("clean", event(1))
    assert following.json["id"] == 2
    assert rig.backend.take_one().conn is stream.conn


@pytest.mark.parametrize(("size", "kept"), [(1000, False), (200_000, True)], ids=["held", "streamed"])
async def test_half_of_a_body_by_length_is_a_502_or_a_short_body(rig: Rig, size: int, kept: bool) -> None:
    async def half(request: Seen, conn: Conn) -> None:
        await request.whole()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
        await conn.send_apart([head.encode(), b"x" * (size // 2)])
        conn.reset()

    rig.script(half)
    client = await rig.client()
    answer = await client.ask(post(call()))
    rig.backend.take_one()

    if kept:
        assert (answer.status, answer.body) == (200, b"x" * (size // 2))
        assert answer.framing in ("truncated", "reset")
    else:
        assert (answer.status, answer.framing, answer.reason) == (502, "clean", "upstream_lost")
        assert answer.json["error"]["data"]["maybeExecuted"] is True


async def test_a_chunked_json_answer_beyond_the_hold_is_seen_as_broken(rig: Rig) -> None:
    async def half(request: Seen, conn: Conn) -> None:
        await request.whole()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        await conn.send_apart([head, chunk(b"x" * 100_000)])
        conn.close()

    rig.script(half)
    client = await rig.client()
    answer = await client.ask(post(call()))
    rig.backend.take_one()

    assert (answer.status, len(answer.body)) == (200, 100_000)
    assert answer.framing in ("truncated", "reset")


@pytest.mark.parametrize("how", ["reset", "close", "end"])
async def test_the_listening_stream_of_a_session_ends_cleanly_whatever_happens(rig: Rig, how: str) -> None:
    """SDK clients stop listening for good after two aborted GET streams."""
    server = McpServer()
    rig.script(server)
    client = await rig.client()
    session = await rig.session(client)
    await client.send(get(session))
    stream = await server.streams.next()
    await client.head("GET")
    await stream.send(event(1))
    ended = getattr(stream, how)()
    if ended is not None:
        await ended
    answer = await client.rest()
    rig.backend.take_one()

    assert (answer.status, answer.body, answer.framing) == (200, event(1), "clean")


LISTENING = {
    "events with a length": (200, "text/event-stream", "Content-Length: 100", b"data: 1\n\n"),
    "long error with a length": (500, "application/json", "Content-Length: 100000", b"x" * 80_000),
    "long error in chunks": (500, "application/json", "Transfer-Encoding: chunked", chunk(b"x" * 80_000)),
}


@pytest.mark.parametrize("case_", LISTENING.values(), ids=LISTENING.keys())
async def test_a_listening_answer_that_only_a_cut_can_show_as_broken_is_cut(
    rig: Rig, case_: tuple[int, str, str, bytes]
) -> None:
    """A clean end is for streams without a length: behind fewer bytes than announced, the next answer
    on the connection would be read as the rest of this one."""
    status, media, framing, body = case_

    async def half(request: Seen, conn: Conn) -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {media}\r\n{framing}\r\n\r\n"
        await conn.send_apart([head.encode(), body])
        conn.close()

    client = await rig.client()
    rig.script(McpServer())
    session = await rig.session(client)
    rig.script(half)
    answer = await client.ask(get(session), "GET")
    rig.backend.take_one()

    assert answer.status == status
    assert answer.framing in ("truncated", "reset")


# -- S5 ----------------------------------------------------------------------------------------


async def test_an_idle_stream_outlives_every_timeout_and_not_a_byte_is_added(tmp_path: Path) -> None:
    """Time is told by silent connections: each is closed when ``head_timeout`` has passed, which is
    as long as every other timeout here."""
    timeouts = {"response_head": "1s", "connect": "1s", "idle": "none"}
    over = {"limits": {"head_timeout": "1s"}, "pools": {"tools": {"timeouts": timeouts}}}
    async with bench(tmp_path, over) as rig, case(rig):
        client, stream = await opened(rig)
        await stream.send(event(1))
        for _ in range(3):
            silent = await rig.client()
            await silent.send(b"POST /mcp HTTP/1.1\r\n")
            assert (await silent.answer()).status == 408
            await silent.closed()
        await stream.send(event(2))
        await stream.end()
        answer = await client.rest()

        assert (answer.body, answer.framing) == (event(1) + event(2), "clean")


# -- S4 ----------------------------------------------------------------------------------------

SIZE = 200 * 1024 * 1024
PIECE = bytes(range(256)) * 256


@pytest.mark.parametrize("framing", ["chunked", "length"])
async def test_a_reader_that_stalls_stops_the_backend_and_costs_no_memory(rig: Rig, framing: str) -> None:
    written = 0

    async def flood(request: Seen, conn: Conn) -> None:
        nonlocal written
        await request.whole()
        if framing == "chunked":
            await conn.stream_head()
        else:
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {SIZE}\r\n\r\n"
            await conn.send(head.encode())
        while written < SIZE:
            await conn.send(chunk(PIECE) if framing == "chunked" else PIECE)
            written += len(PIECE)
        if framing == "chunked":
            await conn.send(LAST_CHUNK)

    rig.script(flood)
    before = rig.proxy.rss_bytes()
    client = await rig.client(receive_buffer=65536)
    await client.send(post(call()))
    await client.head()

    last = [-1]

    async def stands_still() -> bool:
        still = written == last[0] and written > 0
        last[0] = written
        return still

    for _ in range(20):
        await rig.proxy.until(stands_still, "the backend is blocked")
    assert written < SIZE // 4
    assert rig.proxy.rss_bytes() - before < 16 * 1024 * 1024

    digest, length = await swallow(client)
    assert length == SIZE
    expected = hashlib.sha256()
    for _ in range(SIZE // len(PIECE)):
        expected.update(PIECE)
    assert digest == expected.hexdigest()
    assert rig.proxy.rss_bytes() - before < 16 * 1024 * 1024
    rig.backend.take_one()


async def swallow(client: Client) -> tuple[str, int]:
    """Digest and length of the rest of the answer, without keeping it."""
    digest = hashlib.sha256()
    length = 0
    while piece := await client.next_piece():
        digest.update(piece)
        length += len(piece)
    assert (await client.rest()).framing == "clean"
    return digest.hexdigest(), length
