"""A running proxy, as the admin listener sees it.

Rules of this file: it reads and passes on; what it changes is done by whoever owns it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from mcp_proxy import __version__, clock
from mcp_proxy.admin import BackendStatus, Check, PoolStatus, Status
from mcp_proxy.admin.standing import status_of
from mcp_proxy.app import Service
from mcp_proxy.backends import Backend
from mcp_proxy.pools import Pool
from mcp_proxy.sessions import Listed, Page, settled
from mcp_proxy.telemetry import app_log
from mcp_proxy.telemetry.app_log import Level
from mcp_proxy.telemetry.recent import Recent
from mcp_proxy.telemetry.snapshot import Snapshot


class ServiceView:
    """Implements AdminView. ``drain_proxy``: does what SIGTERM does. ``others``: further lines of
    ``/readyz?verbose``."""

    def __init__(
        self,
        service: Service,
        drain_proxy: Callable[[], None],
        others: Callable[[], list[Check]] = list,
    ) -> None:
        self._service = service
        self._started_s = clock.now()
        self.drain_proxy = drain_proxy
        self._others = others

    def alive(self) -> bool:
        return True

    def ready(self) -> list[Check]:
        service = self._service
        checks = [Check("drain", not service.is_draining, "draining" if service.is_draining else "serving")]
        is_well, what = service.sessions.health()
        # Never a reason to be taken out of rotation: every replica would be, and what works without
        # the registry (known sessions, the stateless era) would stop as well.
        checks.append(Check("sessions", True, what if is_well else f"degraded: {what}"))
        for name, pool in service.pools.items():
            staying = [backend.is_up for backend in pool.backends if backend.drain is None]
            # A pool without a reachable backend does not take the proxy out of rotation: its
            # other pools work, and the next replica would see the same.
            said = [f"{sum(staying)} of {len(staying)} backends up", *service.fleet.health(name)]
            if len(staying) < len(pool.backends):
                said.insert(1, f"{len(pool.backends) - len(staying)} draining")
            checks.append(Check(f"pool {name}", True, "; ".join(said)))
        return checks + self._others()

    def status(self) -> Status:
        service = self._service
        service.recorder.flush()
        at_s = clock.now()
        return Status(
            version=__version__,
            uptime_s=round(at_s - self._started_s, 3),
            pid=os.getpid(),
            listen=str(service.config.listen),
            pools={
                name: PoolStatus([status_of(backend, name, at_s) for backend in pool.backends])
                for name, pool in service.pools.items()
            },
            limits={
                **_flat(service.config.limits.model_dump()),
                "streams": service.gateway.quotas.streams_limit,
                "connections": service.connections_limit,
            },
            counters=service.metrics.totals() if service.config.telemetry.metrics else {},
            draining=service.is_draining,
        )

    def metrics(self, accept: str | None) -> tuple[bytes, str] | None:
        self._service.recorder.flush()
        return self._service.metrics.render(accept) if self._service.config.telemetry.metrics else None

    def snapshot(self) -> Snapshot:
        """For the sum over several processes."""
        self._service.recorder.flush()
        return self._service.metrics.snapshot()

    async def recent(self, cursor: str) -> Recent:
        service = self._service
        service.recorder.flush()
        answer = service.recent.recent(cursor, clock.now())
        return msgspec.structs.replace(answer, is_over=service.is_draining)

    def configuration(self) -> dict[str, Any]:
        return self._service.config.model_dump(mode="json", by_alias=True)

    def log_level(self) -> Level:
        return app_log.level()

    def set_log_level(self, level: Level) -> None:
        app_log.set_level(level)

    # --- backends --------------------------------------------------------------------

    async def drain_backend(
        self, backend_id: str, pool: str | None, seconds: float | None
    ) -> list[BackendStatus]:
        found = list(self._named(backend_id, pool))
        for owner, backend in found:
            owner.drain(backend, "operator", seconds)
        return _statuses(found)

    async def undrain_backend(self, backend_id: str, pool: str | None) -> list[BackendStatus]:
        found = list(self._named(backend_id, pool))
        for owner, backend in found:
            owner.undrain(backend)
        return _statuses(found)

    def _named(self, backend_id: str, pool: str | None) -> Iterator[tuple[Pool, Backend]]:
        for name, owner in self._service.pools.items():
            backend = owner.find(backend_id)
            if backend is not None and pool in (None, name):
                yield owner, backend

    # --- sessions --------------------------------------------------------------------

    async def sessions_page(self, cursor: str, limit: int) -> Page:
        page = await settled(self._service.sessions.page(cursor, limit))
        # Owners of tasks and request states are kept beside them.
        return page._replace(sessions=[each for each in page.sessions if not each.record.kind])

    async def session(self, name: str) -> Listed | None:
        return await settled(self._service.sessions.show(name))

    async def end_session(self, name: str) -> bool:
        return await settled(self._service.sessions.end(name))

    async def restore_sessions(self, sessions: list[Listed]) -> int:
        return await settled(self._service.sessions.restore(sessions))

    def pool_of(self, session: Listed) -> str:
        pool = self._service.led_to(session.route)
        if pool is None:
            owners = (owner.name for owner, _ in self._named(session.record.backend, None))
            return next(owners, "")
        return pool.name


def _statuses(found: list[tuple[Pool, Backend]]) -> list[BackendStatus]:
    at_s = clock.now()
    return [status_of(backend, pool.name, at_s) for pool, backend in found]


def _flat(limits: dict[str, Any]) -> dict[str, int | float | None]:
    """Sections become part of the names."""
    flat: dict[str, int | float | None] = {}
    for name, value in limits.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat
