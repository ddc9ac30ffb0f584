"""The process around a ``Service``: sockets, signals, the data and the admin listener.

Rules of this file: what a process is, whether it is the only one (``run``) or one of several workers,
is written once.
"""

from __future__ import annotations

import gc
import logging
import ssl
import sys
from typing import TYPE_CHECKING

import uvloop

from mcp_proxy.admin.app import create_admin
from mcp_proxy.app import Service
from mcp_proxy.config import Address, Config
from mcp_proxy.downstream import server as servers
from mcp_proxy.downstream.http11 import Http11Protocol
from mcp_proxy.downstream.settings import raise_fd_limit
from mcp_proxy.errors import StartupError
from mcp_proxy.policy import Identify, anonymous

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

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


def prepare_process(log_level: str) -> None:
    """Logging and limits, before anything is opened."""
    logging.basicConfig(
        level=log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    raise_fd_limit()


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
    return servers.Server(options, on_drain=service.drain)


def spare_the_collector() -> None:
    """Requests leave no cycles behind; collecting at every 700 new objects only costs. What lives
    as long as the process (modules, configuration) need not be looked at ever."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 50)


def run(
    config: Config,
    *,
    log_level: str,
    on_started: Callable[[Address, Address | None], None],
    identify: Identify = anonymous,
) -> int:
    """Serve until a signal ends it; returns the exit code of the process.

    ``on_started`` gets the addresses in force (port 0 has become a number). ``identify``: as for
    ``Service``. Raises StartupError if a port is taken or a file cannot be used.
    """
    prepare_process(log_level)
    service = Service(config, identify)
    data_socket = servers.bind(config.listen.host, config.listen.port)
    data = data_server(service, data_socket)
    admin = None
    admin_address = None
    if config.admin.listen is not None:
        admin_socket = servers.bind(config.admin.listen.host, config.admin.listen.port)
        token = config.admin.token
        admin_app = create_admin(service, None if token is None else token.value)
        admin_config = servers.config(admin_app, admin_socket, lifespan="off", timeout_graceful_shutdown=1)
        admin = (servers.Server(admin_config), admin_socket)
        admin_address = Address(*admin_socket.getsockname()[:2])
    address = Address(*data_socket.getsockname()[:2])
    spare_the_collector()
    return uvloop.run(
        servers.run_servers(
            (data, data_socket),
            admin,
            on_started=lambda: on_started(address, admin_address),
            on_reopen=service.reopen_logs,
        )
    )
