"""The ``httpx`` transport over HTTP/2: many calls share a connection, and none harms another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mcp_proxy.errors import StartupError
from mcp_proxy.tasks import Tasks
from mcp_proxy.upstream import Outgoing
from mcp_proxy.upstream.httpx import MULTIPLEX_LIMIT, HttpxTransport
from mcp_proxy.wire import Fields
from tests.tools.h2_backend import H2Backend, Stream
from tests.tools.receiver import RecordingReceiver
from tests.tools.tls import Authority
from tests.unit.upstream_httpx.scripts import LISTEN, POST

CANCEL = 8


@pytest.fixture
async def backend(authority: Authority) -> AsyncIterator[H2Backend]:
    async with H2Backend(whole, authority.listening("h2")) as running:
        yield running
    assert running.violations == []


@pytest.fixture
async def transport(backend: H2Backend, authority: Authority, tasks: Tasks) -> AsyncIterator[HttpxTransport]:
    transport = HttpxTransport(
        origin=f"https://127.0.0.1:{backend.port}",
        tasks=tasks,
        ssl_context=authority.trusting(),
        http2=True,
    )
    yield transport
    await transport.aclose()


async def whole(stream: Stream) -> None:
    await stream.answer(b'{"ok":true}', (b"content-type", b"application/json"))


async def unfinished(stream: Stream) -> None:
    await stream.head((b"content-type", b"text/event-stream"))
    await stream.data(b"data: 1\n\n")


async def silent(stream: Stream) -> None:
    pass


def ask(transport: HttpxTransport, outgoing: Outgoing = POST) -> RecordingReceiver:
    receiver = RecordingReceiver()
    transport.send(outgoing, receiver)
    return receiver


async def test_calls_share_a_connection_and_keep_their_bytes(
    backend: H2Backend, transport: HttpxTransport
) -> None:
    outgoing = Outgoing(b"POST", b"/m%7e?q=%zz", Fields([(b"x-a", b"1"), (b"x-a", b"2")]), b"{}")
    receivers = [ask(transport, outgoing) for _ in range(3)]
    for receiver in receivers:
        await receiver.over()
        assert receiver.head == (200, [(b"content-type", b"application/json")], 11)
        assert receiver.body == b'{"ok":true}'
    assert len(backend.connections) == transport.open_connections == 1
    assert [stream.body for stream in backend.streams] == [b"{}"] * 3
    assert backend.streams[0].headers == [
        (b":method", b"POST"),
        (b":authority", b"127.0.0.1:%d" % backend.port),
        (b":scheme", b"https"),
        (b":path", b"/m%7e?q=%zz"),
        (b"x-a", b"1"),
        (b"x-a", b"2"),
        (b"content-length", b"2"),
    ]


@pytest.mark.parametrize("handler", [unfinished, silent], ids=["mid-body", "before the head"])
async def test_cancelling_resets_the_stream_and_spares_its_neighbours(
    backend: H2Backend, transport: HttpxTransport, handler: object
) -> None:
    backend.handler = unfinished
    neighbour = ask(transport)
    await neighbour.until(lambda: bool(neighbour.body))
    backend.handler = unfinished if handler is unfinished else silent
    receiver = RecordingReceiver()
    call = transport.send(POST, receiver)
    await backend.until(lambda: len(backend.streams) == 2 and backend.streams[1].is_complete)
    if handler is unfinished:
        await receiver.until(lambda: bool(receiver.body))
    call.cancel()
    await backend.until(lambda: backend.streams[1].reset is not None)
    assert backend.streams[1].reset == CANCEL
    assert not receiver.is_over
    await backend.streams[0].data(b"data: 2\n\n", end=True)
    await neighbour.over()
    assert neighbour.body == b"data: 1\n\ndata: 2\n\n"
    assert neighbour.ended
    assert len(backend.connections) == 1


async def test_a_reader_that_stalls_does_not_stop_the_others(
    backend: H2Backend, transport: HttpxTransport
) -> None:
    size = 17 * 1024 * 1024  # more than the 16 MiB that httpcore2 grants one stream

    async def flood(stream: Stream) -> None:
        await stream.head()
        await stream.data(bytes(size), end=True)

    backend.handler = flood
    slow = RecordingReceiver(lambda event: call.pause() if event == "head" else None)
    call = transport.send(POST, slow)
    await slow.until(lambda: slow.head is not None)
    backend.handler = unfinished
    other = ask(transport)
    await other.until(lambda: bool(other.body))
    # The other call's task is what reads the connection now.
    h2 = backend.connections[0].h2
    await backend.until(lambda: h2.local_flow_control_window(backend.streams[0].number) == 0)
    await backend.streams[1].data(b"data: 2\n\n", end=True)
    await other.over()
    assert other.ended
    assert slow.body == b""
    call.resume()
    await slow.over()
    assert len(slow.body) == size
    assert len(backend.connections) == 1


async def test_a_long_stream_has_a_connection_that_closes_with_it(
    backend: H2Backend, transport: HttpxTransport
) -> None:
    backend.handler = unfinished
    receiver = RecordingReceiver()
    call = transport.send(LISTEN, receiver)
    await receiver.until(lambda: bool(receiver.body))
    backend.handler = whole
    await ask(transport).over()
    assert len(backend.connections) == transport.open_connections == 2
    call.cancel()
    await backend.until(lambda: backend.connections[0].is_lost)
    await ask(transport).over()
    assert len(backend.connections) == 2


async def test_more_calls_than_a_connection_may_carry_open_another(
    backend: H2Backend, transport: HttpxTransport
) -> None:
    backend.handler = silent
    receivers = [ask(transport) for _ in range(MULTIPLEX_LIMIT + 1)]
    await backend.until(lambda: len(backend.streams) == len(receivers))
    assert len(backend.connections) == transport.open_connections == 2
    for stream in backend.streams:
        await whole(stream)
    for receiver in receivers:
        assert (await receiver.over()).ended
    await backend.until(lambda: backend.connections[1].is_lost)
    assert transport.open_connections == 1


async def test_a_field_value_that_would_split_the_answer_is_invalid(
    backend: H2Backend, transport: HttpxTransport
) -> None:
    async def split(stream: Stream) -> None:
        await stream.head((b"x-a", b"1\r\nset-cookie: a=b"), end=True)

    backend.handler = split
    assert (await ask(transport).over()).verdict == ("HEAD", "invalid", True, False)


@pytest.mark.parametrize(
    "header",
    [(b"content-length", b"3"), (b"content-length", b"x"), (b"transfer-encoding", b"chunked")],
    ids=["more than announced", "not a number", "a transfer coding"],
)
async def test_contradictory_framing_is_never_a_clean_end(
    backend: H2Backend, transport: HttpxTransport, header: tuple[bytes, bytes]
) -> None:
    async def contradict(stream: Stream) -> None:
        await stream.head(header)
        await stream.data(b"four", end=True)

    backend.handler = contradict
    receiver = await ask(transport).over()
    assert receiver.error.kind == "invalid"


@pytest.mark.parametrize("how", ["reset", "lost"])
async def test_a_truncated_body_is_an_error_and_never_an_end(
    backend: H2Backend, transport: HttpxTransport, how: str
) -> None:
    async def truncate(stream: Stream) -> None:
        await unfinished(stream)
        if how == "reset":
            stream.conn.h2.reset_stream(stream.number)
            stream.conn.flush()
        else:
            stream.conn.transport.close()

    backend.handler = truncate
    receiver = await ask(transport).over()
    assert receiver.body == b"data: 1\n\n"
    assert receiver.verdict == ("BODY", "lost", True, False)
    backend.handler = whole
    assert (await ask(transport).over()).ended


async def test_interim_responses_and_trailers_are_swallowed(
    backend: H2Backend, transport: HttpxTransport
) -> None:
    async def talkative(stream: Stream) -> None:
        await stream.head((b"link", b"x"), status=b"103")
        await stream.head()
        await stream.data(b"a")
        stream.conn.h2.send_headers(stream.number, [(b"x-trailer", b"1")], end_stream=True)
        stream.conn.flush()

    backend.handler = talkative
    receiver = await ask(transport).over()
    assert (receiver.head, receiver.body, receiver.ended) == ((200, [], None), b"a", True)


async def test_closing_ends_calls_and_closes_the_connection(
    backend: H2Backend, transport: HttpxTransport
) -> None:
    backend.handler = unfinished
    receiver = ask(transport)
    await receiver.until(lambda: bool(receiver.body))
    await transport.aclose()
    assert receiver.verdict == ("BODY", "lost", True, False)
    await backend.until(lambda: backend.connections[0].is_lost)


async def test_without_the_library_the_proxy_does_not_start(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h2", None)
    with pytest.raises(StartupError, match="mcp-reverse-proxy\\[http2\\]"):
        HttpxTransport(origin="https://127.0.0.1:1", tasks=tasks, http2=True)
    await asyncio.sleep(0)
