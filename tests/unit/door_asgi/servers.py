"""ASGI servers as users start them, in the loop of the test.

Rules of this file: only what a test needs is set; everything else stays at the server's default.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import hypercorn
import hypercorn.asyncio
import uvicorn

from mcp_proxy.downstream.server import Server

Serve = Callable[[Any], contextlib.AbstractAsyncContextManager[int]]


@contextlib.asynccontextmanager
async def uvicorn_serves(app: Any, **options: Any) -> AsyncIterator[int]:
    """Yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        options = {"http": "httptools", "timeout_graceful_shutdown": 0, **options}
        config = uvicorn.Config(app, log_config=None, **options)
        server = Server(config)  # uvicorn's own, but for the signals
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            while not server.started and not serving.done():  # noqa: ASYNC110 -- there is no event for it
                await asyncio.sleep(0.001)
            yield sock.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


@contextlib.asynccontextmanager
async def hypercorn_serves(app: Any, **options: Any) -> AsyncIterator[int]:
    """Yields the port."""
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    config = hypercorn.Config()
    config.bind = [f"fd://{sock.detach()}"]
    config.graceful_timeout = 0.05
    config.errorlog = None
    for name, value in options.items():
        setattr(config, name, value)
    stop = asyncio.Event()
    started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def trigger() -> None:
        started.set_result(None)
        await stop.wait()

    serving = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=trigger))
    try:
        await asyncio.wait([started, serving], return_when=asyncio.FIRST_COMPLETED)
        yield port
    finally:
        stop.set()
        await serving
