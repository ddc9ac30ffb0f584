"""All workers as one proxy, for the admin listener.

Rules of this file: what grows is added up and never falls; a worker that is too busy to answer
counts with what it said last; nothing here depends on a single worker.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from prometheus_client import PlatformCollector

from mcp_proxy import __version__, clock
from mcp_proxy.admin import BackendStatus, Check, PoolStatus, Status, WorkerStatus
from mcp_proxy.admin.standing import merged
from mcp_proxy.telemetry import app_log
from mcp_proxy.telemetry.app_log import Level
from mcp_proxy.telemetry.exposition import Exposition
from mcp_proxy.telemetry.recent import Recent, split, together
from mcp_proxy.workers import calls
from mcp_proxy.workers.crew import ANSWER_S, Crew, Worker
from mcp_proxy.workers.group import Group
from mcp_proxy.workers.link import Call, WorkerError
from mcp_proxy.workers.sessions import CrewSessions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mcp_proxy.config import Config
    from mcp_proxy.reload import Reloader
    from mcp_proxy.sessions import Listed, Page

_SHARED_LIMITS = ("streams", "requests", "connections")
"""Limits of which every worker has a share of its own."""


class CrewView:
    """Implements AdminView."""

    def __init__(self, crew: Crew, config: Config, reloader: Reloader) -> None:
        self._crew = crew
        self._reloader = reloader
        self._sessions = CrewSessions(crew, is_shared=config.sessions.url is not None)
        self._started_s = clock.now()
        others = [Group(crew), PlatformCollector(registry=None), reloader]
        self._exposition = Exposition(crew.total, others)
        self.drain_proxy = crew.stop
        self._drains: dict[tuple[str, str | None], float | None] = {}
        """What operators drain, for workers to come: until when, None as the configuration says."""
        self._level: Level | None = None
        """What an operator has said; None: as the process was started."""
        crew.on_joining = self._catch_up
        self.follow(config)

    def follow(self, config: Config) -> None:
        """Another configuration is in force."""
        self._config = config
        self._pools = {route.path: route.pool for route in config.routes}

    def alive(self) -> bool:
        return True

    async def ready(self) -> list[Check]:
        """Ready while one worker is: the others' share of the connections goes there."""
        crew = self._crew
        answers: dict[int, list[Check]] = {}

        async def ask(worker: Worker) -> None:
            with contextlib.suppress(WorkerError, TimeoutError):
                answers[worker.pid] = await worker.link.ask(calls.READY, wait_s=ANSWER_S)

        await crew.each(ask)
        able = {pid for pid, checks in answers.items() if all(check.ok for check in checks)}
        is_ready = bool(able) and not crew.is_stopping
        state = "draining" if crew.is_stopping else f"{len(able)} of {len(crew.workers)} ready"
        lines = [Check("workers", is_ready, state)]
        for slot, worker in enumerate(crew.workers, 1):
            lines.append(Check(f"worker {slot}", True, _state(worker, answers, able)))
        return [*lines, *_best(answers, able), self._reloader.check()]

    async def status(self) -> Status:
        async def ask(worker: Worker) -> None:
            with contextlib.suppress(WorkerError, TimeoutError):
                worker.status = await worker.link.ask(calls.STATUS, wait_s=ANSWER_S)

        crew = self._crew
        await crew.each(ask)
        await crew.each(Worker.refresh)
        known = [(worker, worker.status) for worker in crew.serving if worker.status is not None]
        return Status(
            version=__version__,
            uptime_s=round(clock.now() - self._started_s, 3),
            pid=os.getpid(),
            listen=str(self._config.listen),
            pools=_pools([status for _, status in known]),
            limits=_limits([status for _, status in known]),
            counters=crew.total().totals() if self._config.telemetry.metrics else {},
            draining=crew.is_stopping,
            workers=[
                WorkerStatus(worker.pid, status.uptime_s, worker.snapshot.gauges.inflight)
                for worker, status in known
            ],
        )

    async def metrics(self, accept: str | None) -> tuple[bytes, str] | None:
        if not self._config.telemetry.metrics:
            return None
        await self._crew.each(Worker.refresh)
        return self._exposition.render(accept)

    async def recent(self, cursor: str) -> Recent:
        cursors = split(cursor)
        answers: dict[str, Recent] = {}

        async def ask(worker: Worker) -> None:
            name = str(worker.pid)
            with contextlib.suppress(WorkerError, TimeoutError):
                answers[name] = await worker.link.ask(calls.RECENT, cursors.get(name, ""), wait_s=ANSWER_S)

        await self._crew.each(ask)
        return together(answers)

    def configuration(self) -> dict[str, Any]:
        return self._config.model_dump(mode="json", by_alias=True)

    def log_level(self) -> Level:
        return app_log.level()

    async def set_log_level(self, level: Level) -> None:
        self._level = level  # before anybody is asked: a worker may join meanwhile
        app_log.set_level(level)
        await self._crew.each(lambda worker: self._tell(worker, calls.SET_LOG_LEVEL, level))

    async def _catch_up(self, worker: Worker) -> None:
        """Tell a worker that has begun what the others know; meanwhile there may be more to tell."""
        level: Level | None = None
        told: set[tuple[str, str | None]] = set()
        while True:
            if self._level != level:
                level = self._level
                await self._tell(worker, calls.SET_LOG_LEVEL, level)
            elif left := self._drains.keys() - told:
                backend_id, pool = known = left.pop()
                told.add(known)
                until_s = self._drains[known]
                left_s = None if until_s is None else max(0.0, until_s - clock.now())
                await self._tell(worker, calls.DRAIN_BACKEND, backend_id, pool, left_s)
            else:
                return

    async def _tell(self, worker: Worker, call: Call[Any], *arguments: object) -> None:
        with contextlib.suppress(WorkerError, TimeoutError):  # one that is busy hears it later
            await worker.link.ask(call, *arguments, wait_s=ANSWER_S)

    # --- backends --------------------------------------------------------------------

    async def drain_backend(
        self, backend_id: str, pool: str | None, seconds: float | None
    ) -> list[BackendStatus]:
        # Kept before anybody is asked: a worker may join meanwhile.
        self._drains[backend_id, pool] = None if seconds is None else clock.now() + seconds
        drained = await self._of_all(calls.DRAIN_BACKEND, backend_id, pool, seconds)
        if not drained:
            self._drains.pop((backend_id, pool), None)
        return drained

    async def undrain_backend(self, backend_id: str, pool: str | None) -> list[BackendStatus]:
        for known in (
            [(backend_id, pool)] if pool else [each for each in self._drains if each[0] == backend_id]
        ):
            self._drains.pop(known, None)
        return await self._of_all(calls.UNDRAIN_BACKEND, backend_id, pool)

    async def _of_all(self, call: Call[list[BackendStatus]], *arguments: Any) -> list[BackendStatus]:
        answers: list[list[BackendStatus]] = []

        async def ask(worker: Worker) -> None:
            with contextlib.suppress(WorkerError, TimeoutError):
                answers.append(await worker.link.ask(call, *arguments, wait_s=ANSWER_S))

        await self._crew.each(ask)
        return _together(backend for answer in answers for backend in answer)

    # --- sessions --------------------------------------------------------------------

    async def sessions_page(self, cursor: str, limit: int) -> Page:
        return await self._sessions.page(cursor, limit)

    async def session(self, name: str) -> Listed | None:
        return await self._sessions.show(name)

    async def end_session(self, name: str) -> bool:
        return await self._sessions.end(name)

    async def restore_sessions(self, sessions: list[Listed]) -> int:
        return await self._sessions.restore(sessions)

    def pool_of(self, session: Listed) -> str:
        by_route = self._pools.get(session.route)
        if by_route is not None:
            return by_route
        statuses = [worker.status for worker in self._crew.serving if worker.status is not None]
        for name, pool in _pools(statuses).items():
            if any(backend.id == session.record.backend for backend in pool.backends):
                return name
        return ""


def _state(worker: Worker | None, answers: dict[int, list[Check]], able: set[int]) -> str:
    if worker is None:
        return "ended, another will start"
    if not worker.is_serving:
        return f"pid {worker.pid} is starting"
    if worker.pid not in answers:
        return f"pid {worker.pid} does not answer"
    return f"pid {worker.pid} is ready" if worker.pid in able else f"pid {worker.pid} is not ready"


def _best(answers: dict[int, list[Check]], able: set[int]) -> list[Check]:
    """The checks of a worker that is ready, else of any: why it is not."""
    for pid in [*able, *answers]:
        return answers[pid]
    return []


def _together(statuses: Iterable[BackendStatus]) -> list[BackendStatus]:
    """What several workers say of the same backends, as one."""
    known: dict[tuple[str, str], BackendStatus] = {}
    for status in statuses:
        name = status.pool, status.id
        known[name] = merged(known[name], status) if name in known else status
    return list(known.values())


def _pools(statuses: list[Status]) -> dict[str, PoolStatus]:
    names = dict.fromkeys(name for status in statuses for name in status.pools)
    return {
        name: PoolStatus(
            _together(
                backend
                for status in statuses
                if name in status.pools
                for backend in status.pools[name].backends
            )
        )
        for name in names
    }


def _limits(statuses: list[Status]) -> dict[str, int | float | None]:
    limits: dict[str, int | float | None] = {}
    for status in statuses:
        for name, value in status.limits.items():
            before = limits.get(name)
            is_shared = name in _SHARED_LIMITS and before is not None and value is not None
            limits[name] = before + value if is_shared and before is not None and value is not None else value
    return limits
