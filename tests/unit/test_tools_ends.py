"""The client and the backend of the test tools, joined directly: each must be able to see what
the other did, or the tests that put a proxy between them prove nothing."""

from __future__ import annotations

import asyncio

import pytest

from tests.tools.backend import Backend
from tests.tools.client import Client, call, get, post
from tests.tools.http1 import LAST_CHUNK, Malformed, chunk
from tests.tools.mcp_backend import INITIALIZE, McpServer, Stream, Streams, json_answer, raw_answer
from tests.tools.recording import Conn, Seen
from tests.tools.wire import Wire, pieces, unread_by_peer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


async def test_a_request_is_recorded_byte_for_byte() -> None:
    async with Backend(json_answer()) as backend, await Client.connect(backend.port) as client:
        request = post(call(7), "X-A: 1", "x-a:  2")
        answer = await client.ask(request)
        seen = backend.take_one()

    assert answer.json == {"jsonrpc": "2.0", "id": 7, "result": {"method": "tools/call"}}
    assert seen.raw + seen.body == request
    assert (seen.method, seen.target, seen.is_complete) == (b"POST", b"/mcp", True)
    assert seen.head.all("x-a") == [b"1", b"2"]
    assert backend.take() == []


async def test_a_cut_request_arrives_in_separate_reads_and_reads_the_same() -> None:
    reads: list[bytes] = []
    request = post(b"5\r\nhello\r\n0\r\n\r\n", framing="Transfer-Encoding: chunked")

    async with Backend(raw_answer(OK)) as backend, await Client.connect(backend.port) as client:
        await client.ask(request)
        (conn,) = backend.connections
        receive = conn.receive

        async def spy(limit: int = 65536) -> bytes:
            reads.append(await receive(limit))
            return reads[-1]

        conn.receive = spy  # type: ignore[method-assign]
        await client.ask(request)  # the read in progress is not spied on
        await client.send_cut(request, range(1, len(request)))
        await client.answer()
        seen = backend.take()

    assert [one.body for one in seen] == [b"hello"] * 3
    assert [read for read in reads if read][-len(request) :] == pieces(request, range(1, len(request)))


async def test_consumed_returns_only_when_the_peer_has_read() -> None:
    async with Backend(raw_answer(OK)) as backend, await Client.connect(backend.port) as client:
        await backend.until(lambda: bool(backend.connections))
        (conn,) = backend.connections
        await conn.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert unread_by_peer(conn.sock) == 25
        waiting = asyncio.create_task(conn.consumed())
        await asyncio.sleep(0)
        assert not waiting.done()

        await client.receive(24)
        await asyncio.sleep(0)
        assert not waiting.done()
        await client.receive(1)
        await waiting


async def drop_without_reading(request: Seen, conn: Conn) -> None:
    conn.close()


@pytest.mark.parametrize(
    ("wire", "then", "framing", "body"),
    [
        (OK, "stay", "clean", b"hello"),
        (OK[:-2], "close", "truncated", b"hel"),
        (OK[:-2], "reset", "reset", b"hel"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "close", "until-close", b"hello"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"he"),
            "close",
            "truncated",
            b"he",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"he") + LAST_CHUNK,
            "close",
            "clean",
            b"he",
        ),
    ],
)
async def test_the_client_judges_how_a_body_ended(wire: bytes, then: str, framing: str, body: bytes) -> None:
    async with Backend(raw_answer(wire, then=then)) as backend, await Client.connect(backend.port) as client:
        answer = await client.ask(post(call()))

    assert (answer.framing, answer.body) == (framing, body)


async def test_interim_answers_are_counted_and_not_taken_for_the_answer() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    async with Backend(raw_answer(interim, OK)) as backend, await Client.connect(backend.port) as client:
        answer = await client.ask(post(call()))

    assert (answer.interim, answer.status, answer.body) == ([100, 103], 200, b"hello")


async def test_bytes_after_an_answer_are_noticed() -> None:
    async with (
        Backend(raw_answer(OK + b"surplus", then="close")) as backend,
        await Client.connect(backend.port) as client,
    ):
        assert (await client.ask(post(call()))).body == b"hello"
        with pytest.raises(Malformed, match="surplus"):
            await client.closed()


async def test_an_end_before_the_head_is_an_end_of_file() -> None:
    async with (
        Backend(raw_answer(b"HTTP/1.1 200", then="close")) as backend,
        await Client.connect(backend.port) as client,
    ):
        with pytest.raises(EOFError, match="truncated before a response head"):
            await client.ask(post(call()))


@pytest.mark.parametrize(("leave", "how"), [(Wire.close, "fin"), (Wire.reset, "rst")])
async def test_the_backend_knows_how_its_peer_left(leave: object, how: str) -> None:
    async with Backend(Streams()) as backend, await Client.connect(backend.port) as client:
        await client.send(post(call()))
        await client.head()
        (request,) = backend.take()
        leave(client)  # type: ignore[operator]
        assert await request.conn.gone() == how
        assert backend.violations == []


async def test_a_request_that_breaks_off_is_recorded_as_incomplete() -> None:
    async with Backend(json_answer()) as backend, await Client.connect(backend.port) as client:
        await client.send(post(call())[:-3])
        (request,) = await backend.arrived()
        client.close()
        await request.conn.gone()

    assert not request.is_complete


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(b"x", "Transfer-Encoding: chunked"),
        b"POST /mcp HTTP/1.1\r\n\r\n",
        b"POST /mcp HTTP/1.1\nHost: a\r\n\r\n",
        post(b"1\r\nx\r\n0\r\nA: b\r\n\r\n", framing="Transfer-Encoding: chunked"),
    ],
)
async def test_a_malformed_request_is_a_violation(request_bytes: bytes) -> None:
    async with Backend(json_answer()) as backend, await Client.connect(backend.port) as client:
        await client.send(request_bytes)
        assert await client.closed() == "reset"

    assert len(backend.violations) == 1


async def test_a_pipelined_request_is_a_violation() -> None:
    async with Backend(json_answer()) as backend, await Client.connect(backend.port) as client:
        await client.send(post(call(1)) + post(call(2)))
        assert [(await client.answer()).json["id"] for _ in range(2)] == [1, 2]

    assert backend.violations == ["a request behind one that has no answer yet"]


async def test_a_handler_that_fails_is_reported() -> None:
    async def broken(request: Seen, conn: Conn) -> None:
        raise ValueError("mistake")

    async with Backend(broken) as backend, await Client.connect(backend.port) as client:
        await client.send(post(call()))
        assert await client.closed() == "reset"

    assert "mistake" in backend.violations[0]


async def test_a_stream_is_sent_event_by_event() -> None:
    streams = Streams()
    async with Backend(streams) as backend, await Client.connect(backend.port) as client:
        await client.send(post(call()))
        stream: Stream = await streams.next()
        await client.head()
        for number in range(3):
            event = b"data: %d\n\n" % number
            sending = asyncio.create_task(stream.send(event))
            body = await client.body_until(event)
            await sending
            assert body.count(b"data:") == number + 1
        await stream.end()
        answer = await client.rest()
        assert answer.framing == "clean"
        assert (await _ended(backend)) == []


async def _ended(backend: Backend) -> list[Conn]:
    await backend.until(lambda: not backend.busy)
    return backend.busy


async def test_the_session_server_keeps_sessions() -> None:
    async with Backend(McpServer("s")) as backend, await Client.connect(backend.port) as client:
        opened = await client.ask(post(INITIALIZE))
        session = opened.head.one("mcp-session-id")
        assert session is not None
        assert session.startswith(b"s-")
        field = f"Mcp-Session-Id: {session.decode()}"
        assert (await client.ask(post(call(), field))).status == 200
        assert (await client.ask(post(b'{"jsonrpc":"2.0","method":"x"}', field))).status == 202
        assert (await client.ask(get(field, method="DELETE"), "DELETE")).status == 200
        assert (await client.ask(post(call(), field))).status == 404


async def test_a_backend_that_is_down_refuses_and_resets_and_comes_back_on_its_port() -> None:
    async with Backend(json_answer()) as backend:
        async with await Client.connect(backend.port) as client:
            await client.ask(post(call()))
            await backend.down()
            assert await client.closed() == "reset"
        with pytest.raises(ConnectionRefusedError):
            await Client.connect(backend.port)
        backend.listen()
        async with await Client.connect(backend.port) as client:
            assert (await client.ask(post(call()))).status == 200
