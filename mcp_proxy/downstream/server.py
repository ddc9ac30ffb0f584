"""The process around a data listener: uvicorn's server with our sockets and signals.

Rules of this file: a signal never ends the process by itself; the exit code says how it went. A drain
has phases: at once nobody is told any more that it is ready; for ``drain_delay_s`` everything is served
all the same; then the listener closes, streams end one after the other, and calls have the grace.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from mcp_proxy.errors import StartupError
from mcp_proxy.sockets import keep_alive
from mcp_proxy.tasks import Tasks

logger = logging.getLogger("mcp_proxy")

STARTUP_FAILURE = 3
"""As uvicorn's: the application could not start."""

BACKLOG = 2048
"""Connections that wait for accept; the kernel caps it at net.core.somaxconn."""

ADOPT_S = 2.0
"""How long the TLS handshakes of the last connections may take."""


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


class Signals:
    """SIGTERM and SIGINT, whichever comes: the first one drains, any other hurries."""

    def __init__(self, drain: Callable[[], None], hurry: Callable[[], None]) -> None:
        self._drain = drain
        self._hurry = hurry
        self._is_second = False

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        (self._hurry if self._is_second else self._drain)()
        self._is_second = True


class Server(uvicorn.Server):
    """Leaves the signals to ``run_servers``. ``on_started`` is called when it listens, ``on_drain`` when
    it begins to stop, ``drain_delay_s`` before it does anything else about that. A TLS handshake
    may take ``handshake_timeout_s``."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_started: Callable[[], None] = lambda: None,
        on_drain: Callable[[], None] = lambda: None,
        drain_delay_s: float = 0.0,
        handshake_timeout_s: float | None = None,
    ) -> None:
        super().__init__(config)
        self._handshake_timeout_s = handshake_timeout_s
        self.is_draining = False
        self._has_told = False
        self.on_started = on_started
        self._on_drain = on_drain
        self.drain_delay_s = drain_delay_s

    def drain(self) -> None:
        """Begin to end; what SIGTERM does, and a request of an operator. Idempotent."""
        if self.is_draining:
            return
        self.is_draining = True
        if self.drain_delay_s > 0 and self.started:
            self._tell()
            asyncio.get_running_loop().call_later(self.drain_delay_s, self.stop)
        else:
            # Told when the listener closes, a tick from now: connections that close behind their answers
            # are followed by new ones, of which one might come in the very instant of that.
            self.stop()

    def _tell(self) -> None:
        if not self._has_told:
            self._has_told = True
            self._on_drain()

    def stop(self) -> None:
        """``drain`` without the delay, or without the rest of it. Idempotent."""
        self.drain()
        self.should_exit = True

    def hurry(self) -> None:
        """``stop`` without waiting for exchanges. Idempotent."""
        self.stop()
        if not self.force_exit:
            self.force_exit = True
            logger.info("hurrying: nothing is waited for any more")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, on sockets that are bound, with a limit to the TLS handshake: without one a silent
        client would hold its descriptor for a minute, and no door would know of it."""
        assert sockets is not None
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise SystemExit(STARTUP_FAILURE)
        loop, config = asyncio.get_running_loop(), self.config
        self.servers = [
            await loop.create_server(self._protocol, sock=sock, backlog=config.backlog, **self._tls())
            for sock in sockets
        ]
        self.started = True
        self.on_started()

    def _tls(self) -> dict[str, Any]:
        if self.config.ssl is None:
            return {}
        return {"ssl": self.config.ssl, "ssl_handshake_timeout": self._handshake_timeout_s}

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.drain()
        self._tell()
        if not self.force_exit:
            await self._accept_rest(sockets or [])
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves the lifespan out then, and records would be lost
            await self.lifespan.shutdown()

    async def _accept_rest(self, sockets: list[socket.socket]) -> None:
        """Stop listening, and leave nobody behind: a connection that the kernel has accepted would be
        reset, and a proxy in front that has sent a POST on it must not send that elsewhere."""
        waiting = [connection for sock in sockets for connection in _waiting(sock)]
        for server in self.servers:
            server.close()
        tasks = Tasks()
        if adopting := [tasks.spawn(self._adopt(connection)) for connection in waiting]:
            await asyncio.wait(adopting, timeout=ADOPT_S)
            await tasks.aclose()

    async def _adopt(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # its client has left already, or does not speak TLS
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, connection, **self._tls()
            )


def _waiting(sock: socket.socket) -> Iterator[socket.socket]:
    """Connections that nobody has taken yet. ``sock`` does not block."""
    while True:
        try:
            connection, _ = sock.accept()
        except OSError:  # none is left, or no descriptor for it
            return
        connection.setblocking(False)
        yield connection


async def run_servers(
    data: tuple[Server, socket.socket],
    admin: tuple[Server, socket.socket] | None,
    *,
    on_started: Callable[[], None],
    on_reopen: Callable[[], None],
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. SIGUSR1 reopens log files.

    A second signal hurries; one behind a ``drain`` that somebody asked for otherwise does not, because
    that is how a pod ends: its hook, then the signal. The admin listener goes last, so that the state of
    a drain can be seen.
    """
    server, sock = data
    loop = asyncio.get_running_loop()
    admin_serving: asyncio.Task[None] | None = None

    signals = Signals(server.drain, server.hurry)

    def data_started() -> None:
        nonlocal admin_serving
        if admin is None:
            on_started()
        else:
            admin[0].on_started = on_started
            admin_serving = loop.create_task(admin[0].serve(sockets=[admin[1]]))
            # An admin listener that ends by itself takes the data listener along: nobody would
            # see what goes on.
            admin_serving.add_done_callback(lambda _: server.drain())

    signals.listen()
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
