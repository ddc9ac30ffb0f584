"""The composition root: the one place that names concrete classes.

Rules of this file: it wires and owns, nothing else. A ``Service`` is one proxy in one event
loop; ``run`` is a process around it: sockets, signals, the data and the admin listener.
"""

from __future__ import annotations

import gc
import logging
import os
import ssl
import sys
from collections.abc import Callable
from urllib.parse import urlsplit

from mcp_proxy import __version__, clock
from mcp_proxy.admin import BackendStatus, Check, PoolStatus, Status
from mcp_proxy.admission import Porter
from mcp_proxy.backends import Backend, Balance
from mcp_proxy.backends.balance import LeastSessions, RoundRobin
from mcp_proxy.clock import Ticker
from mcp_proxy.config import Address, Config, PoolConfig
from mcp_proxy.downstream.asgi import AsgiDoor
from mcp_proxy.downstream.settings import DoorSettings, connections_for, current_fd_limit
from mcp_proxy.errors import StartupError
from mcp_proxy.forwarding import Forwarder
from mcp_proxy.gateway import Gateway
from mcp_proxy.policy.origin import OriginGuard
from mcp_proxy.pools import Pool
from mcp_proxy.recorder import BATCH, Recorder
from mcp_proxy.sessions import SessionKey, SessionRecord
from mcp_proxy.sessions.memory import MemoryStore
from mcp_proxy.tasks import Tasks
from mcp_proxy.telemetry import Sink
from mcp_proxy.telemetry.access_log import AccessLog
from mcp_proxy.telemetry.metrics import GaugeSnapshot, Metrics
from mcp_proxy.upstream import Transport
from mcp_proxy.upstream.http11 import Http11Transport

STREAMS_SHARE = 0.75
"""Of the connections that the file limit allows, so many may be streams; the rest is left to
calls, which must work while streams are refused."""


GC_THRESHOLD = 20_000
"""New objects between two young collections."""


class Service:
    """One running proxy. Implements AdminView.

    ``start`` needs a running event loop and is idempotent; ``aclose`` ends all traffic.
    """

    def __init__(self, config: Config) -> None:
        """Raises StartupError for certificates or log files that cannot be used."""
        self.config = config
        self.is_draining = False
        self._started_s = clock.now()
        self._tasks = Tasks()
        self._ticker = Ticker()
        self._metrics = Metrics(self._gauges)
        self.access_log = _access_log(config)
        sinks: list[Sink] = [self._metrics]
        if self.access_log is not None:
            sinks.append(self.access_log)
        self._recorder = Recorder(sinks, batch=BATCH)
        self._ticker.add(self._flush)
        connections = connections_for(current_fd_limit())
        forwarder = Forwarder(config.trusted_proxies)
        guard = OriginGuard(config.listen.host, config.external_url)
        routes = {route.path.encode("ascii"): route.pool for route in config.routes}
        store = MemoryStore(config.sessions.ttl, self._forget)
        self._ticker.add(store.sweep)
        self.pools = {name: self._pool(name, pool) for name, pool in config.pools.items()}
        self.gateway = Gateway(
            porter=Porter(routes, guard, forwarder),
            forwarder=forwarder,
            pools=self.pools,
            store=store,
            tasks=self._tasks,
            recorder=self._recorder,
            meters=self._metrics,
            body_limit=config.limits.body,
            json_hold=config.limits.json_hold,
            streams_limit=min(config.limits.streams, int(connections * STREAMS_SHARE)),
        )
        self._ticker.add(self.gateway.sweep)
        self._settings = DoorSettings(
            self.gateway,
            head_limit=config.limits.head,
            fields_limit=config.limits.header_fields,
            head_timeout_s=config.limits.head_timeout,
            connections_limit=connections,
        )
        self._ticker.add(self._settings.sweep)
        self.door = AsgiDoor(self.gateway, on_startup=self.start, on_shutdown=self.aclose)
        self.door.http11 = self._settings

    def _flush(self, at_s: float) -> None:
        """Records to their sinks, access lines to their file."""
        self._recorder.flush()
        if self.access_log is not None:
            self.access_log.tick(at_s)

    async def start(self) -> None:
        self._ticker.start()

    async def aclose(self) -> None:
        await self.gateway.aclose()
        self._ticker.stop()
        self._recorder.flush()
        if self.access_log is not None:
            self.access_log.close()

    def drain(self) -> None:
        """Not ready any more; the doors are being closed."""
        self.is_draining = True

    def reopen_logs(self) -> None:
        self._recorder.flush()
        if self.access_log is not None:
            self.access_log.reopen()

    def _forget(self, key: SessionKey, record: SessionRecord) -> None:
        self.gateway.forget(key, record)

    # --- building --------------------------------------------------------------------

    def _pool(self, name: str, config: PoolConfig) -> Pool:
        backends: list[Backend] = []
        transports: dict[str, Transport] = {}
        context = _ssl_context(config)
        for entry in config.backends:
            backend = _backend(entry.url, entry.weight)
            backends.append(backend)
            transports[backend.id] = self._transport(backend, config, context)
        balance: Balance = LeastSessions() if config.balance == "least_sessions" else RoundRobin()
        secret = config.credentials.authorization
        return Pool(
            name,
            backends,
            transports,
            balance,
            lost_after_s=config.lost_after,
            authorization=None if secret is None else secret.value.encode("latin-1"),
        )

    def _transport(self, backend: Backend, config: PoolConfig, context: ssl.SSLContext) -> Transport:
        timeouts = config.timeouts
        ssl_context = context if backend.tls else None
        transport: Transport
        if config.transport == "http11":
            transport = Http11Transport(
                backend.host,
                backend.port,
                tasks=self._tasks,
                ssl_context=ssl_context,
                connect_timeout_s=timeouts.connect,
                head_timeout_s=timeouts.response_head,
                idle_timeout_s=timeouts.idle,
            )
        else:
            from mcp_proxy.upstream.httpx import HttpxTransport  # 0.1 s that others need not pay

            transport = HttpxTransport(
                origin=backend.origin,
                tasks=self._tasks,
                ssl_context=ssl_context,
                connect_timeout_s=timeouts.connect,
                head_timeout_s=timeouts.response_head,
                idle_timeout_s=timeouts.idle,
                http2=config.http2,
                proxy=config.proxy,
            )
        self._ticker.add(transport.sweep)
        return transport

    # --- AdminView -------------------------------------------------------------------

    def alive(self) -> bool:
        return True

    def ready(self) -> list[Check]:
        checks = [Check("drain", not self.is_draining, "draining" if self.is_draining else "serving")]
        for name, pool in self.pools.items():
            up = sum(backend.unreachable_since_s is None for backend in pool.backends)
            # A pool without a reachable backend does not take the proxy out of rotation: its
            # other pools work, and the next replica would see the same.
            checks.append(Check(f"pool {name}", True, f"{up} of {len(pool.backends)} backends up"))
        return checks

    def status(self) -> Status:
        limits = self.config.limits
        self._recorder.flush()
        return Status(
            version=__version__,
            uptime_s=round(clock.now() - self._started_s, 3),
            pid=os.getpid(),
            listen=str(self.config.listen),
            pools={
                name: PoolStatus([_backend_status(backend) for backend in pool.backends])
                for name, pool in self.pools.items()
            },
            limits={
                **limits.model_dump(),
                "streams": self.gateway.streams_limit,
                "connections": self._settings.connections_limit,
            },
            counters=self._metrics.totals(),
        )

    def metrics(self, accept: str | None) -> tuple[bytes, str] | None:
        self._recorder.flush()
        return self._metrics.render(accept) if self.config.telemetry.metrics else None

    def _gauges(self) -> GaugeSnapshot:
        return GaugeSnapshot(
            inflight=len(self.gateway.live),
            open_streams={name: pool.streams for name, pool in self.pools.items()},
            sessions={name: self.gateway.keeper.store.count(name) for name in self.pools},
            backends=[
                (name, backend.id, backend.unreachable_since_s is None)
                for name, pool in self.pools.items()
                for backend in pool.backends
            ],
            log_lines_dropped=0 if self.access_log is None else self.access_log.dropped,
        )


def _access_log(config: Config) -> AccessLog | None:
    telemetry = config.telemetry
    if telemetry.access_log == "off":
        return None
    return AccessLog(telemetry.access_log_file or sys.stdout.fileno())


def _backend(url: str, weight: int) -> Backend:
    parts = urlsplit(url)
    assert parts.hostname is not None
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    return Backend(parts.hostname, port, (parts.path or "/").encode("ascii"), tls=tls, weight=weight)


def _ssl_context(config: PoolConfig) -> ssl.SSLContext:
    """For backends with https: the system's authorities unless the pool names its own."""
    tls = config.tls
    try:
        context = ssl.create_default_context(cafile=None if tls is None else tls.ca)
        if tls is not None and tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:
        raise StartupError(f"cannot use the certificates of a pool: {error}") from error
    return context


def _backend_status(backend: Backend) -> BackendStatus:
    return BackendStatus(
        id=backend.id,
        up=backend.unreachable_since_s is None,
        sessions=backend.sessions,
        inflight=backend.inflight,
        streams=backend.streams,
    )


def _tls_options(config: Config) -> dict[str, object]:
    """Of the data listener, as uvicorn calls them."""
    tls = config.tls
    if tls is None:
        return {}
    options: dict[str, object] = {"ssl_certfile": tls.certificate, "ssl_keyfile": tls.key}
    if tls.client_ca is not None:
        options |= {"ssl_ca_certs": tls.client_ca, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return options


def run(config: Config, *, log_level: str, on_started: Callable[[Address, Address | None], None]) -> int:
    """Serve until a signal ends it; returns the exit code of the process.

    ``on_started`` gets the addresses in force (port 0 has become a number). Raises
    StartupError if a port is taken or a file cannot be used.
    """
    import uvloop

    from mcp_proxy.admin.app import create_admin
    from mcp_proxy.downstream import server as servers
    from mcp_proxy.downstream.http11 import Http11Protocol
    from mcp_proxy.downstream.settings import raise_fd_limit

    logging.basicConfig(
        level=log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    raise_fd_limit()
    service = Service(config)
    data_socket = servers.bind(config.listen.host, config.listen.port)
    data_config = servers.config(
        service.door,
        data_socket,
        http=Http11Protocol,
        lifespan="on",
        timeout_graceful_shutdown=config.limits.drain,
        **_tls_options(config),
    )
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
    # Requests leave no cycles behind; collecting at every 700 new objects only costs. What lives
    # as long as the process (modules, configuration) need not be looked at ever.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 50)
    return uvloop.run(
        servers.run_servers(
            (servers.Server(data_config, on_drain=service.drain), data_socket),
            admin,
            on_started=lambda: on_started(address, admin_address),
            on_reopen=service.reopen_logs,
        )
    )
