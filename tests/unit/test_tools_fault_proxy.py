"""Each fault, seen from both ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.tools.backend import Backend
from tests.tools.client import Client, call, post
from tests.tools.fault_proxy import FaultProxy
from tests.tools.mcp_backend import json_answer, raw_answer
from tests.tools.ports import free_ports
from tests.tools.proxy import merge
from tests.tools.recording import Conn
from tests.tools.tarpit import Tarpit

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n" + b"0123456789" * 2000


@asynccontextmanager
async def between() -> AsyncIterator[tuple[Client, FaultProxy, Backend]]:
    async with (
        Backend(raw_answer(ANSWER)) as backend,
        FaultProxy(backend.port) as proxy,
        await Client.connect(proxy.port) as client,
    ):
        yield client, proxy, backend


async def only_connection(backend: Backend) -> Conn:
    await backend.until(lambda: bool(backend.connections))
    return backend.connections[0]


async def until_reset(client: Client) -> bytes:
    received = b""
    try:
        while data := await client.receive():
            received += data
    except ConnectionResetError:
        return received
    raise AssertionError("FIN instead of RST")


async def test_without_faults_it_is_a_wire() -> None:
    async with between() as (client, _, backend):
        request = post(call())
        answer = await client.ask(request)
        seen = backend.take_one()
        client.close()

        assert (answer.body, seen.raw + seen.body) == (ANSWER[-20000:], request)
        assert await seen.conn.gone() == "fin"


async def test_slicing_bounds_every_read() -> None:
    async with between() as (client, proxy, _):
        proxy.down.slice_bytes = 999
        await client.send(post(call()))
        reads = [await client.receive()]
        while sum(map(len, reads)) < len(ANSWER):
            reads.append(await client.receive())

        assert b"".join(reads) == ANSWER
        assert max(map(len, reads)) == 999


@pytest.mark.parametrize("limit", [0, 1, 60, 5000])
async def test_a_reset_comes_after_exactly_so_many_bytes_and_reaches_both_ends(limit: int) -> None:
    async with between() as (client, proxy, backend):
        proxy.down.reset_after = limit
        await client.send(post(call()))

        assert await until_reset(client) == ANSWER[:limit]
        assert await (await only_connection(backend)).gone() == "rst"


async def test_a_fin_comes_after_exactly_so_many_bytes() -> None:
    async with between() as (client, proxy, _):
        proxy.down.close_after = 1000
        answer = await client.ask(post(call()))

        assert (answer.framing, len(answer.body)) == ("truncated", 1000 - len(answer.head.raw))


async def test_one_byte_is_corrupted() -> None:
    async with between() as (client, proxy, _):
        proxy.down.corrupt_at = len(ANSWER) - 1
        proxy.down.slice_bytes = 100
        answer = await client.ask(post(call()))

        assert answer.body == ANSWER[-20000:-1] + b"8"


async def test_a_half_open_connection_takes_bytes_and_gives_none() -> None:
    async with between() as (client, proxy, backend):
        proxy.up.swallow = True
        await client.send_apart([post(call())])

        assert backend.take() == []
        proxy.up.swallow = False
        assert (await client.ask(post(call()))).status == 200


async def test_a_black_hole_takes_nothing_until_it_is_lifted() -> None:
    async with between() as (client, proxy, backend):
        await only_connection(backend)
        proxy.up.black_hole = True
        await client.send(post(call()))
        answering = asyncio.create_task(client.answer())
        await asyncio.sleep(0)
        assert backend.take() == []

        proxy.up.black_hole = False
        proxy.changed()
        assert (await answering).status == 200


async def test_latency_and_bandwidth_pass_everything_on() -> None:
    async with between() as (client, proxy, _):
        proxy.up.latency_s = 0.001
        proxy.down.bytes_per_s = 10_000_000
        assert (await client.ask(post(call()))).body == ANSWER[-20000:]


async def test_a_cut_resets_both_ends() -> None:
    async with between() as (client, proxy, backend):
        conn = await only_connection(backend)
        proxy.cut()
        assert (await client.closed(), await conn.gone()) == ("reset", "rst")


async def test_a_target_that_refuses_resets_the_client() -> None:
    (port,) = free_ports(1)
    async with FaultProxy(port) as proxy, await Client.connect(proxy.port) as client:
        assert await client.closed() == "reset"


async def test_several_connections_count_their_bytes_apart() -> None:
    async with Backend(json_answer()) as backend, FaultProxy(backend.port) as proxy:
        proxy.down.corrupt_at = 9
        for _ in range(2):
            async with await Client.connect(proxy.port) as client:
                await client.send(post(call()))
                assert (await client.receive())[:12] == b"HTTP/1.1 300"


def test_free_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20


def test_merging_configurations_replaces_lists_and_merges_mappings() -> None:
    base = {"limits": {"body": 1, "head": 2}, "routes": [1], "x": 1}

    assert merge(base, {"limits": {"head": 3}, "routes": [2], "y": {"z": 1}}) == {
        "limits": {"body": 1, "head": 3},
        "routes": [2],
        "x": 1,
        "y": {"z": 1},
    }
    assert base["limits"] == {"body": 1, "head": 2}


async def test_a_connect_to_the_tarpit_hangs_until_it_is_given_up() -> None:
    async with Tarpit() as tarpit:
        assert tarpit.attempts() == 0
        connecting = asyncio.create_task(Client.connect(tarpit.port))
        async with asyncio.timeout(5):
            while tarpit.attempts() == 0:  # noqa: ASYNC110 - the kernel tells nobody
                await asyncio.sleep(0)

        connecting.cancel()
        await asyncio.wait([connecting])
        assert tarpit.attempts() == 0
