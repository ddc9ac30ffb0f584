"""The composition root: the one place that names concrete classes.

Rules of this file: it wires and owns, nothing else. A ``Service`` is one proxy in one event
loop; the process around it is in ``process.py``.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Any

from mcp_proxy.admission import Porter
from mcp_proxy.backends import Backend
from mcp_proxy.clock import Ticker, now
from mcp_proxy.config import Config, Limits
from mcp_proxy.config.changes import compare
from mcp_proxy.downstream.asgi import AsgiDoor
from mcp_proxy.downstream.settings import DoorLimits, DoorSettings, connections_for, current_fd_limit
from mcp_proxy.fleet import Fleet
from mcp_proxy.forwarding import Forwarder
from mcp_proxy.gateway import Gateway
from mcp_proxy.keeper import SessionKeeper
from mcp_proxy.policy import Identify, anonymous
from mcp_proxy.policy.origin import OriginGuard
from mcp_proxy.pools import Pool
from mcp_proxy.quotas import Bounds, Quotas
from mcp_proxy.recorder import BATCH, Recorder
from mcp_proxy.replies import TABLE
from mcp_proxy.sessions import SessionStore
from mcp_proxy.sessions.memory import MemoryStore
from mcp_proxy.tasks import Tasks
from mcp_proxy.telemetry import Sink
from mcp_proxy.telemetry.access_log import AccessLog
from mcp_proxy.telemetry.metrics import Metrics
from mcp_proxy.telemetry.recent import Ring
from mcp_proxy.telemetry.snapshot import BackendNow, GaugeSnapshot
from mcp_proxy.telemetry.traces import Tracer
from mcp_proxy.upstream.berths import Berths
from mcp_proxy.watch import SessionWatch

if TYPE_CHECKING:
    from mcp_proxy.sessions.signed import Seal
    from mcp_proxy.telemetry.spans import SpanSink

logger = logging.getLogger("mcp_proxy")

STREAMS_SHARE = 0.75
"""Of the connections that the file limit allows, so many may be streams; the rest is left to
calls, which must work while streams are refused."""


LOOKS, LOOK_S = 100, 0.01
"""For a second the start waits for the registry and for discovery to answer for the first time."""

CACHE_SHARE = 3
"""A replica asks about a session in use at least so often within its time to live."""


class Service:
    """One running proxy. What an operator sees of it is in ``view.py``.

    ``start`` needs a running event loop and is idempotent; ``aclose`` ends all traffic.
    """

    def __init__(self, config: Config, identify: Identify = anonymous, digest_key: bytes = b"") -> None:
        """Raises StartupError for certificates or log files that cannot be used.

        ``identify``: who a request is made for, while the configuration cannot say it. ``digest_key``: as
        for ``Recorder``."""
        self.config = config
        self._identify = identify
        self.is_draining = False
        self._tasks = Tasks()
        self._ticker = Ticker()
        self._observe(config, digest_key)
        connections = connections_for(current_fd_limit())
        self._by_route: dict[str, Pool] = {}
        self._watch = SessionWatch(self._by_route)
        self._seal: Seal | None = None
        self.sessions = self._session_store(config)
        self._ticker.add(self.sessions.sweep)
        self.fleet = Fleet(
            self._tasks,
            berths=Berths(connections),
            on_change=self._pool_changed,
            on_overdue=lambda backend: self.gateway.let_go(backend),
            on_ejected=lambda pool: self.metrics.ejected(pool.name),
        )
        self.fleet.prepare(config.pools, {})()
        self.pools = self.fleet.pools
        self._ticker.add(self.fleet.sweep)
        self.connections_limit = connections
        quotas = Quotas(**self._quotas(config.limits))
        self._ticker.add(quotas.sweep)
        forwarder = Forwarder(config.trusted_proxies)
        self.gateway = Gateway(
            porter=self._porter(config, forwarder),
            forwarder=forwarder,
            pools=self.pools,
            keeper=SessionKeeper(self.sessions, self._tasks, self.metrics, ttl_s=config.sessions.ttl),
            watch=self._watch,
            tasks=self._tasks,
            recorder=self.recorder,
            meters=self.metrics,
            body_limit=config.limits.body,
            json_hold=config.limits.json_hold,
            quotas=quotas,
            tracer=self._tracer,
        )
        self._lead(config)
        self._ticker.add(self.gateway.sweep)
        self._settings = DoorSettings(self.gateway, _door_limits(config), connections_limit=connections)
        self._ticker.add(self._settings.sweep)
        self.door = AsgiDoor(self.gateway, on_startup=self.start, on_shutdown=self.aclose)
        self.door.http11 = self._settings

    def _observe(self, config: Config, digest_key: bytes) -> None:
        """Choose where records go."""
        self.metrics = Metrics(self._gauges, reasons=TABLE)
        self.access_log = _access_log(config)
        self._tracer = _tracer(config)
        self._spans = _spans(config)
        self.recent = Ring()
        self._ticker.add(self.recent.sweep)
        sinks: dict[str, Sink | None] = {"access_log": self.access_log, "traces": self._spans}
        self.recorder = Recorder(
            sinks, batch=BATCH, key=digest_key, ring=self.recent, on_failure=self.metrics.sink_failed
        )
        self._measure(config)
        self._ticker.add(self._flush)

    def _measure(self, config: Config) -> None:
        """With ``telemetry.metrics: false`` nothing; only what is no exchange goes on being counted."""
        is_wanted = config.telemetry.metrics
        self.recorder.attach("metrics", self.metrics if is_wanted else None)
        self._ticker.on_lag = self.metrics.lagged if is_wanted else None

    def _flush(self, at_s: float) -> None:
        """Records to their sinks, access lines to their file."""
        self.recorder.flush()
        if self.access_log is not None:
            self.access_log.tick(at_s)

    async def start(self) -> None:
        self._ticker.start()
        self.fleet.start()
        self.sessions.start()
        # Clients that know sessions from other replicas may come at once. If there is no registry, or nobody
        # who names backends, the proxy serves all the same, as well as it can.
        for _ in range(LOOKS):
            if self.sessions.health()[0] and self.fleet.is_complete:
                break
            await asyncio.sleep(LOOK_S)

    async def aclose(self) -> None:
        await self.gateway.aclose()
        await self.fleet.aclose()
        await self.sessions.aclose()
        self._ticker.stop()
        self.recorder.flush()
        if self.access_log is not None:
            self.access_log.close()
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)

    def drain(self) -> None:
        """Not ready any more, and connections close behind their answers. Idempotent."""
        if not self.is_draining:
            logger.info("draining: %d exchanges in progress", len(self.gateway.live))
        self.is_draining = self._settings.is_draining = True

    def led_to(self, route: str) -> Pool | None:
        """The pool behind a path."""
        return self._by_route.get(route)

    def reopen_logs(self) -> None:
        self.recorder.flush()
        if self.access_log is not None:
            self.access_log.reopen()

    def _trace_spans(self) -> dict[str, int]:
        if self._tracer is None or self._spans is None:
            return {}
        return {**self._spans.counts(), "limited": self._tracer.limited}

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
            backends=[_present(name, each) for name, pool in self.pools.items() for each in pool.backends],
            is_draining=self.is_draining,
            stores={self.sessions.name: self.sessions.health()[0]},
            log_lines_dropped=0 if self.access_log is None else self.access_log.dropped,
            trace_spans=self._trace_spans(),
        )

    # --- configuration -----------------------------------------------------------------

    def reload(self, config: Config) -> None:
        """Put another configuration in force. It may differ in what ``config.changes`` allows; what has not
        changed is not touched. Raises StartupError for what cannot be used; then nothing has changed."""
        changes = compare(self.config, config)
        apply = self.fleet.prepare(config.pools, changes.changed)
        forwarder = Forwarder(config.trusted_proxies)
        porter = self._porter(config, forwarder)
        apply()
        self._lead(config)
        self.gateway.reconfigure(porter, forwarder, config.limits.body, config.limits.json_hold)
        self.gateway.quotas.limit(**self._quotas(config.limits))
        self._settings.follow(_door_limits(config))
        self._measure(config)
        self.config = config

    def _quotas(self, limits: Limits) -> dict[str, Any]:
        client, principal = limits.per_client, limits.per_principal
        return {
            "streams": min(limits.streams, int(self.connections_limit * STREAMS_SHARE)),
            "requests": limits.requests,
            "per_client": Bounds(client.streams, client.requests),
            "per_principal": Bounds(principal.streams, principal.requests),
            "memory": limits.memory,
        }

    def _porter(self, config: Config, forwarder: Forwarder) -> Porter:
        guard = OriginGuard(config.listen.host, config.external_url)
        routes = {route.path.encode("ascii"): route.pool for route in config.routes}
        return Porter(routes, guard, forwarder, self._identify)

    def _lead(self, config: Config) -> None:
        """Routes to their pools."""
        self._by_route.clear()
        self._by_route.update({route.path: self.pools[route.pool] for route in config.routes})
        for pool in self.pools.values():
            self._pool_changed(pool)

    def _pool_changed(self, pool: Pool) -> None:
        self._watch.recount(pool)
        if self._seal is not None:
            ids = [backend.id for backend in pool.backends]
            for route, led in self._by_route.items():
                if led is pool:
                    self._seal.know(route, ids)

    def _session_store(self, config: Config) -> SessionStore:
        sessions = config.sessions
        if sessions.store == "memory":
            return MemoryStore(sessions.ttl, self._watch)
        from mcp_proxy.sessions.shared import SharedStore

        # Whoever uses a session begins its time to live anew within ``cache_ttl``; with so much to spare
        # a session cannot expire between its last use here and that moment.
        cache_ttl_s = min(sessions.cache_ttl, sessions.ttl / CACHE_SHARE)
        ttl_s = sessions.ttl + cache_ttl_s
        registry = None
        if sessions.url is not None:
            from mcp_proxy.sessions.redis import RedisRegistry

            registry = RedisRegistry(sessions.url, ttl_s=ttl_s, tasks=self._tasks)
            registry.on_asked = self.metrics.store_asked
        if sessions.store == "signed":
            from mcp_proxy.sessions.signed import Seal

            self._seal = Seal([key.value for key in sessions.keys])
        return SharedStore(
            sessions.store,
            ttl_s=ttl_s,
            cache_ttl_s=cache_ttl_s,
            tasks=self._tasks,
            watcher=self._watch,
            registry=registry,
            seal=self._seal,
        )


def _present(pool: str, backend: Backend) -> BackendNow:
    return BackendNow(
        pool,
        backend.id,
        backend.is_up,
        backend.sessions,
        backend.inflight,
        backend.streams,
        backend.drain is not None,
    )


def _door_limits(config: Config) -> DoorLimits:
    limits = config.limits
    return DoorLimits(
        head=limits.head,
        fields=limits.header_fields,
        head_timeout_s=limits.head_timeout,
        client_connections=limits.per_client.connections,
        trusted_proxies=config.trusted_proxies,
        drain_s=limits.drain,
    )


def _tracer(config: Config) -> Tracer | None:
    traces = config.telemetry.traces
    return None if traces is None else Tracer(traces.sample, limit=traces.limit, clock=now)


def _spans(config: Config) -> SpanSink | None:
    if config.telemetry.traces is None:
        return None
    from mcp_proxy.telemetry.spans import build  # takes 80 ms, and needs the extra

    return build(config.telemetry.traces)


def _access_log(config: Config) -> AccessLog | None:
    telemetry = config.telemetry
    if telemetry.access_log == "off":
        return None
    return AccessLog(telemetry.access_log_file or sys.stdout.fileno())
