"""What an operator reads from the metrics of a running proxy is what happened to its clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.tools import PATIENCE_S
from tests.tools.client import Client, call, get, post
from tests.tools.mcp_backend import INITIALIZE, McpServer, Streams, json_answer
from tests.tools.proxy import ProxyProcess
from tests.tools.recording import Conn, Seen
from tests.tools.redis_server import RedisServer
from tests.wire.rig import Rig, bench
from tests.wire.team import team


@contextlib.asynccontextmanager
async def alone(folder: Path, over: dict[str, Any] | None = None, *, backends: int = 1) -> AsyncIterator[Rig]:
    """A bench for one test, whose proxy may be in any state at the end."""
    async with bench(folder, over, backends=backends) as rig:
        try:
            yield rig
        finally:
            rig.hang_up()


async def judged(proxy: ProxyProcess) -> str:
    """What Prometheus' own tool has to say against the metrics, ``""`` if nothing."""
    text = await proxy.metrics()
    judge = await asyncio.create_subprocess_exec(
        *("promtool", "check", "metrics"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    async with asyncio.timeout(PATIENCE_S):
        complaints, _ = await judge.communicate(text.encode())
    return complaints.decode() or ("" if judge.returncode == 0 else "it failed without a word")


async def busy(rig: Rig) -> None:
    """A session, a stream that is cut, a failure and a refusal."""
    server = McpServer()
    rig.script(server)
    session = await rig.session()
    client = await rig.client()
    await client.send(get(session))
    stream = await server.streams.next()
    await client.head("GET")
    await stream.send(b"data: 1\n\n")
    stream.reset()
    assert (await (await rig.client()).ask(post(call(), target="/nowhere"))).status == 404
    await rig.quiet()


async def test_prometheus_has_nothing_against_the_metrics(tmp_path: Path) -> None:
    async with alone(tmp_path) as rig:
        assert await judged(rig.proxy) == ""
        await busy(rig)
        assert await judged(rig.proxy) == ""


async def test_prometheus_has_nothing_against_the_metrics_of_several_workers(tmp_path: Path) -> None:
    async with team(tmp_path) as workers:
        for pid in await workers.pids():
            await workers.call(pid, 2)
        assert await judged(workers.proxy) == ""


# -- exchanges ---------------------------------------------------------------------------------


async def test_bytes_are_those_of_bodies_in_both_directions(rig: Rig) -> None:
    names = "mcp_proxy_received_bytes_total", "mcp_proxy_sent_bytes_total"
    before = [await rig.proxy.metric(name, route="/mcp") for name in names]
    answer = await (await rig.client()).ask(post(call(1, text="x" * 1000)))
    (seen,) = rig.taken()
    after = [await rig.proxy.metric(name, route="/mcp") for name in names]

    assert after == [before[0] + len(seen.body), before[1] + len(answer.body)]
    assert len(seen.body) > 1000


async def test_the_first_byte_of_a_stream_does_not_wait_for_its_end_and_its_wait_is_no_overhead(
    rig: Rig,
) -> None:
    before = {name: await rig.proxy.metric(f"mcp_proxy_{name}_seconds_sum", route="/mcp") for name in TIMES}
    streams = Streams()
    rig.script(streams)
    client = await rig.client()
    await client.send(post(call(1)))
    stream = await streams.next()
    await client.head()
    # The proxy has turned often while it waited for the backend.
    for _ in range(50):
        await rig.proxy.admin("/livez")
    await stream.end()
    await client.rest()
    rig.taken()
    await rig.quiet()
    took = {
        name: await rig.proxy.metric(f"mcp_proxy_{name}_seconds_sum", route="/mcp") - before[name]
        for name in TIMES
    }

    assert 0 < took["time_to_first_byte"] < took["request_duration"]
    assert 0 <= took["overhead"] < took["request_duration"] / 2


TIMES = ("time_to_first_byte", "request_duration", "overhead")


# -- streams -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["end", "client", "backend"])
async def test_a_stream_says_how_long_it_lived_who_ended_it_and_how_long_it_was_silent(
    rig: Rig, reason: str
) -> None:
    async def count(family: str, **labels: str) -> float:
        return await rig.proxy.metric(f"mcp_proxy_stream_{family}", pool="tools", **labels)

    before = await count("duration_seconds_count"), await count("idle_seconds_count", reason=reason)
    server = McpServer()
    rig.script(server)
    session = await rig.session()
    client = await rig.client()
    await client.send(get(session))
    stream = await server.streams.next()
    await client.head("GET")
    await stream.send(b"data: 1\n\n")
    await client.body_until(b"\n\n")
    assert await rig.proxy.metric("mcp_proxy_backend_streams", backend=rig.backend.url) == 1
    if reason == "end":
        await stream.end()
    elif reason == "client":
        client.close()
    else:
        stream.reset()
    await rig.quiet()
    rig.taken()

    assert await count("duration_seconds_count") == before[0] + 1
    assert await count("idle_seconds_count", reason=reason) == before[1] + 1
    assert await count("idle_seconds_sum") <= await count("duration_seconds_sum")
    assert await rig.proxy.metric("mcp_proxy_backend_streams") == 0


async def test_a_stream_that_never_began_was_not_silent_since_the_machine_started(rig: Rig) -> None:
    async def empty(request: Seen, conn: Conn) -> None:
        await request.whole()
        await conn.answer(200, [("Content-Type", "text/event-stream")], b"")

    rig.script(empty)
    answer = await (await rig.client()).ask(post(call(1)))
    assert (answer.status, answer.body) == (200, b"")
    rig.taken()

    idle_s = await rig.proxy.metric("mcp_proxy_stream_idle_seconds_sum")
    assert idle_s <= await rig.proxy.metric("mcp_proxy_stream_duration_seconds_sum")


# -- backends ----------------------------------------------------------------------------------


async def test_what_is_at_each_backend_is_seen_and_so_is_its_drain(tmp_path: Path) -> None:
    async with alone(tmp_path, {"pools": {"tools": {"balance": "round_robin"}}}, backends=2) as rig:
        servers = [McpServer(str(number)) for number in range(2)]
        for backend, server in zip(rig.backends, servers, strict=True):
            backend.handler = server
        clients = [await rig.client() for _ in range(2)]
        sessions = [(await client.ask(post(INITIALIZE))).head.one("mcp-session-id") for client in clients]
        assert sorted((session or b"")[:1] for session in sessions) == [b"0", b"1"]
        await clients[0].send(get(f"Mcp-Session-Id: {(sessions[0] or b'').decode()}"))
        await clients[0].head("GET")
        busy, idle = rig.backends if (sessions[0] or b"")[:1] == b"0" else rig.backends[::-1]

        for backend, is_busy in ((busy, 1), (idle, 0)):
            labels = {"pool": "tools", "backend": backend.url}
            assert await rig.proxy.metric("mcp_proxy_backend_sessions", **labels) == 1
            assert await rig.proxy.metric("mcp_proxy_backend_inflight", **labels) == is_busy
            assert await rig.proxy.metric("mcp_proxy_backend_streams", **labels) == is_busy
        assert await rig.proxy.metric("mcp_proxy_backend_draining") == 0

        await drain(rig.proxy, busy.url)
        assert await rig.proxy.metric("mcp_proxy_backend_draining", backend=busy.url) == 1
        assert await rig.proxy.metric("mcp_proxy_backend_draining", backend=idle.url) == 0
        assert await rig.proxy.metric("mcp_proxy_backend_up") == 2


async def drain(proxy: ProxyProcess, backend: str) -> None:
    target = f"/backends/{backend.replace(':', '%3A').replace('/', '%2F')}/drain"
    async with await Client.connect(proxy.admin_port) as client:
        assert (await client.ask(post(b"", target=target))).status == 200


# -- the proxy itself --------------------------------------------------------------------------


async def test_a_proxy_that_drains_says_so_until_its_last_stream_has_ended(tmp_path: Path) -> None:
    streams = Streams()
    async with alone(tmp_path) as rig:
        assert await rig.proxy.metric("mcp_proxy_draining") == 0
        rig.script(streams)
        client = await rig.client()
        await client.send(post(call(1)))
        stream = await streams.next()
        await client.head()
        rig.proxy.process.send_signal(signal.SIGTERM)

        async def is_draining() -> bool:
            return await rig.proxy.metric("mcp_proxy_draining") == 1

        await rig.proxy.until(is_draining, "the proxy says that it drains")
        assert await rig.proxy.metric("mcp_proxy_inflight") == 1
        await stream.end()
        await client.rest()
        assert await rig.proxy.wait() == 0


async def test_every_tick_of_the_event_loop_is_observed(rig: Rig) -> None:
    before = await rig.proxy.metric("mcp_proxy_event_loop_lag_seconds_count")

    async def has_ticked() -> bool:
        return await rig.proxy.metric("mcp_proxy_event_loop_lag_seconds_count") >= before + 2

    await rig.proxy.until(has_ticked, "two more ticks")


async def test_without_metrics_nothing_is_measured_and_traffic_is_the_same(tmp_path: Path) -> None:
    async with alone(tmp_path, {"telemetry": {"metrics": False}}) as rig:
        rig.script(json_answer())
        assert (await (await rig.client()).ask(post(call(1)))).status == 200
        assert (await rig.proxy.admin("/metrics")).status == 404
        assert (await rig.proxy.status())["counters"] == {}
        assert (await rig.proxy.admin("/")).status == 200


# -- the registry ------------------------------------------------------------------------------


async def test_the_registry_is_timed_by_operation_and_seen_to_be_away(tmp_path: Path) -> None:
    with RedisServer() as redis:
        async with alone(tmp_path, {"sessions": {"store": "redis", "url": redis.url}}) as rig:
            server = McpServer()
            rig.script(server)
            session = await rig.session()
            client = await rig.client()
            assert (await client.ask(post(call(1), session))).status == 200
            assert (await client.ask(post(call(2), "Mcp-Session-Id: unknown"))).status == 404
            assert (await client.ask(get(session, method="DELETE"), "DELETE")).status == 200

            async def count(operation: str) -> float:
                return await rig.proxy.metric("mcp_proxy_store_duration_seconds_count", operation=operation)

            # Each of them twice: the bench had a conversation of its own, but asked for no unknown session.
            assert [await count(word) for word in ("create", "get", "delete")] == [2, 1, 2]
            assert 0 < await rig.proxy.metric("mcp_proxy_store_duration_seconds_sum") < PATIENCE_S
            assert await rig.proxy.metric("mcp_proxy_store_up", store="redis") == 1
            redis.kill()

            async def is_away() -> bool:
                return await rig.proxy.metric("mcp_proxy_store_up", store="redis") == 0

            await rig.proxy.until(is_away, "the registry is seen to be away")
            before = await count("get")
            assert (await client.ask(post(call(3), "Mcp-Session-Id: unknown"))).status == 503
            assert await count("get") == before
            assert await rig.proxy.metric("mcp_proxy_store_errors_total", operation="get") == 1


# -- several workers ---------------------------------------------------------------------------


async def test_the_metrics_of_workers_are_sums_and_those_of_a_worker_that_ended_stay(tmp_path: Path) -> None:
    streams = Streams()
    async with team(tmp_path) as workers:
        proxy = workers.proxy
        first, second = await workers.pids()
        opened = [await workers.stream(pid, streams) for pid in (first, second)]
        assert await proxy.metric("mcp_proxy_backend_streams", pool="tools") == 2
        assert await proxy.metric("mcp_proxy_backend_inflight", pool="tools") == 2
        assert await proxy.metric("mcp_proxy_store_up", store="signed") == 1
        assert await proxy.metric("mcp_proxy_draining") == 0
        for client, stream in opened:
            await stream.end()
            await client.rest()
            client.close()
        assert await proxy.metric("mcp_proxy_stream_duration_seconds_count", pool="tools") == 2
        # The calls by which the connections were found, and the streams.
        assert await proxy.metric("mcp_proxy_time_to_first_byte_seconds_count") == 4
        received = await proxy.metric("mcp_proxy_received_bytes_total")
        assert received == 2 * len(call(1)) + 2 * len(call(2))

        await workers.call(first, 1)
        await proxy.metrics()
        workers_cpu_s = await proxy.metric("process_cpu_seconds_total")
        os.kill(first, signal.SIGTERM)
        await workers.replaced(first)
        assert await proxy.metric("mcp_proxy_received_bytes_total") == received + len(call(1))
        assert await proxy.metric("process_cpu_seconds_total") >= workers_cpu_s
