"""The ``httpx`` transport over HTTP/1.1: reuse, deadlines, backpressure, and whose fault it is."""

from __future__ import annotations

import asyncio
import os
import resource
import socket

import httpx2
import pytest
import respx

from mcp_proxy.clock import now
from mcp_proxy.tasks import Tasks
from mcp_proxy.upstream import Outgoing
from mcp_proxy.upstream.httpx import HttpxTransport
from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.receiver import RecordingReceiver
from tests.tools.recording import Conn, Seen
from tests.tools.wire import unread_by_peer
from tests.unit.upstream_httpx.scripts import CHUNKED, LISTEN, POST, Handler, Send, events, raw, whole

# --- connections ---------------------------------------------------------------------------------


async def test_calls_reuse_a_connection_unless_told_not_to(
    backend: Backend, transport: HttpxTransport, send: Send
) -> None:
    await send().over()
    await send().over()
    await send(fresh=True).over()
    await send().over()
    assert [request.conn.number for request in backend.take()] == [0, 0, 1, 0]
    await backend.connections[1].gone()
    assert transport.open_connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", id="length"),
        pytest.param(CHUNKED + b"\r\n1\r\na\r\n0\r\n\r\n", id="chunked"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", id="204"),
    ],
)
async def test_bytes_behind_a_response_are_never_the_next_response(
    backend: Backend, send: Send, answer: bytes
) -> None:
    backend.handler = raw(answer + b"HTTP/1.1 200 OK\r\nX-Smuggled: 1\r\nContent-Length: 0\r\n\r\n")
    assert (await send().over()).ended
    backend.handler = whole
    receiver = await send().over()
    assert receiver.head == (200, [(b"content-type", b"application/json")], 11)
    assert [request.conn.number for request in backend.take()] == [0, 1]


@pytest.mark.parametrize(
    ("answer", "stale"),
    [(b"", True), (b"H", False), (b"HTTP/1.1 200 OK\r\nX:", False)],
    ids=["nothing", "one byte", "half a head"],
)
@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_only_a_reused_connection_without_a_byte_is_stale(
    backend: Backend, send: Send, answer: bytes, stale: bool, end: str
) -> None:
    await send().over()
    backend.handler = raw(answer, end)
    assert (await send().over()).verdict == ("HEAD", "lost", True, stale)
    assert (await send().over()).verdict == ("HEAD", "lost", True, False)
    assert [request.conn.number for request in backend.take()] == [0, 0, 1]


async def test_a_long_stream_has_its_connection_to_itself(
    backend: Backend, transport: HttpxTransport, send: Send
) -> None:
    await send().over()
    backend.handler = events
    stream = send(LISTEN)
    await stream.until(lambda: stream.body == b"data: 1\n\n")
    backend.handler = whole
    assert transport.open_connections == 2
    await send().over()
    assert [request.conn.number for request in backend.take()] == [0, 1, 0]


async def test_a_refused_connection_has_sent_nothing(backend: Backend, send: Send) -> None:
    await backend.refuse()
    assert (await send().over()).verdict == ("CONNECT", "refused", False, False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_process_without_descriptors_does_not_blame_the_backend(
    backend: Backend, tasks: Tasks, host: str
) -> None:
    transport = HttpxTransport(origin=f"http://{host}:{backend.port}", tasks=tasks)
    receiver = RecordingReceiver()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    try:
        transport.send(POST, receiver)
        await receiver.over()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    await transport.aclose()
    assert receiver.verdict == ("CONNECT", "exhausted", False, False)


async def test_a_silent_tls_peer_is_a_connect_timeout(tasks: Tasks) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        transport = HttpxTransport(
            origin=f"https://127.0.0.1:{silent.getsockname()[1]}", tasks=tasks, connect_timeout_s=0.05
        )
        receiver = RecordingReceiver()
        transport.send(POST, receiver)
        assert (await receiver.over()).verdict == ("CONNECT", "timeout", False, False)
        await transport.aclose()


# --- deadlines -----------------------------------------------------------------------------------


async def test_a_late_head_times_out(backend: Backend, transport: HttpxTransport, send: Send) -> None:
    backend.handler = raw(b"HTTP/1.1 200 ")
    receiver = send()
    (request,) = await backend.arrived()
    transport.sweep(now() + 4)
    assert not receiver.is_over
    transport.sweep(now() + 6)
    assert receiver.verdict == ("HEAD", "timeout", True, False)
    await request.conn.gone()


async def test_a_body_that_stalls_times_out_unless_the_client_is_the_slow_one(
    backend: Backend, transport: HttpxTransport
) -> None:
    backend.handler = events
    receiver = RecordingReceiver()
    call = transport.send(LISTEN, receiver)
    await receiver.until(lambda: bool(receiver.body))
    call.pause()
    transport.sweep(now() + 5.01)
    assert not receiver.is_over
    call.resume()
    transport.sweep(now() + 6)
    assert receiver.verdict == ("BODY", "timeout", True, False)
    await backend.take_one().conn.gone()


# --- backpressure and cancelling ------------------------------------------------------------------


async def test_a_paused_call_leaves_the_bytes_where_they_are(
    backend: Backend, transport: HttpxTransport
) -> None:
    size = 2 * 1024 * 1024

    async def flood(request: Seen, conn: Conn) -> None:
        await conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        await conn.send(bytes(size))

    backend.handler = flood
    receiver = RecordingReceiver(lambda event: call.pause() if event == "head" else None)
    call = transport.send(POST, receiver)
    (request,) = await backend.arrived()
    await receiver.until(lambda: receiver.head is not None)
    # Written by the backend, and left in the kernel by the transport.
    async with asyncio.timeout(PATIENCE_S):
        while (unread_by_peer(request.conn.sock) or 0) < 128 * 1024:  # noqa: ASYNC110 -- the kernel tells nobody
            await asyncio.sleep(0)
    assert receiver.body == b""
    call.resume()
    await receiver.over()
    assert receiver.ended
    assert receiver.body == bytes(size)


@pytest.mark.parametrize("event", ["head", "body"])
async def test_a_call_cancelled_by_its_receiver_delivers_nothing_more(
    backend: Backend, transport: HttpxTransport, event: str
) -> None:
    backend.handler = raw(CHUNKED + b"\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n")
    receiver = RecordingReceiver(lambda got: call.cancel() if got == event else None)
    call = transport.send(POST, receiver)
    (request,) = await backend.arrived()
    await request.conn.gone()
    assert (receiver.body, receiver.is_over) == (b"" if event == "head" else b"a", False)
    assert transport.open_connections == 0


@pytest.mark.parametrize("handler", [events, raw(b"HTTP/1.1 200 ")], ids=["mid-body", "before the head"])
@pytest.mark.parametrize("outgoing", [POST, LISTEN], ids=["call", "stream"])
async def test_cancelling_closes_the_backends_side(
    backend: Backend, transport: HttpxTransport, outgoing: Outgoing, handler: Handler
) -> None:
    backend.handler = handler
    receiver = RecordingReceiver()
    call = transport.send(outgoing, receiver)
    (request,) = await backend.arrived()
    if handler is events:
        await receiver.until(lambda: bool(receiver.body))
    call.cancel()
    await request.conn.gone()
    assert not receiver.is_over


async def test_a_call_cancelled_at_once_sends_nothing(backend: Backend, transport: HttpxTransport) -> None:
    receiver = RecordingReceiver()
    transport.send(POST, receiver).cancel()
    other = RecordingReceiver()
    transport.send(POST, other)
    await other.over()
    assert not receiver.is_over
    assert len(backend.take()) == 1
    await transport.aclose()
    assert repr(transport).endswith("open=0 calls=0>")


async def test_closing_ends_calls_in_progress_and_may_be_repeated(
    backend: Backend, transport: HttpxTransport, send: Send
) -> None:
    await send().over()
    backend.handler = events
    call, stream = send(), send(LISTEN)
    await call.until(lambda: bool(call.body))
    await stream.until(lambda: bool(stream.body))
    await transport.aclose()
    await transport.aclose()
    assert call.verdict == stream.verdict == ("BODY", "lost", True, False)
    assert transport.open_connections == 0
    for request in backend.take():
        await request.conn.gone()
    late = send()
    assert not late.is_over
    assert (await late.over()).verdict == ("CONNECT", "lost", False, False)


async def test_a_call_whose_task_is_ended_by_its_owner_still_gets_its_error(
    backend: Backend, tasks: Tasks, send: Send
) -> None:
    backend.handler = events
    receiver = send()
    await receiver.until(lambda: bool(receiver.body))
    await tasks.aclose()
    assert receiver.verdict == ("BODY", "lost", True, False)


# --- whose fault it is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (httpx2.ConnectError("x"), ("CONNECT", "refused", False, False)),
        (httpx2.ConnectTimeout("x"), ("CONNECT", "timeout", False, False)),
        (httpx2.PoolTimeout("x"), ("CONNECT", "timeout", False, False)),
        (httpx2.ProxyError("x"), ("CONNECT", "refused", False, False)),
        (httpx2.UnsupportedProtocol("x"), ("CONNECT", "invalid", False, False)),
        (httpx2.ReadTimeout("x"), ("HEAD", "timeout", True, False)),
        (httpx2.WriteTimeout("x"), ("HEAD", "timeout", True, False)),
        (httpx2.ReadError("x"), ("HEAD", "lost", True, False)),
        (httpx2.WriteError("x"), ("HEAD", "lost", True, False)),
        (httpx2.RemoteProtocolError("Server disconnected"), ("HEAD", "lost", True, False)),
        (httpx2.RemoteProtocolError("illegal status line"), ("HEAD", "invalid", True, False)),
        (httpx2.LocalProtocolError("x"), ("HEAD", "invalid", True, False)),
        (ConnectionResetError("x"), ("HEAD", "lost", True, False)),
        (ValueError("x"), ("HEAD", "invalid", True, False)),
    ],
    ids=repr,
)
async def test_every_exception_of_the_library_has_a_verdict(
    httpx2_mock: respx.Router,
    tasks: Tasks,
    error: Exception,
    verdict: tuple[str, str, bool, bool],
) -> None:
    httpx2_mock.post("http://backend.test/mcp").mock(side_effect=error)
    transport = HttpxTransport(origin="http://backend.test", tasks=tasks)
    receiver = RecordingReceiver()
    transport.send(POST, receiver)
    assert (await receiver.over()).verdict == verdict
