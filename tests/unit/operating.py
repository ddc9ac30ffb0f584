"""Commands that operate a running proxy, run as they are typed."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process

import anyio.to_thread
from click.testing import CliRunner, Result

from mcp_proxy.cli.main import commands
from tests.tools import PATIENCE_S


async def run(address: str | None, *args: str, **environ: str) -> Result:
    """``mcp-proxy`` with these arguments; ``address``: of the admin listener in the environment."""
    cleared: dict[str, str | None] = dict.fromkeys(("MCP_PROXY_ADMIN", "MCP_PROXY_ADMIN_TOKEN"))
    cleared["MCP_PROXY_ADMIN"] = address

    def invoke() -> Result:
        return CliRunner().invoke(commands, args, env=cleared | environ, prog_name="mcp-proxy")

    async with asyncio.timeout(PATIENCE_S):
        return await anyio.to_thread.run_sync(invoke)


async def start(address: str, *args: str, stderr: int = PIPE) -> Process:
    """The same as a process of its own, that signals and terminals are something to."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mcp_proxy", *args),
        env=os.environ | {"MCP_PROXY_ADMIN": address},
        stdout=PIPE,
        stderr=stderr,
    )
