"""What the network between proxy and backend may do: lose, cut, slow down, corrupt, lead in circles."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.tools.client import Client, call, post
from tests.tools.fault_proxy import FaultProxy, Faults
from tests.tools.mcp_backend import JSON, Streams, json_answer, result
from tests.tools.ports import free_ports
from tests.tools.proxy import launch
from tests.tools.recording import Conn, Seen
from tests.wire.rig import Rig, bench, case

TIMEOUTS = {"pools": {"tools": {"timeouts": {"response_head": "500ms", "idle": "500ms"}}}}
BODY = call(4, text="0123456789" * 300)


class Network:
    """A rig whose backend is reached through ``faults``."""

    def __init__(self, rig: Rig, faults: FaultProxy) -> None:
        self.rig = rig
        self.faults = faults

    async def fresh(self) -> Client:
        """A client; the proxy has no open connection to the backend, so faults see whole ones."""
        self.faults.cut()
        await self.rig.backend.until(lambda: not self.rig.backend.open_connections)
        return await self.rig.client()

    def heal(self) -> None:
        self.faults.up, self.faults.down = Faults(), Faults()
        self.faults.changed()
        self.faults.cut()


@asynccontextmanager
async def relayed(folder: Path, over: dict[str, Any]) -> AsyncIterator[Network]:
    (port,) = free_ports(1)
    async with FaultProxy(port) as faults:
        relay = [f"http://127.0.0.1:{faults.port}/mcp"]

        def through(urls: list[str]) -> list[str]:
            faults.target_port = int(urls[0].rpartition(":")[2].partition("/")[0])
            return relay

        async with bench(folder, over, also=through) as rig, case(rig):
            network = Network(rig, faults)
            yield network
            network.heal()
            await rig.backend.until(lambda: not rig.backend.open_connections)


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[Network]:
    async with relayed(tmp_path, {}) as network:
        yield network


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[Network]:
    """With timeouts that only a fault may reach."""
    async with relayed(tmp_path, TIMEOUTS) as network:
        yield network


async def test_a_request_that_is_swallowed_is_a_504_once(impatient: Network) -> None:
    client = await impatient.fresh()
    impatient.faults.up.swallow = True
    answer = await client.ask(post(BODY))

    assert (answer.status, answer.reason, answer.json["id"]) == (504, "upstream_timeout", 4)
    assert impatient.rig.taken() == []


async def test_an_answer_that_is_swallowed_is_a_504_and_not_a_repetition(impatient: Network) -> None:
    client = await impatient.fresh()
    impatient.faults.down.swallow = True
    answer = await client.ask(post(BODY))

    assert (answer.status, answer.json["error"]["data"]["maybeExecuted"]) == (504, True)
    assert [one.body for one in impatient.rig.taken()] == [BODY]


async def test_a_stream_silent_beyond_its_idle_timeout_is_seen_as_broken(
    impatient: Network,
) -> None:
    streams = Streams()
    impatient.rig.script(streams)
    client = await impatient.fresh()
    await client.send(post(BODY))
    stream = await streams.next()
    await client.head()
    await stream.send(b"data: 1\n\n")
    impatient.faults.down.black_hole = True
    await stream.conn.send_chunk(b"data: 2\n\n")
    answer = await client.rest()
    impatient.rig.taken()

    assert (answer.status, answer.body) == (200, b"data: 1\n\n")
    assert answer.framing in ("truncated", "reset")


@pytest.mark.parametrize(("at", "status"), [(0, 502), (5, 502), (9, 300)], ids=["IHTP", "HTTP/0.1", "300"])
async def test_an_answer_with_a_corrupted_byte_is_taken_at_its_word_or_refused(
    network: Network, at: int, status: int
) -> None:
    client = await network.fresh()
    network.faults.down.corrupt_at = at
    answer = await client.ask(post(BODY))

    assert (answer.status, answer.framing) == (status, "clean")
    assert [one.body for one in network.rig.taken()] == [BODY]


@pytest.mark.parametrize("limit", [0, 1, 16, 60, 100])
async def test_an_answer_cut_off_after_any_number_of_bytes_is_a_502(network: Network, limit: int) -> None:
    client = await network.fresh()
    network.faults.down.reset_after = limit
    answer = await client.ask(post(BODY))

    assert (answer.status, answer.framing) == (502, "clean")
    assert answer.json["error"]["data"]["maybeExecuted"] is True
    assert [one.body for one in network.rig.taken()] == [BODY]


@pytest.mark.parametrize("limit", [0, 1, 100, 2000])
async def test_a_request_cut_off_after_any_number_of_bytes_is_not_repeated(
    network: Network, limit: int
) -> None:
    client = await network.fresh()
    network.faults.up.reset_after = limit
    answer = await client.ask(post(BODY))

    assert (answer.status, answer.framing, answer.reason) == (502, "clean", "upstream_lost")
    assert [one for one in network.rig.taken() if one.is_complete] == []


@pytest.mark.parametrize("size", [1, 7, 1460])
async def test_slices_change_nothing(network: Network, size: int) -> None:
    async def echo(request: Seen, conn: Conn) -> None:
        await conn.answer(200, [JSON], result({"id": 4}, text=(await request.whole()).decode()))

    network.rig.script(echo)
    client = await network.fresh()
    network.faults.up.slice_bytes = network.faults.down.slice_bytes = size
    answer = await client.ask(post(BODY))

    assert answer.json["result"]["text"] == BODY.decode()
    assert network.rig.backend.take_one().body == BODY


async def test_latency_and_little_bandwidth_only_take_time(network: Network) -> None:
    client = await network.fresh()
    network.faults.up.latency_s = network.faults.down.latency_s = 0.01
    network.faults.up.bytes_per_s = 100_000
    answers = [await client.ask(post(BODY)) for _ in range(3)]

    assert [answer.status for answer in answers] == [200] * 3
    assert [one.body for one in network.rig.taken()] == [BODY] * 3


async def test_a_proxy_that_is_its_own_backend_says_so_once(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with FaultProxy(port) as circle:
        pool = {"backends": [f"http://127.0.0.1:{circle.port}/mcp"]}
        config = {"pools": {"tools": pool}, "routes": [{"path": "/mcp", "pool": "tools"}]}
        async with launch(config, tmp_path) as proxy:
            circle.target_port = proxy.port
            async with await Client.connect(proxy.port) as client:
                answer = await client.ask(post(call()))

            assert (answer.status, answer.reason) == (508, "loop_detected")
            assert len(circle.wires) == 1
            assert proxy.traceback() == ""


async def test_two_proxies_that_are_each_others_backends_say_so(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with FaultProxy(port) as circle:
        routes = [{"path": "/mcp", "pool": "tools"}]
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        back = {"pools": {"tools": {"backends": [f"http://127.0.0.1:{circle.port}/mcp"]}}, "routes": routes}
        async with launch(back, tmp_path / "a") as far:
            there = {"pools": {"tools": {"backends": [f"http://127.0.0.1:{far.port}/mcp"]}}, "routes": routes}
            async with launch(there, tmp_path / "b") as near, await Client.connect(near.port) as client:
                circle.target_port = near.port
                answer = await client.ask(post(call()))

            assert (answer.status, answer.reason) == (508, "loop_detected")
            assert len(circle.wires) == 1


async def test_without_faults_the_network_is_not_noticed(network: Network) -> None:
    network.rig.script(json_answer())
    client = await network.fresh()

    assert (await client.ask(post(BODY))).status == 200
    assert network.rig.backend.take_one().body == BODY
