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
from mcp_proxy.sockets import keep_alive

BACKLOG = 2048
"""Connections that wait for accept; the kernel caps it at net.core.somaxconn."""


def bind(host: str, port: int) -> socket.socket:
    """A bound socket. Raises StartupError with a sentence that names cause and cure."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A client that vanished without a word under an idle stream is found out by probes; the
        # accepted sockets inherit them. Nothing is written on such a stream, so nothing else would.
        keep_alive(sock)
        sock.bind((host, port))
        sock.listen(BACKLOG)  # now, so that a second process fails here and not later
    except OSError as error:
        sock.close()
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise StartupError(f"cannot listen on {address}: {error.strerror}; choose another address") from error
    return sock


class Server(uvicorn.Server):
    """Leaves the signals to ``run_servers``. ``on_started`` is called when it listens,
    ``on_drain`` when it begins to stop."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_started: Callable[[], None] = lambda: None,
        on_drain: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self.on_started = on_started
        self._on_drain = on_drain

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_drain()
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves the lifespan out then, and records would be lost
            await self.lifespan.shutdown()


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
    admin_serving: asyncio.Task[None] | None = None

    def stop() -> None:
        server.should_exit = True

    def signalled() -> None:
        server.force_exit = server.should_exit  # the second one hurries
        stop()

    def data_started() -> None:
        nonlocal admin_serving
        if admin is None:
            on_started()
        else:
            admin[0].on_started = on_started
            admin_serving = loop.create_task(admin[0].serve(sockets=[admin[1]]))
            # An admin listener that ends by itself takes the data listener along: nobody would
            # see what goes on.
            admin_serving.add_done_callback(lambda _: stop())

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    loop.add_signal_handler(signal.SIGUSR1, on_reopen)
    server.on_started = data_started
    try:
        await server.serve(sockets=[sock])
    finally:
        if admin is not None and admin_serving is not None:
            admin[0].should_exit = True
            await admin_serving
    return 0 if server.started else 3


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
