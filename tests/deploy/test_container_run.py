"""The image as a container: process 1, no root, no capability, nothing to write to; and it serves and drains.

Rules of this file: run by ``make image`` (needs root, no engine). ENTRYPOINT and CMD are those of the image;
the configuration is mounted where they look for it. Waits are for what the container says, not for time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.engineless import built, place
from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.client import Answer, Client, call, get, post
from tests.tools.container import Bind, Container, Run, running
from tests.tools.mcp_backend import McpServer, Streams, json_answer
from tests.tools.ports import free_ports
from tests.tools.redis_server import RedisServer

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(600)]

CONFIG = "/etc/mcp-proxy/proxy.yaml"


class Served:
    """A container that serves."""

    def __init__(self, container: Container, port: int, admin_port: int) -> None:
        self.container, self.port, self.admin_port = container, port, admin_port

    async def admin(self, path: str) -> Answer:
        client = await Client.connect(self.admin_port)
        try:
            return await client.ask(get("Connection: close", target=path), "GET")
        finally:
            client.close()

    async def ready(self) -> None:
        """The one wait with a pause: before the listener exists there is nothing to wait on."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                assert self.container.process.poll() is None, self.container.output
                with contextlib.suppress(OSError, EOFError):
                    if (await self.admin("/readyz")).status == 200:
                        return
                await asyncio.sleep(0.02)

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Asks again and again, with a round trip to the admin listener between two questions."""
        async with asyncio.timeout(PATIENCE_S):
            while not await condition():
                await self.admin("/livez")

    async def is_draining(self) -> bool:
        return (await self.admin("/readyz")).status == 503

    async def over(self) -> int:
        """The exit code."""
        return await asyncio.to_thread(self.container.process.wait, PATIENCE_S)

    def children(self) -> list[int]:
        text = Path(f"/proc/{self.container.pid}/task/{self.container.pid}/children").read_text()
        return [int(each) for each in text.split()]


@contextlib.asynccontextmanager
async def serving(backend: str, *, writable: Path | None = None, **config: Any) -> AsyncIterator[Served]:
    folder = place()
    port, admin_port = free_ports(2)
    file = folder.parent / "proxy.yaml"
    listen = {"listen": f"127.0.0.1:{port}", "admin": {"listen": f"127.0.0.1:{admin_port}"}}
    pools = {"pools": {"a": {"backends": [backend]}}}
    file.write_text(json.dumps({**listen, **pools, **config}))
    with running(built(), folder, Run(binds=[Bind(file, CONFIG)], writable=writable)) as container:
        served = Served(container, port, admin_port)
        await served.ready()
        yield served


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def test_it_serves_with_the_rights_of_nobody() -> None:
    async with Backend(json_answer()) as backend, serving(backend.url) as served:
        client = await Client.connect(served.port)
        answer = await client.ask(post(call()))
        status = status_of(served.container.pid)
        client.close()
    assert (answer.status, answer.json["result"]) == (200, {"method": "tools/call"})
    assert status["NSpid"].split()[-1] == "1"
    assert set(status["Uid"].split()) | set(status["Gid"].split()) == {"10001"}
    assert status["Groups"] == "10001"
    assert {status[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "CapInh")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"


async def test_probes_and_metrics_answer() -> None:
    async with Backend(json_answer()) as backend, serving(backend.url) as served:
        statuses = {path: (await served.admin(path)).status for path in ("/livez", "/readyz", "/metrics")}
    assert set(statuses.values()) == {200}, statuses


async def test_its_root_is_read_only_and_it_writes_nothing_where_it_is_not(tmp_path: Path) -> None:
    async with Backend(json_answer()) as backend:
        async with serving(backend.url) as served:
            touched = served.container.execute("touch", "/tmp/file", "/opt/mcp-proxy/file", "/file")
            assert touched.stderr.count("Read-only file system") == 3, touched.stderr
        written = place()
        async with serving(backend.url, writable=written) as served:
            client = await Client.connect(served.port)
            assert (await client.ask(post(call()))).status == 200
            client.close()
            await served.admin("/metrics")
            assert await asyncio.to_thread(served.container.stop) == 0
        assert [str(path) for path in written.rglob("*")] == []


async def test_sigterm_lets_calls_finish_ends_streams_cleanly_and_leaves_with_0() -> None:
    streams = Streams()
    async with Backend(streams) as backend, serving(backend.url) as served:
        calling = await Client.connect(served.port)
        await calling.send(post(call()))
        stream = await streams.next()
        await stream.send(b"data: 1\n\n")
        await calling.head()
        os.kill(served.container.pid, signal.SIGTERM)
        await served.until(served.is_draining)
        await stream.send(b"data: 2\n\n")
        await stream.end()
        answer = await calling.rest()
        code = await served.over()
        calling.close()
    assert (answer.framing, answer.body) == ("clean", b"data: 1\n\ndata: 2\n\n")
    assert code == 0, served.container.output


async def test_sighup_reads_the_mounted_configuration_again() -> None:
    async with Backend(json_answer()) as backend, serving(backend.url) as served:
        file = served.container.run.binds[0].what
        changed = json.loads(file.read_text()) | {"pools": {"a": {"backends": [backend.url], "drain": "7s"}}}
        file.write_text(json.dumps(changed))  # in place: the mount is of this very file
        os.kill(served.container.pid, signal.SIGHUP)

        async def is_in_force() -> bool:
            return bool((await served.admin("/config")).json["pools"]["a"]["drain"] == 7.0)

        await served.until(is_in_force)


async def test_as_process_1_with_workers_it_replaces_one_that_dies_and_leaves_no_zombie() -> None:
    with RedisServer() as redis:
        config: dict[str, Any] = {"workers": 2, "sessions": {"store": "redis", "url": redis.url}}
        async with Backend(McpServer()) as backend, serving(backend.url, **config) as served:
            before = served.children()
            os.kill(before[0], signal.SIGKILL)

            async def is_replaced() -> bool:
                now = served.children()
                return before[0] not in now and len(now) == len(before)

            await served.until(is_replaced)
            states = {status_of(pid)["State"][0] for pid in served.children()}
            os.kill(served.container.pid, signal.SIGTERM)
            code = await served.over()
    assert len(before) >= 2
    assert "Z" not in states
    assert code == 0, served.container.output


async def test_a_mistake_in_the_configuration_is_said_and_ends_it_with_2() -> None:
    folder = place()
    file = folder.parent / "proxy.yaml"
    file.write_text("pools: {a: {backend: [http://127.0.0.1:9/mcp]}}\n")
    with running(built(), folder, Run(binds=[Bind(file, CONFIG)])) as container:
        assert await asyncio.to_thread(container.process.wait, PATIENCE_S) == 2
        assert f"{CONFIG}:1" in container.output
        assert "Traceback" not in container.output


async def test_without_a_configuration_it_says_so_and_ends_with_2() -> None:
    with running(built(), place(), Run()) as container:
        assert await asyncio.to_thread(container.process.wait, PATIENCE_S) == 2
        assert CONFIG in container.output
        assert "Traceback" not in container.output


async def test_other_arguments_take_the_place_of_the_command() -> None:
    port, admin_port = free_ports(2)
    command = ["http://127.0.0.1:9/mcp", f"--listen=127.0.0.1:{port}", f"--admin=127.0.0.1:{admin_port}"]
    with running(built(), place(), Run(command=command)) as container:
        await Served(container, port, admin_port).ready()
        assert await asyncio.to_thread(container.stop) == 0


async def test_variables_alone_configure_it() -> None:
    port, admin_port = free_ports(2)
    env = {
        "MCP_PROXY_BACKENDS": "http://127.0.0.1:9/mcp",
        "MCP_PROXY_LISTEN": f"127.0.0.1:{port}",
        "MCP_PROXY_ADMIN": f"127.0.0.1:{admin_port}",
    }
    with running(built(), place(), Run(command=["serve"], env=env)) as container:
        await Served(container, port, admin_port).ready()
        status = container.execute("mcp-proxy", "backends", "--admin", f"http://127.0.0.1:{admin_port}")
    assert (status.returncode, status.stderr) == (0, "")
    assert "127.0.0.1:9/mcp" in status.stdout
