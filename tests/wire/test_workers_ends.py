"""How workers begin and end: signals, crashes, and the loss of their parent."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.tools import PATIENCE_S
from tests.tools.client import Client, post
from tests.tools.mcp_backend import INITIALIZE, Streams
from tests.wire.team import frozen, team


async def test_a_killed_worker_is_replaced_and_its_numbers_stay(tmp_path: Path) -> None:
    async with team(tmp_path) as workers:
        first, second = await workers.pids()
        await workers.call(first, 5)
        await workers.call(second, 2)
        assert await workers.proxy.metric("mcp_proxy_requests_total") == 7
        cpu_s = await workers.proxy.metric("process_cpu_seconds_total")
        os.kill(first, signal.SIGKILL)

        assert await workers.proxy.metric("mcp_proxy_requests_total") == 7
        await workers.replaced(first)
        assert await workers.proxy.metric("mcp_proxy_requests_total") == 7
        assert await workers.proxy.metric("mcp_proxy_worker_restarts_total") == 1
        assert await workers.proxy.metric("process_cpu_seconds_total") >= cpu_s
        replacement = (await workers.pids())[0]
        assert (await workers.pids())[1] == second
        await workers.call(replacement, 2)
        assert await workers.proxy.metric("mcp_proxy_requests_total") == 9
        assert f"worker {first} ended unexpectedly" in workers.proxy.output


async def test_what_an_operator_drains_stays_drained_in_workers_that_come_later(tmp_path: Path) -> None:
    async with team(tmp_path) as workers:
        name = quote(workers.backend.url, safe="")
        client = await Client.connect(workers.proxy.admin_port)
        drained = await client.ask(
            post(b"", "Connection: close", target=f"/backends/{name}/drain?for=1h"), "POST"
        )
        client.close()
        assert drained.status == 200, drained
        first, _ = await workers.pids()
        os.kill(first, signal.SIGKILL)
        await workers.replaced(first)
        replacement, second = await workers.pids()
        for pid, other in ((replacement, second), (second, replacement)):
            with frozen(other):
                client = await Client.connect(workers.proxy.port)
                refused = await client.ask(post(INITIALIZE))
            client.close()
            reason = refused.json["error"]["data"]["reason"]
            assert (pid, refused.status, reason) == (pid, 503, "backend_unavailable")
        assert workers.backend.take() == []


@pytest.mark.parametrize("everybody", [False, True])
async def test_a_signal_drains_all_workers(tmp_path: Path, everybody: bool) -> None:
    """``everybody``: supervisors and terminals signal every process that they see."""
    streams = Streams()
    async with team(tmp_path) as workers:
        pids = await workers.pids()
        opened = [await workers.stream(pid, streams) for pid in pids]
        for pid in [workers.proxy.pid, *(pids if everybody else [])]:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM if pid != workers.proxy.pid else 0)
        await workers.draining()
        await workers.proxy.until(workers.is_closed, "the port is closed")
        for client, stream in opened:
            await stream.send(b"data: last\n\n")
            await stream.end()
            answer = await client.rest()
            assert (answer.body, answer.framing) == (b"data: last\n\n", "clean")
            client.close()
        assert await workers.proxy.wait() == 0
        assert len(workers.proxy.access_lines()) == 4


async def test_a_second_signal_hurries(tmp_path: Path) -> None:
    streams = Streams()
    async with team(tmp_path, limits={"drain": "10m"}) as workers:
        opened = [await workers.stream(pid, streams) for pid in await workers.pids()]
        workers.proxy.process.send_signal(signal.SIGTERM)
        await workers.draining()
        workers.proxy.process.send_signal(signal.SIGTERM)
        assert await workers.proxy.wait() == 0
        assert len(workers.proxy.access_lines()) == 4
        for client, stream in opened:
            stream.finished()
            client.close()


async def test_a_worker_that_is_told_to_end_drains_and_is_replaced(tmp_path: Path) -> None:
    streams = Streams()
    async with team(tmp_path) as workers:
        first, second = await workers.pids()
        client, stream = await workers.stream(first, streams)
        os.kill(first, signal.SIGTERM)
        await stream.send(b"data: last\n\n")
        await stream.end()
        assert (await client.rest()).framing == "clean"
        client.close()

        await workers.replaced(first)
        assert (await workers.pids())[1] == second
        assert await workers.proxy.metric("mcp_proxy_requests_total") == 2


async def test_without_its_parent_no_worker_stays(tmp_path: Path) -> None:
    async with team(tmp_path) as workers:
        pids = [os.pidfd_open(pid) for pid in await workers.pids()]
        workers.proxy.process.kill()
        await workers.proxy.process.wait()
        for pid in pids:
            await readable(pid)
            os.close(pid)
        with socket.create_server(("127.0.0.1", workers.proxy.port)):
            pass


async def readable(descriptor: int) -> None:
    """A descriptor of a process is readable when the process has ended."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)


async def test_a_worker_is_started_again_until_it_can(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    async with team(tmp_path, telemetry={"access_log_file": str(pipe)}) as workers:
        first, second = await workers.pids()
        os.close(reading)
        os.kill(first, signal.SIGKILL)

        async def has_failed_twice() -> bool:
            return workers.proxy.output.count("a worker could not start") >= 2

        await workers.proxy.until(has_failed_twice, "it was tried again")
        await workers.call(second, 2)
        assert (await workers.proxy.admin("/readyz")).status == 200
        reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

        await workers.replaced(first)
        assert workers.proxy.traceback() == ""
    os.close(reading)


async def test_a_worker_that_cannot_start_is_one_sentence(tmp_path: Path) -> None:
    log = tmp_path / "pipe"
    os.mkfifo(log)  # nobody reads it
    with pytest.raises(AssertionError, match=r"the proxy ended \(3\)") as caught:
        async with team(tmp_path, telemetry={"access_log_file": str(log)}):
            pass
    output = str(caught.value)
    assert output.count("could not start") == 1
    assert output.count(str(log)) == 1
    assert "Traceback" not in output
