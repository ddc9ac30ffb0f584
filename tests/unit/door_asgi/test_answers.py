"""The portable door: framing, truncation, backpressure and departures, under real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mcp_proxy.downstream.asgi import AsgiDoor
from mcp_proxy.wire import Headers
from tests.tools import PATIENCE_S
from tests.tools.client import Client, get, post
from tests.unit.door_asgi.servers import Serve
from tests.unit.doorway import Conversation, ScriptedHandler, Served

EVENTS: Headers = [(b"content-type", b"text/event-stream")]
JSON: Headers = [(b"content-type", b"application/json"), (b"date", b"Mon, 01 Jan 2024 00:00:00 GMT")]


class Desk:
    """Hands served requests to the test, which answers them itself."""

    def __init__(self, handler: ScriptedHandler) -> None:
        self._arrived: asyncio.Queue[Served] = asyncio.Queue()
        handler.respond = self._arrived.put_nowait

    async def next(self) -> Served:
        async with asyncio.timeout(PATIENCE_S):
            return await self._arrived.get()


@pytest.fixture
def desk(handler: ScriptedHandler) -> Desk:
    return Desk(handler)


async def told(conversation: Conversation, event: str) -> None:
    """Wait until the door has told the exchange."""
    async with asyncio.timeout(PATIENCE_S):
        while event not in conversation.events:  # noqa: ASYNC110 -- a recording has no event of its own
            await asyncio.sleep(0.001)


async def test_an_answer_has_one_length_one_date_and_keeps_the_connection(client: Client, desk: Desk) -> None:
    for number in range(3):
        await client.send(post(b"{}"))
        served = await desk.next()
        served.reply.answer(200, JSON, b"%d" % number)
        answer = await client.answer()
        assert (answer.status, answer.body, answer.framing) == (200, b"%d" % number, "clean")
        assert answer.head.one("content-length") == b"1"
        assert len(answer.head.all("date")) == 1
        assert not answer.says_close
        assert served.conversation.events == []


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_body_has_no_framing(client: Client, desk: Desk, status: int) -> None:
    for _ in range(2):  # the second would read what the first left behind
        await client.send(post(b"{}"))
        (await desk.next()).reply.answer(status, [(b"x-a", b"1")], b"")
        answer = await client.answer()
        assert (answer.status, answer.framing) == (status, "clean")
        assert answer.head.one("content-length") is answer.head.one("transfer-encoding") is None


async def test_an_empty_answer_says_so(client: Client, desk: Desk) -> None:
    await client.send(post(b"{}"))
    (await desk.next()).reply.answer(202, [], b"")
    answer = await client.answer()
    assert (answer.status, answer.head.one("content-length"), answer.framing) == (202, b"0", "clean")


async def test_a_stream_shows_its_head_at_once_and_every_chunk_as_it_comes(
    client: Client, desk: Desk
) -> None:
    await client.send(get())
    served = await desk.next()
    served.reply.start(200, EVENTS, None)
    head = await client.head("GET")
    assert head.one("content-type") == b"text/event-stream"
    for number in range(3):
        served.reply.write(b"data: %d\n\n" % number)
        await client.body_until(b"data: %d\n\n" % number)
    served.reply.end()
    answer = await client.rest()
    assert (answer.body, answer.framing) == (b"data: 0\n\ndata: 1\n\ndata: 2\n\n", "clean")
    assert served.conversation.events == []


async def test_an_announced_length_is_kept(client: Client, desk: Desk) -> None:
    await client.send(post(b"{}"))
    served = await desk.next()
    served.reply.start(200, JSON, 4)
    served.reply.write(b"ab")
    await client.head()
    await client.body_until(b"ab")
    served.reply.write(b"cd")
    served.reply.end()
    answer = await client.rest()
    assert (answer.body, answer.framing) == (b"abcd", "clean")
    assert answer.head.one("content-length") == b"4"


@pytest.mark.parametrize("length", [None, 100])
@pytest.mark.parametrize("written", [b"data: 1\n\n", b""], ids=["some body", "no body"])
async def test_an_aborted_answer_is_visibly_truncated(
    client: Client, port: int, desk: Desk, length: int | None, written: bytes
) -> None:
    await client.send(get())
    served = await desk.next()
    served.reply.start(200, EVENTS, length)
    if written:
        served.reply.write(written)
    await client.head("GET")
    served.reply.abort()
    answer = await client.rest()
    assert (answer.body, answer.framing) in ((written, "truncated"), (written, "reset"))
    other = await Client.connect(port)
    await other.send(post(b"{}"))
    (await desk.next()).reply.answer(200, [], b"alive")
    assert (await other.answer()).body == b"alive"
    other.close()


async def test_what_was_written_before_the_abort_still_arrives(client: Client, desk: Desk) -> None:
    await client.send(post(b"{}"))
    served = await desk.next()
    served.reply.start(200, EVENTS, None)
    served.reply.write(b"data: 1\n\n")
    served.reply.abort()
    answer = await client.answer()
    assert (answer.body, answer.framing) in ((b"data: 1\n\n", "truncated"), (b"data: 1\n\n", "reset"))


async def test_an_abort_before_the_head_is_never_a_success(client: Client, desk: Desk) -> None:
    await client.send(post(b"{}"))
    (await desk.next()).reply.abort()
    answer = await client.answer()
    assert answer.status == 500


@pytest.mark.parametrize("phase", ["before the head", "after the head", "between events"])
async def test_a_client_that_leaves_ends_the_exchange(client: Client, desk: Desk, phase: str) -> None:
    await client.send(get())
    served = await desk.next()
    if phase != "before the head":
        served.reply.start(200, EVENTS, None)
        await client.head("GET")
    if phase == "between events":
        served.reply.write(b"data: 1\n\n")
        await client.body_until(b"1\n\n")
    client.close()
    await told(served.conversation, "disconnect")


@pytest.fixture
async def stalling(port: int) -> AsyncIterator[Client]:
    """Its kernel takes little, so that a reader that stalls is felt early."""
    client = await Client.connect(port, receive_buffer=16 * 1024)
    yield client
    client.close()


async def test_a_slow_reader_pauses_the_backend_and_gets_every_byte(stalling: Client, desk: Desk) -> None:
    await stalling.send(get())
    served = await desk.next()
    events = served.conversation.events
    served.reply.start(200, EVENTS, None)
    chunk, count = b"x" * 60_000, 0
    async with asyncio.timeout(PATIENCE_S):
        while "pause" not in events:
            served.reply.write(chunk)
            count += 1
            await asyncio.sleep(0)
    assert events == ["pause"]
    await stalling.head("GET")
    await stalling.body_until(chunk * (count - 1))
    await told(served.conversation, "resume")
    served.reply.end()
    answer = await stalling.rest()
    assert (len(answer.body), answer.framing) == (count * len(chunk), "clean")
    assert events == ["pause", "resume"]


async def test_a_paused_client_that_leaves_ends_the_exchange(stalling: Client, desk: Desk) -> None:
    await stalling.send(get())
    served = await desk.next()
    served.reply.start(200, EVENTS, None)
    async with asyncio.timeout(PATIENCE_S):
        while "pause" not in served.conversation.events:
            served.reply.write(b"x" * 60_000)
            await asyncio.sleep(0)
    stalling.reset()
    await told(served.conversation, "disconnect")


async def test_a_server_that_stops_ends_exchanges(serves: Serve, door: AsgiDoor, desk: Desk) -> None:
    async with serves(door) as port:
        client = await Client.connect(port)
        await client.send(get())
        served = await desk.next()
        served.reply.start(200, EVENTS, None)
        await client.head("GET")
    await told(served.conversation, "disconnect")
    client.close()


async def test_the_lifespan_ends_with_the_server(serves: Serve, door: AsgiDoor, calls: list[str]) -> None:
    async with serves(door):
        assert calls == ["startup"]
    assert calls == ["startup", "shutdown"]
