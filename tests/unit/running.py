"""An admin listener on a real socket, and ``mcp-proxy sessions`` that asks it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread
from click.testing import CliRunner, Result

from mcp_proxy.cli.main import commands
from mcp_proxy.downstream import server as servers
from mcp_proxy.sessions import SessionKey, SessionRecord
from tests.tools import PATIENCE_S
from tests.unit.registered import BACKEND, Registered

KEY = SessionKey("/mcp", b"secret-session-id")
MOVED = SessionRecord(BACKEND, "someone", b"secret-upstream-id", 1, b"secret-initialize", 1_700_000_000)


class Running:
    """An admin listener, and commands that ask it."""

    def __init__(self, view: Registered, address: str) -> None:
        self.view = view
        self.address = address

    async def run(self, *args: str, stdin: bytes | None = None, **environ: str) -> Result:
        """``mcp-proxy sessions`` with these arguments."""
        cleared: dict[str, str | None] = dict.fromkeys(("MCP_PROXY_ADMIN", "MCP_PROXY_ADMIN_TOKEN"))
        env = cleared | {"MCP_PROXY_ADMIN": self.address} | environ

        def invoke() -> Result:
            return CliRunner().invoke(commands, ["sessions", *args], stdin, env, prog_name="mcp-proxy")

        async with asyncio.timeout(PATIENCE_S):
            return await anyio.to_thread.run_sync(invoke)


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """``app`` on a socket of its own; its address."""
    sock = socket.create_server(("127.0.0.1", 0))
    server = servers.Server(servers.config(app, sock, lifespan="off", timeout_graceful_shutdown=1))
    with sock:
        task = asyncio.create_task(server.serve([sock]))
        yield f"127.0.0.1:{sock.getsockname()[1]}"
        server.should_exit = True
        await task
