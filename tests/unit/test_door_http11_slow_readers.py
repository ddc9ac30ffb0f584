"""Clients that read slowly or not at all: backpressure, and the end of their connections."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace

import pytest

from mcp_proxy import clock
from mcp_proxy.downstream.http11 import Http11Protocol
from mcp_proxy.downstream.settings import LINGER_S, DoorSettings
from mcp_proxy.wire import Reply
from tests.tools.client import Client
from tests.unit.doorway import Door, ScriptedHandler, post, settings, silent_door
from tests.unit.fakes import HIGH_WATER, settle, until

EVENT_STREAM = [(b"content-type", b"text/event-stream")]


def open_door() -> tuple[Door, Reply]:
    door = silent_door()
    door.feed(post(b"a"))
    (served,) = door.served
    return door, served.reply


# -- backpressure ------------------------------------------------------------------------------

BIG = b"x" * (HIGH_WATER + 1)


async def test_a_reader_that_stalls_pauses_the_exchange_and_later_resumes_it() -> None:
    door, reply = open_door()
    conversation = door.served[0].conversation
    reply.start(200, EVENT_STREAM, None)
    door.transport.is_stalled = True
    reply.write(BIG)
    assert conversation.events == ["pause"]
    reply.write(b"what was on its way")
    assert conversation.events == ["pause"]
    door.transport.peer_reads(100)
    assert conversation.events == ["pause"]
    door.transport.is_stalled = False
    door.transport.peer_reads()
    assert conversation.events == ["pause", "resume"]
    reply.end()
    assert door.response().body == BIG + b"what was on its way"


async def test_a_request_behind_an_answer_that_nobody_reads_is_paused_from_its_beginning() -> None:
    """The transport tells ``pause`` once; whoever comes later has to be told by the door. Without
    it a client that pipelines and does not read makes the proxy keep whole answers in memory."""
    door = silent_door()
    door.transport.is_stalled = True
    door.feed(post(b"one") + post(b"two"))
    door.served[0].reply.answer(200, [], BIG)
    await settle()
    second = door.served[1] if len(door.served) > 1 else None
    assert second is None or second.conversation.events[:1] == ["pause"]
    door.transport.is_stalled = False
    door.transport.peer_reads()
    await settle()
    assert len(door.served) == 2
    assert door.served[1].conversation.events[-1:] in ([], ["resume"])


async def test_a_request_that_arrives_while_an_answer_waits_is_paused_from_its_beginning() -> None:
    door = silent_door()
    door.transport.is_stalled = True
    door.feed(post(b"one"))
    door.served[0].reply.answer(200, [], BIG)
    door.feed(post(b"two"))
    assert len(door.served) == 1 or door.served[1].conversation.events == ["pause"]


async def test_a_disconnect_while_paused_is_a_disconnect() -> None:
    door, reply = open_door()
    reply.start(200, EVENT_STREAM, None)
    door.transport.is_stalled = True
    reply.write(BIG)
    door.transport.peer_resets()
    await settle()
    assert door.served[0].conversation.events == ["pause", "disconnect"]


# -- the end of a connection whose client reads slowly -----------------------------------------


@pytest.mark.parametrize("kind", ["close", "shutdown"])
async def test_a_client_that_reads_slowly_gets_all_of_its_last_answer(kind: str) -> None:
    """The grace of ``LINGER_S`` is for clients that do not read; who reads on must not be cut off."""
    door = silent_door()
    door.feed(post(b"a", b"Connection: close") if kind == "close" else post(b"a"))
    if kind == "shutdown":
        door.protocol.shutdown()
    door.transport.is_stalled = True
    body = b"x" * 1_000_000
    door.served[0].reply.answer(200, [], body)
    at_s = 0.0
    for _ in range(10):
        door.transport.peer_reads(110_000)
        at_s += LINGER_S * 0.75
        _sweep_in(door, at_s)
        await settle()
    assert door.response().framing == "whole"
    assert door.transport.lost == [None]


async def test_a_client_that_reads_slowly_gets_all_of_its_last_answer_with_bytes_behind_its_request() -> None:
    door = silent_door()
    door.feed(post(b"a", b"Connection: close"), b"behind")
    door.transport.is_stalled = True
    door.served[0].reply.answer(200, [], b"x" * 1_000_000)
    for number in range(10):
        door.transport.peer_reads(110_000)
        _sweep_in(door, (number + 1) * LINGER_S * 0.75)
        await settle()
    assert door.response().framing == "whole"


async def test_a_client_on_a_real_socket_that_reads_slowly_gets_all_of_its_last_answer() -> None:
    """The kernel holds megabytes, and says that it can take more only when a good part of them has
    been acknowledged: the transport's own buffer does not tell whether the client reads."""
    handler = ScriptedHandler()
    handler.respond = None
    process = settings(handler)
    connections: set[object] = set()
    config = SimpleNamespace(loaded=True, loaded_app=SimpleNamespace(http11=process))
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024 * 1024)  # inherited, and not tuned
    server = await asyncio.get_running_loop().create_server(
        lambda: Http11Protocol(config, SimpleNamespace(connections=connections)), sock=listener
    )
    client = await Client.connect(listener.getsockname()[1], receive_buffer=65536)
    try:
        received = await _read_slowly(client, handler, process, 6_000_000)
    finally:
        client.close()
        server.close()
        await until(lambda: not connections, 0.001)
    assert received > 6_000_000


async def _read_slowly(client: Client, handler: ScriptedHandler, process: DoorSettings, size: int) -> int:
    """Read 200 KB, let two seconds pass, and so on; how much came before the end."""
    await client.send(post(b"a", b"Connection: close"))
    await until(lambda: handler.served, 0.001)
    handler.served[0].reply.answer(200, [], b"x" * size)
    received = step = 0
    while True:
        step += 1
        while received < step * 200_000:
            try:
                piece = await client.receive()
            except ConnectionResetError:
                return received
            if not piece:
                return received
            received += len(piece)
        await settle()
        process.sweep(clock.now() + step * (LINGER_S + 0.1))


async def test_a_client_that_stops_reading_its_last_answer_is_cut_off() -> None:
    door = silent_door()
    door.feed(post(b"a", b"Connection: close"))
    door.transport.is_stalled = True
    door.served[0].reply.answer(200, [], BIG)
    for _ in range(3):
        _sweep_in(door, 1000.0)
    await settle()
    assert door.transport.lost == [None]
    assert door.process.connections == 0


async def test_an_idle_client_that_never_read_its_answer_does_not_keep_its_connection_for_ever() -> None:
    """``close`` waits for what is unsent, so it needs a bound of its own."""
    door = silent_door()
    door.transport.is_stalled = True
    door.feed(post(b"a"))
    door.served[0].reply.answer(200, [], BIG)
    for _ in range(3):
        door.expire()
        await settle()
    assert door.transport.lost == [None]
    assert door.process.connections == 0


def _sweep_in(door: Door, seconds: float) -> None:
    door.process.sweep(clock.now() + seconds)
