"""What a pool does on its own account to find out about its backends: active checks, and their era.

Rules of this file: no GET, HEAD, OPTIONS or ``initialize`` goes to an MCP path, as each would make a session.
Every check ends in time, so many run at once and no more, and one that could not be made (no descriptor, no
name resolution) is no result. What an answer means is decided in ``backends/``; what follows from it, by the
pool. Work per tick is that of the checks that are due, and once a second one look at who is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, NamedTuple

from mcp_proxy.backends import Backend
from mcp_proxy.backends.era import DISCOVER, HEADERS, USER_AGENT, is_modern
from mcp_proxy.backends.health import Health
from mcp_proxy.backends.rota import Rota
from mcp_proxy.clock import patience
from mcp_proxy.errands import PATIENCE_S, Answer, ask
from mcp_proxy.errors import Phase, UpstreamError
from mcp_proxy.pools import Pool
from mcp_proxy.tasks import Tasks
from mcp_proxy.upstream import Outgoing
from mcp_proxy.wire import Fields

logger = logging.getLogger("mcp_proxy")

LOOK_S: Final = 1.0
"""Between two looks at who has come, come back or left. With 1,000 backends one takes 0.1 ms."""

ERA_S: Final = 60.0
"""Between two questions for the era. It changes with a deployment, after which a backend comes back."""

UNTOLD_S: Final = 10.0
"""The same while it is not known: a backend that is starting, mostly."""

AT_ONCE: Final = 64
"""Checks in progress, of a kind. 1,000 backends that answer in 0.1 s are checked in 1.6 s; each check holds a
descriptor."""

NAMES_LIMIT: Final = 10
"""Backends that a line of the log names."""

_PATH_HEADERS: Final = Fields([(b"accept", b"*/*"), (b"accept-encoding", b"identity"), USER_AGENT])
"""No credentials: those are for the MCP path."""


_Work = Callable[[Backend], Coroutine[Any, Any, None]]


class ActiveRule(NamedTuple):
    """How backends are checked."""

    check: str
    """``tcp``, ``discover``, or a path to GET."""
    every_s: float
    timeout_s: float
    fall: int
    rise: int


class _Round:
    """One kind of check: whose turn it is, and which are in progress."""

    __slots__ = ("_has_haste", "_rota", "_running", "_tasks", "_work")

    def __init__(self, tasks: Tasks, every_s: float, work: _Work, *, has_haste: bool) -> None:
        self._tasks = tasks
        self._work = work
        self._has_haste = has_haste
        """One that comes, or comes back, is not to wait for its turn."""
        self._rota = Rota(every_s)
        self._running: dict[Backend, asyncio.Task[None]] = {}

    def start(self, at_s: float) -> None:
        """Begin what is due, as far as there is room; the rest waits."""
        while len(self._running) < AT_ONCE and (backend := self._rota.next(at_s)) is not None:
            if backend not in self._running:  # a check may take longer than a round
                task = self._tasks.spawn(self._work(backend))
                self._running[backend] = task
                task.add_done_callback(partial(self._done, backend))

    def _done(self, backend: Backend, task: asyncio.Task[None]) -> None:
        if self._running.get(backend) is task:
            del self._running[backend]

    def add(self, backend: Backend, at_s: float) -> None:
        self._rota.add(backend, at_s)
        self.came_back(backend)

    def came_back(self, backend: Backend) -> None:
        if self._has_haste:
            self._break_off(backend)  # its answer would be about the time before
            self._rota.hurry(backend)

    def drop(self, backend: Backend) -> None:
        self._rota.drop(backend)
        self._break_off(backend)

    def _break_off(self, backend: Backend) -> None:
        if backend in self._running:
            self._running.pop(backend).cancel()


class Checkup:
    """``active`` None: no checks; ``probes_era``: ask which backends speak 2026-07-28. The tasks belong to
    ``tasks``. Verdicts of a predecessor, as the backends' fields have them, stay until disproved."""

    def __init__(self, pool: Pool, tasks: Tasks, *, active: ActiveRule | None, probes_era: bool) -> None:
        self._pool = pool
        self._active = active
        self._probes_era = probes_era
        self._health: dict[Backend, Health] = {}
        self._known: dict[Backend, float | None] = {}
        """When each came (back), as it was at the last look."""
        self._era_due_s: dict[Backend, float] = {}
        """When those of known era are asked again."""
        self._at_s = self._look_due_s = float("-inf")
        self._said = ""
        """Of eras, last in the log."""
        self._rounds: list[_Round] = []
        is_one = active is not None and active.check == "discover"
        if active is not None:
            self._rounds.append(_Round(tasks, active.every_s, self._check, has_haste=is_one and probes_era))
        if probes_era and not is_one:
            self._rounds.append(_Round(tasks, UNTOLD_S, self._ask_era, has_haste=True))

    def sweep(self, at_s: float) -> None:
        """Start what is due; a job for the Ticker."""
        self._at_s = at_s
        if at_s >= self._look_due_s:
            self._look_due_s = at_s + LOOK_S
            self._look(at_s)
        for round in self._rounds:
            round.start(at_s)

    def stop(self) -> None:
        """Check nothing any more. Idempotent. Verdicts stay: they are the successor's, or for the pool to
        forget."""
        for backend in self._known:
            self._drop(backend)
        self._known.clear()
        self._rounds.clear()

    def disagreement(self) -> str:
        """How many backends speak which era, if that differs; no addresses. Empty if it does not, or if
        nobody asks."""
        modern, legacy, unknown = self._eras()
        if not self._probes_era or not modern or not legacy:
            return ""
        also = f", of {len(unknown)} it is not known" if unknown else ""
        return f"2026-07-28 is spoken by {len(modern)} and not by {len(legacy)} of its backends{also}"

    # --- who is there ------------------------------------------------------------------

    def _look(self, at_s: float) -> None:
        backends = self._pool.backends
        for backend in backends:
            if backend not in self._known:
                self._take_in(backend, at_s)
            elif backend.warm_from_s is not None and backend.warm_from_s != self._known[backend]:
                self._known[backend] = backend.warm_from_s
                self._era_due_s.pop(backend, None)
                for round in self._rounds:
                    round.came_back(backend)
        if len(self._known) > len(backends):
            for backend in self._known.keys() - set(backends):
                self._drop(backend)
                del self._known[backend]
        if self._probes_era:
            self._compare_eras()

    def _take_in(self, backend: Backend, at_s: float) -> None:
        self._known[backend] = backend.warm_from_s
        if self._active is not None:
            fall, rise = self._active.fall, self._active.rise
            self._health[backend] = Health(fall, rise, is_healthy=backend.is_healthy)
        for round in self._rounds:
            round.add(backend, at_s)

    def _drop(self, backend: Backend) -> None:
        self._health.pop(backend, None)
        self._era_due_s.pop(backend, None)
        for round in self._rounds:
            round.drop(backend)

    def _is_there(self, backend: Backend) -> bool:
        return self._pool.find(backend.id) is backend

    # --- checks ------------------------------------------------------------------------

    async def _check(self, backend: Backend) -> None:
        """One active check."""
        assert self._active is not None
        if not self._is_there(backend):
            return
        is_well = await self._examine(backend, self._active)
        if is_well is not None and self._is_there(backend):
            if not is_well:
                logger.debug("pool %s: backend %s: a check failed", self._pool.name, backend.id)
            self._pool.checked(backend, self._health[backend].add(is_well))

    async def _examine(self, backend: Backend, active: ActiveRule) -> bool | None:
        """Whether it is well; None if that could not be found out."""
        if active.check == "tcp" or _path(active.check.encode()) == _path(backend.path):
            return await self._connect(backend, active.timeout_s)
        if active.check == "discover":
            outgoing = self._question(backend)
        else:
            outgoing = Outgoing(b"GET", active.check.encode(), _PATH_HEADERS, b"")
        try:
            answer = await self._ask(backend, outgoing, active.timeout_s)
        except UpstreamError as error:
            return None if _is_no_result(error) else False
        if active.check != "discover":
            return 200 <= answer.status < 300
        self._learn_era(backend, answer)
        return answer.status < 500

    async def _connect(self, backend: Backend, seconds: float) -> bool | None:
        try:
            async with patience(seconds):
                is_there = await self._pool.transport(backend).probe()
        except TimeoutError:
            return False  # slow is not gone: whether it can be reached is up to the connect timeout
        if self._is_there(backend):
            if is_there:
                self._pool.reached(backend)
            elif is_there is False:
                self._pool.refused(backend)
        return is_there

    async def _ask(self, backend: Backend, outgoing: Outgoing, seconds: float) -> Answer:
        """Send a request of our own, and tell the pool whether the backend is there. Raises
        UpstreamError."""
        try:
            answer = await ask(self._pool.transport(backend), outgoing, seconds)
        except UpstreamError as error:
            if error.phase is Phase.CONNECT and not _is_no_result(error) and self._is_there(backend):
                self._pool.refused(backend)
            raise
        if self._is_there(backend):
            self._pool.reached(backend)
        return answer

    # --- era ---------------------------------------------------------------------------

    async def _ask_era(self, backend: Backend) -> None:
        """One turn of a round in which those whose era is known rest."""
        if not self._is_there(backend) or self._at_s < self._era_due_s.get(backend, self._at_s):
            return
        try:
            answer = await self._ask(backend, self._question(backend), PATIENCE_S)
        except UpstreamError:
            return  # what was known stays
        self._learn_era(backend, answer)

    def _question(self, backend: Backend) -> Outgoing:
        headers = list(HEADERS)
        if self._pool.authorization is not None:
            headers.append((b"authorization", self._pool.authorization))
        return Outgoing(b"POST", backend.path, Fields(headers), DISCOVER)

    def _learn_era(self, backend: Backend, answer: Answer) -> None:
        era = is_modern(answer.status, answer.body)
        if self._probes_era and era is not None and self._is_there(backend):
            self._era_due_s[backend] = self._at_s + ERA_S
            self._pool.learn_era(backend, era)

    def _eras(self) -> tuple[list[Backend], list[Backend], list[Backend]]:
        """Those that speak 2026-07-28, those that do not, and those of which it is not known. Those that
        leave do not count: nothing new goes there."""
        eras: dict[bool | None, list[Backend]] = {True: [], False: [], None: []}
        for backend in self._pool.backends:
            if backend.drain is None:
                eras[backend.is_modern].append(backend)
        return eras[True], eras[False], eras[None]

    def _compare_eras(self) -> None:
        """A line in the log whenever it changes which backends differ."""
        modern, legacy, _ = self._eras()
        said = ""
        if modern and legacy:
            said = f"2026-07-28 is spoken by {_names(modern)} but not by {_names(legacy)}"
            if said != self._said:
                logger.warning("pool %s: backends differ: %s", self._pool.name, said)
        elif self._said:
            logger.info("pool %s: backends agree about their era again", self._pool.name)
        self._said = said


def _path(target: bytes) -> bytes:
    """Of the endpoint that serves ``target``; many do not tell a slash at the end from none."""
    return target.partition(b"?")[0].rstrip(b"/")


def _is_no_result(error: UpstreamError) -> bool:
    """It says nothing about the backend: it was never asked, or on a connection that had ended."""
    return error.stale or error.kind in ("unresolved", "exhausted")


def _names(backends: list[Backend]) -> str:
    names = ", ".join(backend.id for backend in backends[:NAMES_LIMIT])
    rest = len(backends) - NAMES_LIMIT
    return f"{names} and {rest} more" if rest > 0 else names
