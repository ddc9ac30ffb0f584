"""The stage of ``make load``: the shipped nginx, two replicas of the proxy, Redis, two MCP servers.

Rules of this file: everything is what an operator would run, from the files that are shipped; only addresses
and certificates are filled in. A restart is a rollout's: SIGTERM, wait for the end, start again at the same
place, wait until it is ready, then the next. Everything that is started here ends with the block.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tools import PATIENCE_S
from tests.tools.nginx_shipped import NAME, RunningNginx, install, run
from tests.tools.nginx_site import EVERYBODY, Replica
from tests.tools.ports import free_ports
from tests.tools.proxy import ROOT
from tests.tools.redis_server import RedisServer

DRAIN_DELAY = "3s"
"""Longer than nginx keeps an idle connection (``keepalive_timeout 900ms``), as docs/nginx.md asks for."""

TRACEBACK = "Traceback (most recent"


@dataclass
class Stage:
    nginx: RunningNginx
    replicas: list[Replica]

    @property
    def url(self) -> str:
        return f"https://{NAME}:{self.nginx.port}/mcp"

    @property
    def certificate(self) -> Path:
        return self.nginx.installed.certificate

    async def roll(self) -> None:
        """Restart every replica, one after the other."""
        for replica in self.replicas:
            await replica.stop()
            await replica.start()


def tracebacks(folder: Path) -> list[str]:
    """The first unhandled error of every start of every replica, once all have ended."""
    found = []
    for log in sorted(folder.glob("replica-*/start-*/stderr")):
        text = log.read_text(errors="replace")
        at = text.find(TRACEBACK)
        if at >= 0:
            found.append(f"{log.parent.relative_to(folder)}: {text[max(0, at - 300) : at + 4000]}")
    return found


@contextlib.asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Stage]:
    """``folder`` exists and is empty; it gets configurations and logs."""
    async with contextlib.AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        servers = [await stack.enter_async_context(_server(folder, number)) for number in range(2)]
        config: dict[str, Any] = {
            "external_url": f"https://{NAME}",
            "trusted_proxies": ["127.0.0.0/8"],
            "sessions": {"store": "redis", "url": redis.url},
            "limits": {"drain_delay": DRAIN_DELAY},
            "pools": {"tools": {"backends": servers}},
            "routes": [{"path": "/mcp", "pool": "tools"}],
        }
        replicas = [Replica(config, folder / f"replica-{number}") for number in range(2)]
        for replica in replicas:
            stack.push_async_callback(replica.aclose)
            await replica.start()
        installed = install([replica.port for replica in replicas], folder / "nginx", unlimited=EVERYBODY)
        yield Stage(await stack.enter_async_context(run(installed)), replicas)


@contextlib.asynccontextmanager
async def _server(folder: Path, number: int) -> AsyncIterator[str]:
    """One of the bundled MCP servers; its URL."""
    (port,) = free_ports(1)
    with (folder / f"server-{number}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mcp_proxy.load.stub", "--port", str(port)),
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            url = (await process.stdout.readline()).decode().strip()
        assert url, f"server {number} did not start"
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(PATIENCE_S):
            await process.wait()
