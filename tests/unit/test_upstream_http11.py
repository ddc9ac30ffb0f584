"""The connections to one backend: reused, expired, closed. On real sockets."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import pytest

from mcp_proxy import clock
from mcp_proxy.upstream import Outgoing
from mcp_proxy.upstream.http11 import IDLE_LIMIT, IDLE_S
from mcp_proxy.wire import Fields
from tests.tools.receiver import RecordingReceiver
from tests.tools.recording import Conn, Seen
from tests.unit.fakes import settle, until
from tests.unit.uplink import Rig, never, uplink


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with uplink() as rig:
        yield rig


# -- reuse -------------------------------------------------------------------------------------


async def test_a_connection_is_used_again(rig: Rig) -> None:
    for _ in range(3):
        receiver = await rig.ask()
        assert (receiver.body, receiver.error) == (b"ok", None)
    assert len(rig.backend.connections) == 1
    assert [seen.raw for seen in rig.backend.take()] == [
        b"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept: */*\r\ncontent-length: 2\r\n\r\n"
        % rig.backend.port
    ] * 3
    assert repr(rig.transport) == f"<Http11Transport 127.0.0.1:{rig.backend.port} open=1 idle=1>"


async def test_a_fresh_request_leaves_the_idle_connections_alone(rig: Rig) -> None:
    await rig.ask()
    await rig.ask(fresh=True)
    assert rig.transport.open_connections == 2
    assert [seen.conn.number for seen in rig.backend.take()] == [0, 1]


async def test_the_youngest_idle_connection_is_used_first(rig: Rig) -> None:
    calls = [rig.send()[0] for _ in range(3)]
    for receiver in calls:
        await receiver.over()
    await settle()
    last = rig.backend.take()[-1].conn.number
    for _ in range(5):
        await rig.ask()
    used = {seen.conn.number for seen in rig.backend.take()}
    assert len(used) == 1
    assert used == {last}


async def test_idle_connections_are_closed_oldest_first(rig: Rig) -> None:
    await asyncio.gather(*(rig.send()[0].over() for _ in range(3)))
    await settle()
    assert rig.transport.open_connections == 3
    rig.transport.sweep(clock.now() + IDLE_S - 0.5)
    assert rig.transport.open_connections == 3
    rig.transport.sweep(clock.now() + IDLE_S + 0.1)
    await rig.closed()
    assert (await rig.ask()).body == b"ok"


async def test_a_busy_connection_has_no_idle_deadline(rig: Rig) -> None:
    await rig.ask()
    rig.backend.handler = never
    receiver, call = rig.send()
    rig.transport.sweep(clock.now() + 1e6)
    await settle()
    assert (receiver.error, rig.transport.open_connections) == (None, 1)
    call.cancel()
    await rig.closed()


async def test_no_more_than_a_limit_of_connections_stay_idle(rig: Rig) -> None:
    await asyncio.gather(*(rig.send()[0].over() for _ in range(IDLE_LIMIT + 20)))
    await settle()
    rig.transport.sweep(clock.now())
    await until(lambda: rig.transport.open_connections <= IDLE_LIMIT)
    assert rig.transport.open_connections == IDLE_LIMIT


async def test_a_connection_that_the_backend_closed_while_idle_is_not_used(rig: Rig) -> None:
    await rig.ask()
    rig.backend.take_one().conn.close()
    await rig.closed()
    assert repr(rig.transport).endswith("open=0 idle=0>")
    assert (await rig.ask()).body == b"ok"


async def test_bytes_on_an_idle_connection_end_it(rig: Rig) -> None:
    await rig.ask()
    await rig.backend.take_one().conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
    await rig.closed()
    receiver = await rig.ask()
    assert receiver.body == b"ok"


async def test_a_used_connection_that_is_reset_before_any_byte_is_stale(rig: Rig) -> None:
    await rig.ask()

    async def reset(request: Seen, conn: Conn) -> None:
        conn.reset()

    rig.backend.handler = reset
    assert (await rig.ask()).verdict == ("HEAD", "lost", True, True)
    assert (await rig.ask()).verdict == ("HEAD", "lost", True, False)


async def test_a_stream_does_not_keep_the_body_of_its_request(rig: Rig) -> None:
    """A listening stream may last for days, and its request may have had megabytes."""

    async def stream(request: Seen, conn: Conn) -> None:
        await request.whole()
        await conn.stream_head()
        await conn.gone()

    rig.backend.handler = stream
    body = b"x" * 100_000
    receiver = RecordingReceiver()
    call = rig.transport.send(Outgoing(b"POST", b"/", Fields(), body, stream=True), receiver)
    await receiver.until(lambda: receiver.head is not None)
    await settle()
    assert sys.getrefcount(body) == 2, "this variable and the argument"
    call.cancel()


# -- timeouts ----------------------------------------------------------------------------------


async def test_the_head_timeout_ends_a_request_without_a_head(rig: Rig) -> None:
    rig.backend.handler = never
    transport = rig.to("127.0.0.1", rig.backend.port, head_timeout_s=3.0)
    receiver, _ = rig.send(transport=transport)
    await rig.backend.arrived()
    transport.sweep(clock.now() + 2.5)
    assert receiver.error is None
    transport.sweep(clock.now() + 3.1)
    assert receiver.verdict == ("HEAD", "timeout", True, False)
    await rig.closed(transport)


async def test_the_idle_timeout_runs_between_bytes_and_not_while_we_do_not_read(rig: Rig) -> None:
    async def slow(request: Seen, conn: Conn) -> None:
        await conn.stream_head()
        await conn.send_chunk(b"one")
        await conn.gone()

    rig.backend.handler = slow
    transport = rig.to("127.0.0.1", rig.backend.port, idle_timeout_s=3.0, head_timeout_s=1.0)
    receiver, call = rig.send(transport=transport)
    await receiver.until(lambda: receiver.body == b"one")
    transport.sweep(clock.now() + 2.5)
    assert receiver.error is None
    call.pause()
    transport.sweep(clock.now() + 3.1)
    transport.sweep(clock.now() + 3.1)
    assert receiver.error is None
    call.resume()
    transport.sweep(clock.now() + 1e6)
    assert receiver.verdict == ("BODY", "timeout", True, False)
    await rig.closed(transport)


async def test_timeouts_do_not_outlive_their_request(rig: Rig) -> None:
    transport = rig.to("127.0.0.1", rig.backend.port, idle_timeout_s=1.0, head_timeout_s=1.0)
    for _ in range(3):
        await rig.ask(transport=transport)
        transport.sweep(clock.now() + 2.0)
        assert transport.open_connections == 1
    await transport.aclose()
    await rig.closed(transport)


# -- closing -----------------------------------------------------------------------------------


async def test_closing_ends_idle_and_busy_connections_and_is_idempotent(rig: Rig) -> None:
    await rig.ask()
    rig.backend.handler = never
    busy, _ = rig.send()
    await rig.backend.arrived(2)
    rig.send(fresh=True)
    await rig.backend.arrived(3)
    await rig.transport.aclose()
    await rig.transport.aclose()
    assert busy.verdict is not None
    assert busy.verdict[:2] == ("HEAD", "lost")
    await rig.closed()


async def test_closing_ends_a_connect_in_progress(rig: Rig) -> None:
    """ "Close idle connections and abort calls in progress": a call that is still being dialled is one."""
    receiver, _ = rig.send()
    await rig.transport.aclose()
    await receiver.over()
    assert receiver.error is not None
    await settle(20)
    assert rig.transport.open_connections == 0
    assert rig.backend.take() == []


async def test_a_connection_that_is_released_after_closing_is_closed(rig: Rig) -> None:
    receiver, _ = rig.send()
    await until(lambda: rig.transport.open_connections)
    await rig.transport.aclose()
    await receiver.over()
    await rig.closed()
