"""Several workers behind one address: what operators and clients see of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

from tests.tools.client import Client, call, get, post
from tests.tools.mcp_backend import INITIALIZE, McpServer, Streams
from tests.wire.team import frozen, team


async def test_the_workers_are_one_proxy_in_metrics_and_status(tmp_path: Path) -> None:
    async with team(tmp_path) as workers:
        first, second = await workers.pids()
        assert len({first, second, workers.proxy.pid}) == 3
        await workers.call(first, 3)
        await workers.call(second, 4)
        assert await workers.proxy.metric("mcp_proxy_requests_total", method="tools/call") == 7
        assert await workers.proxy.metric("mcp_proxy_request_duration_seconds_count") == 7
        assert await workers.proxy.metric("mcp_proxy_workers") == 2
        assert await workers.proxy.metric("mcp_proxy_backend_up") == 1
        status = await workers.proxy.status()
        assert status["pid"] == workers.proxy.pid
        assert status["counters"]["requests"] == 7
        assert status["limits"]["streams"] == 10_000
        process = await workers.proxy.metric("process_resident_memory_bytes")
        assert process > 2 * workers.proxy.rss_bytes()
        answer = await workers.proxy.admin("/readyz?verbose")
        assert f"[+] worker 1: pid {first} is ready\n" in answer.body.decode()
        assert "[+] workers: 2 of 2 ready\n" in answer.body.decode()
        assert await workers.proxy.stop() == 0
        assert len(workers.proxy.access_lines()) == 7


async def test_exchanges_in_progress_are_told_per_worker(tmp_path: Path) -> None:
    streams = Streams()
    async with team(tmp_path) as workers:
        opened = [await workers.stream(pid, streams) for pid in await workers.pids()]
        status = await workers.proxy.status()
        assert [worker["inflight"] for worker in status["workers"]] == [1, 1]
        assert await workers.proxy.metric("mcp_proxy_inflight") == 2
        for client, stream in opened:
            await stream.end()
            await client.rest()
            client.close()


async def test_the_others_serve_while_a_worker_does_not_answer(tmp_path: Path) -> None:
    async with team(tmp_path) as workers:
        first, second = await workers.pids()
        await workers.call(first, 3)
        assert await workers.proxy.metric("mcp_proxy_requests_total") == 3
        with frozen(first):
            async with await Client.connect(workers.proxy.port) as client:
                assert (await client.ask(post(call(1)))).status == 200
            assert await workers.proxy.metric("mcp_proxy_requests_total") == 4
            answer = await workers.proxy.admin("/readyz?verbose")
            assert answer.status == 200
            assert f"worker 1: pid {first} does not answer" in answer.body.decode()
        assert await workers.pids() == [first, second]


async def test_every_worker_goes_on_in_the_new_log_file(tmp_path: Path) -> None:
    log, old = tmp_path / "access.log", tmp_path / "access.log.1"
    async with team(tmp_path, telemetry={"access_log_file": str(log)}) as workers:
        log.rename(old)
        workers.proxy.process.send_signal(signal.SIGUSR1)

        async def is_reopened() -> bool:
            return log.exists()

        await workers.proxy.until(is_reopened, "there is a new file")
        await workers.proxy.metrics()  # behind the order to reopen, for every worker
        for pid in await workers.pids():
            await workers.call(pid, 2)
        assert await workers.proxy.stop() == 0
        assert len(log.read_text().splitlines()) == 4
        assert old.read_text() == ""


async def test_access_lines_of_several_workers_are_whole_in_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb")
    )
    received = asyncio.create_task(reader.read())
    request = post(call(name="\x01" * 250))  # six bytes each in the line
    async with team(tmp_path, telemetry={"access_log_file": str(pipe)}) as workers:
        clients = [await workers.connect(pid) for pid in await workers.pids() for _ in range(2)]

        async def load(client: Client) -> None:
            for _ in range(200):
                await client.ask(request)
            client.close()

        await asyncio.gather(*map(load, clients))
        assert await workers.proxy.stop() == 0
    lines = [json.loads(line) for line in (await received).splitlines()]
    transport.close()
    assert len(lines) == 804


async def test_a_session_is_everybodys(tmp_path: Path) -> None:
    async with team(tmp_path) as workers:
        first, second = await workers.pids()
        clients = [await workers.connect(pid) for pid in (first, second)]
        workers.backend.handler = McpServer()
        opened = await clients[0].ask(post(INITIALIZE))
        session = f"Mcp-Session-Id: {(opened.head.one('mcp-session-id') or b'').decode()}"
        for client in clients:
            assert (await client.ask(post(call(1), session))).status == 200
        assert (await clients[1].ask(get(session, method="DELETE"), "DELETE")).status == 200
        for client in clients:
            assert (await client.ask(post(call(1), session))).status == 404
            client.close()


async def test_the_admin_listener_lists_the_sessions_of_all_workers(tmp_path: Path) -> None:
    async with team(tmp_path) as workers:
        clients = [await workers.connect(pid) for pid in await workers.pids()]
        workers.backend.handler = McpServer()
        for client in clients:
            assert (await client.ask(post(INITIALIZE))).status == 200
            client.close()
        names: set[str] = set()
        page: dict[str, Any] = (await workers.proxy.admin("/sessions?limit=1")).json
        while True:
            names |= {session["name"] for session in page["sessions"]}
            assert {session["pool"] for session in page["sessions"]} <= {"tools"}
            if not page["cursor"]:
                break
            page = (await workers.proxy.admin(f"/sessions?limit=1&cursor={page['cursor']}")).json
        assert len(names) == 2
        for name in names:
            assert (await workers.proxy.admin(f"/sessions/{name}")).status == 200
        for cursor in ("x", "1", "7:", "00:", "-1:"):
            assert (await workers.proxy.admin(f"/sessions?cursor={cursor}")).status == 400
