"""The process around a ``Service``: sockets, signals, the data and the admin listener.

Rules of this file: what a process is, whether it is the only one (``run``) or one of several workers,
is written once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import ssl
from typing import TYPE_CHECKING

import uvloop

from mcp_proxy.admin.app import create_admin
from mcp_proxy.app import Service
from mcp_proxy.config import Address, AdminConfig, Config, Loaded
from mcp_proxy.downstream import server as servers
from mcp_proxy.downstream.http11 import Http11Protocol
from mcp_proxy.downstream.settings import raise_fd_limit
from mcp_proxy.errors import StartupError
from mcp_proxy.policy import Identify, anonymous
from mcp_proxy.reload import Reloader
from mcp_proxy.tasks import Tasks
from mcp_proxy.telemetry import app_log
from mcp_proxy.view import ServiceView

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from mcp_proxy.admin import AdminView

logger = logging.getLogger("mcp_proxy")

ADMIN_GRACE_S = 1
"""For answers of the admin listener, once the data listener has ended."""

GC_THRESHOLD = 20_000
"""New objects between two young collections."""


def _tls_options(config: Config) -> dict[str, object]:
    """Of the data listener, as uvicorn calls them."""
    tls = config.tls
    if tls is None:
        return {}
    options: dict[str, object] = {"ssl_certfile": tls.certificate, "ssl_keyfile": tls.key}
    if tls.client_ca is not None:
        options |= {"ssl_ca_certs": tls.client_ca, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return options


def prepare_process(config: Config, log_level: str, *, is_worker: bool = False) -> None:
    """Logging and limits, before anything is opened. Lines of a worker say which one it is."""
    app_log.begin(log_level, config.telemetry.log, is_worker=is_worker)
    raise_fd_limit()
    # What it asks for is done anyway by whoever starts: read the files. The default is to end.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def data_server(service: Service, sock: socket.socket) -> servers.Server:
    """What serves clients on ``sock``. Raises StartupError for certificates that cannot be used."""
    config = service.config
    options = servers.config(
        service.door,
        sock,
        http=Http11Protocol,
        lifespan="on",
        timeout_graceful_shutdown=config.limits.drain,
        **_tls_options(config),
    )
    try:
        options.load()
    except OSError as error:
        raise StartupError(f"cannot use the certificates of the listener: {error}") from error
    return servers.Server(
        options,
        on_drain=service.drain,
        drain_delay_s=config.limits.drain_delay,
        handshake_timeout_s=config.limits.head_timeout,
    )


def spare_the_collector() -> None:
    """Requests leave no cycles behind; collecting at every 700 new objects only costs. What lives
    as long as the process (modules, configuration) need not be looked at ever."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 50)


def reload(server: servers.Server, service: Service, config: Config) -> None:
    """Put another configuration in force in this process. Raises StartupError for what cannot be used; then
    nothing has changed."""
    tls, context = config.tls, server.config.ssl
    if tls is not None:
        try:  # on a context of its own first: one that listens must not be left with half of a pair
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key)
        except OSError as error:
            raise StartupError(f"cannot use the certificates of the listener: {error}") from error
    service.reload(config)
    logger.debug("configuration: in force in this process")
    if tls is not None and context is not None:
        try:
            context.load_cert_chain(tls.certificate, tls.key)
        except OSError as error:  # replaced in this moment, so the files will be looked at again
            logger.error("cannot use the certificates of the listener: %s", error)
    server.config.timeout_graceful_shutdown = config.limits.drain  # type: ignore[assignment]  # any number
    server.drain_delay_s = config.limits.drain_delay


class AdminApp:
    """The ASGI app of the admin listener, whose tokens may change."""

    def __init__(self, view: AdminView, config: AdminConfig) -> None:
        self._view = view
        self._make(config)

    def follow(self, config: AdminConfig) -> None:
        """Readers of events that have come in stay, and share with those to come while the tokens are the
        same."""
        if config != self._config:
            self._make(config)

    def _make(self, config: AdminConfig) -> None:
        self._config = config
        token, metrics = (
            None if each is None else each.value for each in (config.token, config.metrics_token)
        )
        self._app = create_admin(self._view, token, metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def run(
    loaded: Loaded, *, on_started: Callable[[Address, Address | None], None], identify: Identify = anonymous
) -> int:
    """Serve until a signal ends it; returns the exit code of the process.

    ``on_started`` gets the addresses in force (port 0 has become a number). ``identify``: as for
    ``Service``. Raises StartupError if a port is taken or a file cannot be used.
    """
    prepare_process(loaded.config, loaded.log_level)
    service = Service(loaded.config, identify)
    data = servers.bind(loaded.config.listen.host, loaded.config.listen.port)
    server = data_server(service, data)
    admin = bind_admin(loaded.config)
    spare_the_collector()
    addresses = address_of(data), None if admin is None else address_of(admin)
    return uvloop.run(_run(loaded, service, (server, data), admin, lambda: on_started(*addresses)))


async def _run(
    loaded: Loaded,
    service: Service,
    data: tuple[servers.Server, socket.socket],
    admin: socket.socket | None,
    on_started: Callable[[], None],
) -> int:
    async def apply(config: Config) -> None:
        reload(data[0], service, config)
        app.follow(config.admin)

    reloader = Reloader(loaded, apply)
    app = AdminApp(ServiceView(service, data[0].drain, lambda: [reloader.check()]), loaded.config.admin)
    service.metrics.register(reloader)
    tasks = Tasks()
    tasks.spawn(reloader.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.ask)
    try:
        return await servers.run_servers(
            data,
            None if admin is None else (admin_server(app, admin), admin),
            on_started=on_started,
            on_reopen=service.reopen_logs,
        )
    finally:
        await tasks.aclose()


def bind_admin(config: Config) -> socket.socket | None:
    """The socket of the admin listener, if there is one. Raises StartupError."""
    listen = config.admin.listen
    return None if listen is None else servers.bind(listen.host, listen.port)


def admin_server(
    app: AdminApp, sock: socket.socket, on_started: Callable[[], None] = lambda: None
) -> servers.Server:
    """Nobody waits for its answers when the data listener has ended."""
    options = servers.config(app, sock, lifespan="off", timeout_graceful_shutdown=ADMIN_GRACE_S)
    return servers.Server(options, on_started=on_started)


def address_of(sock: socket.socket) -> Address:
    return Address(*sock.getsockname()[:2])
