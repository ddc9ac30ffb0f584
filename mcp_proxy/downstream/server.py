"""The process around a data listener: uvicorn's server with our sockets and signals.

Rules of this file: a signal never ends the process by itself; the exit code says how it went.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from mcp_proxy.errors import StartupError

BACKLOG = 2048
"""Connections that wait for accept; the kernel caps it at net.core.somaxconn."""


def bind(host: str, port: int) -> socket.socket:
    """A bound socket. Raises StartupError with a sentence that names cause and cure."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise StartupError(f"cannot listen on {address}: {error.strerror}; choose another address") from error
    return sock


class Server(uvicorn.Server):
    """Leaves the signals to ``run_servers``. ``on_drain`` is called when it begins to stop."""

    def __init__(self, config: uvicorn.Config, on_drain: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        self._on_drain = on_drain

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._on_drain is not None:
            self._on_drain()
        await super().shutdown(sockets)


async def run_servers(
    data: tuple[Server, socket.socket],
    admin: tuple[Server, socket.socket] | None,
    *,
    on_started: Callable[[], None],
    on_reopen: Callable[[], None],
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. SIGUSR1 reopens log files.

    The admin listener goes last, so that the state of a drain can be seen.
    """
    server, sock = data
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.force_exit = server.should_exit  # the second signal hurries
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGUSR1, on_reopen)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    admin_serving = None
    try:
        await _started(server, serving)
        if admin is not None and server.started:
            admin_serving = asyncio.create_task(admin[0].serve(sockets=[admin[1]]))
            await _started(admin[0], admin_serving)
        if server.started:
            on_started()
        await serving
    finally:
        if admin is not None and admin_serving is not None:
            admin[0].should_exit = True
            await admin_serving
    return 0 if server.started else 3


async def _started(server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    """uvicorn has no event for it; it takes a few milliseconds."""
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)


def config(app: Any, sock: socket.socket, **options: Any) -> uvicorn.Config:
    """A uvicorn configuration without anything that writes, rewrites or answers by itself."""
    host, port = sock.getsockname()[:2]
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        backlog=BACKLOG,
        ws="none",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        log_config=None,
        **options,
    )
