"""The composition root: the one place that names concrete classes.

Rules of this file: it wires and owns, nothing else. A ``Service`` is one proxy in one event
loop; the process around it is in ``process.py``.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from urllib.parse import urlsplit

from mcp_proxy import __version__, clock
from mcp_proxy.admin import BackendStatus, Check, PoolStatus, Status
from mcp_proxy.admission import Porter
from mcp_proxy.affinity import Affinity
from mcp_proxy.backends import Backend, Balance
from mcp_proxy.backends.balance import LeastSessions, RoundRobin
from mcp_proxy.clock import Ticker
from mcp_proxy.config import Config, PoolConfig
from mcp_proxy.downstream.asgi import AsgiDoor
from mcp_proxy.downstream.settings import DoorSettings, connections_for, current_fd_limit
from mcp_proxy.errors import StartupError
from mcp_proxy.forwarding import Forwarder
from mcp_proxy.gateway import Gateway
from mcp_proxy.keeper import SessionKeeper
from mcp_proxy.policy import Identify, anonymous
from mcp_proxy.policy.origin import OriginGuard
from mcp_proxy.pools import Pool
from mcp_proxy.recorder import BATCH, Recorder
from mcp_proxy.sessions import Listed, Page, SessionStore, Watcher, settled
from mcp_proxy.sessions.memory import MemoryStore
from mcp_proxy.tasks import Tasks
from mcp_proxy.telemetry import Sink
from mcp_proxy.telemetry.access_log import AccessLog
from mcp_proxy.telemetry.metrics import Metrics
from mcp_proxy.telemetry.snapshot import GaugeSnapshot, Snapshot
from mcp_proxy.upstream import Transport
from mcp_proxy.upstream.http11 import Http11Transport
from mcp_proxy.watch import SessionWatch

STREAMS_SHARE = 0.75
"""Of the connections that the file limit allows, so many may be streams; the rest is left to
calls, which must work while streams are refused."""


LOOKS, LOOK_S = 100, 0.01
"""For a second the start waits for the registry to answer for the first time."""

CACHE_SHARE = 3
"""A replica asks about a session in use at least so often within its time to live."""


class Service:
    """One running proxy. Implements AdminView.

    ``start`` needs a running event loop and is idempotent; ``aclose`` ends all traffic.
    """

    def __init__(self, config: Config, identify: Identify = anonymous) -> None:
        """Raises StartupError for certificates or log files that cannot be used.

        ``identify``: who a request is made for, while the configuration cannot say it."""
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
        self.pools = {name: self._pool(name, pool) for name, pool in config.pools.items()}
        self._by_route = {route.path: self.pools[route.pool] for route in config.routes}
        watch = SessionWatch(self._by_route)
        self.sessions = _session_store(config, self._tasks, watch)
        self._ticker.add(self.sessions.sweep)
        self.gateway = Gateway(
            porter=Porter(routes, guard, forwarder, identify),
            forwarder=forwarder,
            pools=self.pools,
            keeper=SessionKeeper(self.sessions, self._tasks, self._metrics, ttl_s=config.sessions.ttl),
            watch=watch,
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
        self.sessions.start()
        # Clients that know sessions from other replicas may come at once. If there is no registry the
        # proxy serves all the same.
        for _ in range(LOOKS):
            if self.sessions.health()[0]:
                break
            await asyncio.sleep(LOOK_S)

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
            reinitializes=config.on_backend_loss == "reinitialize",
            affinity=Affinity(config.affinity.key),
            tap=config.affinity.tap,
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
        is_well, what = self.sessions.health()
        # Never a reason to be taken out of rotation: every replica would be, and what works without
        # the registry (known sessions, the stateless era) would stop as well.
        checks.append(Check("sessions", True, what if is_well else f"degraded: {what}"))
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

    def snapshot(self) -> Snapshot:
        """For the sum over several processes."""
        self._recorder.flush()
        return self._metrics.snapshot()

    async def sessions_page(self, cursor: str, limit: int) -> Page:
        page = await settled(self.sessions.page(cursor, limit))
        # Owners of tasks and request states are kept beside them.
        return page._replace(sessions=[each for each in page.sessions if not each.record.kind])

    async def session(self, name: str) -> Listed | None:
        return await settled(self.sessions.show(name))

    async def end_session(self, name: str) -> bool:
        return await settled(self.sessions.end(name))

    async def restore_sessions(self, sessions: list[Listed]) -> int:
        return await settled(self.sessions.restore(sessions))

    def pool_of(self, session: Listed) -> str:
        pool = self._by_route.get(session.route)
        if pool is None:
            pool = next((pool for pool in self.pools.values() if pool.find(session.record.backend)), None)
        return "" if pool is None else pool.name

    def _sessions_by_pool(self) -> dict[str, int]:
        counts = dict.fromkeys(self.pools, 0)
        for route, pool in self._by_route.items():
            counts[pool.name] += self.sessions.count(route)
        return counts

    def _gauges(self) -> GaugeSnapshot:
        return GaugeSnapshot(
            inflight=len(self.gateway.live),
            open_streams={name: pool.streams for name, pool in self.pools.items()},
            sessions=self._sessions_by_pool(),
            backends=[
                (name, backend.id, backend.unreachable_since_s is None)
                for name, pool in self.pools.items()
                for backend in pool.backends
            ],
            log_lines_dropped=0 if self.access_log is None else self.access_log.dropped,
        )


def _session_store(config: Config, tasks: Tasks, watcher: Watcher) -> SessionStore:
    sessions = config.sessions
    if sessions.store == "memory":
        return MemoryStore(sessions.ttl, watcher)
    from mcp_proxy.sessions.shared import SharedStore

    # Whoever uses a session begins its time to live anew within ``cache_ttl``; with so much to spare
    # a session cannot expire between its last use here and that moment.
    cache_ttl_s = min(sessions.cache_ttl, sessions.ttl / CACHE_SHARE)
    ttl_s = sessions.ttl + cache_ttl_s
    registry = seal = None
    if sessions.url is not None:
        from mcp_proxy.sessions.redis import RedisRegistry

        registry = RedisRegistry(sessions.url, ttl_s=ttl_s, tasks=tasks)
    if sessions.store == "signed":
        from mcp_proxy.sessions.signed import Seal

        backends = {
            route.path: [_backend(entry.url, 1).id for entry in config.pools[route.pool].backends]
            for route in config.routes
        }
        seal = Seal([key.value for key in sessions.keys], backends)
    return SharedStore(
        sessions.store,
        ttl_s=ttl_s,
        cache_ttl_s=cache_ttl_s,
        tasks=tasks,
        watcher=watcher,
        registry=registry,
        seal=seal,
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
