"""Plain uvicorn, as users start it, is told to end while a client listens.

Rules of this file: no option that bounds its patience is given, unless a test says so. The stream is the
client's only connection: nothing else holds the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.client import Client, call, get, post
from tests.tools.mcp_backend import INITIALIZE, McpServer, Stream
from tests.tools.ports import free_ports
from tests.tools.proxy import ROOT

HARDENED = ("--http", "mcp_proxy.downstream.http11:Http11Protocol")
EVENT = b"data: {}\n\n"


@contextlib.asynccontextmanager
async def uvicorn(
    backend: Backend, folder: Path, *options: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """``uvicorn mcp_proxy.asgi:app``; yields its process and its port."""
    (port,) = free_ports(1)
    environment = os.environ | {
        "MCP_PROXY_BACKENDS": backend.url,
        "MCP_PROXY_SESSIONS": "signed",
        "MCP_PROXY_SESSION_KEY": "a secret of at least 32 characters",
        "MCP_PROXY_LISTEN": f"127.0.0.1:{port}",
    }
    with (folder / "uvicorn").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "uvicorn", "mcp_proxy.asgi:app", "--port", str(port), *options),
            cwd=ROOT,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        await _serves(port)
        yield process, port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers, too
        await process.wait()


async def _serves(port: int) -> None:
    """The wait with a pause: before the listener exists there is nothing to wait on."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(OSError, EOFError):
                async with await Client.connect(port) as client:
                    if (await client.ask(post(call()))).status == 200:
                        return
            await asyncio.sleep(0.05)


async def listening(port: int, server: McpServer) -> tuple[Client, Stream]:
    async with await Client.connect(port) as client:
        answer = await client.ask(post(INITIALIZE))
    listener = await Client.connect(port)
    await listener.send(get(f"Mcp-Session-Id: {(answer.head.one('mcp-session-id') or b'').decode()}"))
    stream = await server.streams.next()
    await listener.head("GET")
    await stream.send(EVENT)
    await listener.body_until(EVENT)
    return listener, stream


async def ended(process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(PATIENCE_S):
        return await process.wait()


async def test_the_supervisor_ends_with_a_stream_open(tmp_path: Path) -> None:
    """Else it joins a worker that waits for the stream, for ever, and hears no signal any more."""
    server = McpServer()
    async with (
        Backend(server) as backend,
        uvicorn(backend, tmp_path, "--workers", "2", *HARDENED) as (process, port),
    ):
        client, _ = await listening(port, server)
        process.send_signal(signal.SIGTERM)
        end = await client.rest()
        assert (end.framing, end.body) == ("clean", EVENT)
        assert await ended(process) == 0
        client.close()


async def test_the_supervisor_restarts_its_workers_with_a_stream_open(tmp_path: Path) -> None:
    server = McpServer()
    async with (
        Backend(server) as backend,
        uvicorn(backend, tmp_path, "--workers", "2", *HARDENED) as (process, port),
    ):
        client, _ = await listening(port, server)
        process.send_signal(signal.SIGHUP)
        end = await client.rest()
        assert (end.framing, end.body) == ("clean", EVENT)
        client.close()
        again, _ = await listening(port, server)
        process.send_signal(signal.SIGTERM)
        assert (await again.rest()).framing == "clean"
        assert await ended(process) == 0
        again.close()


@pytest.mark.parametrize("door", [HARDENED, ()], ids=["hardened", "portable"])
async def test_a_stream_at_the_portable_door_ends_with_the_servers_patience(
    tmp_path: Path, door: tuple[str, ...]
) -> None:
    """An ASGI application is not told of a shutdown while it answers; it is cancelled."""
    server = McpServer()
    async with (
        Backend(server) as backend,
        uvicorn(backend, tmp_path, "--timeout-graceful-shutdown", "1", *door) as (process, port),
    ):
        client, stream = await listening(port, server)
        process.send_signal(signal.SIGTERM)
        end = await client.rest()
        assert (end.framing, end.body) == ("clean", EVENT)
        assert await stream.conn.gone() in ("fin", "rst")
        assert await ended(process) in (0, -signal.SIGTERM)
        client.close()
