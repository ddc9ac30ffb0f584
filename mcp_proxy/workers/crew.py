"""The parent's side of the workers: begin them, keep their number, end them.

Rules of this file:
* Workers are programs of their own, not forks: a fork would copy keys, connections and a running
  event loop. They get two descriptors, the listening socket and one end of the link.
* Workers that share a listening socket take connections when they have time for them; while one is
  dead or busy the others take its share, which they could not with a socket per worker.
* Each has a session of its own (setsid): Ctrl-C in a terminal then reaches the parent alone.
* uvicorn's supervisor does not fit: it kills a worker whose main loop is busy for 5 s, restarts one
  that fails without a pause, waits for ever at the end and knows no second signal.
* The first start is all or nothing and says one sentence. Later a worker that ends is replaced for
  as long as it takes, and the rest goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

from mcp_proxy import clock
from mcp_proxy.admin import Status
from mcp_proxy.errors import StartupError
from mcp_proxy.tasks import Tasks
from mcp_proxy.telemetry.snapshot import NOTHING, Snapshot, merge
from mcp_proxy.workers import calls
from mcp_proxy.workers.link import Call, WorkerError, WorkerGone, WorkerLink

logger = logging.getLogger("mcp_proxy")

START_S: Final = 60.0
"""From the start of a process until it listens. Imports take 0.5 s on an idle machine."""
ANSWER_S: Final = 1.0
"""How long a scrape waits for a busy worker; then its last numbers count."""
POLL_S: Final = 1.0
"""Between two snapshots: at most so much of what it counted is lost with a worker that is killed."""
SETTLED_S: Final = 10.0
"""A worker that served for so long did not fail because of how it was started."""
BACKOFF_S: Final = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Pauses before a worker is replaced, by the number of those before it that did not settle."""
LEAVE_S: Final = 15.0
"""Beyond ``drain_s``, for streams to be ended, tasks to unwind and logs to be written."""


class Worker:
    """One process and what it said last."""

    def __init__(self, process: asyncio.subprocess.Process, link: WorkerLink) -> None:
        self.process = process
        self.link = link
        self.is_serving = False
        self.snapshot = NOTHING
        self.status: Status | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    async def refresh(self) -> None:
        """Ask for its numbers; without an answer the last ones stay."""
        with contextlib.suppress(WorkerError, TimeoutError):
            self.snapshot = await self.link.ask(calls.SNAPSHOT, wait_s=ANSWER_S)

    async def end(self) -> None:
        """Let go of it; a worker that does not end now is killed."""
        self.is_serving = False
        self.link.close()
        try:
            async with asyncio.timeout(LEAVE_S):
                await self.process.wait()
        except TimeoutError:
            logger.error("worker %d did not end and is killed", self.pid)
            self.process.kill()
            await self.process.wait()


class Crew:
    """Keeps ``size`` workers that serve on ``data_socket``, as ``setup`` (pickled) says. The socket
    is the crew's now: it is closed when the crew stops.

    ``start`` once, then ``stop`` and perhaps ``hurry``, and ``over`` at the end in any case.
    """

    def __init__(
        self, size: int, data_socket: socket.socket, setup: bytes, *, drain_s: float, log: str
    ) -> None:
        """``drain_s``: how long a worker may serve after it was told to drain. ``log``: the form of what it
        says, which it has to know before it can be told anything."""
        self.workers: list[Worker | None] = [None] * size
        self.restarts = 0
        self.on_joining: Callable[[Worker], Coroutine[Any, Any, None]] = _nothing
        """Tells a worker that has begun what the others have been told since they began."""
        self.is_stopping = False
        self.is_clean = True
        """Every worker ended by itself when it was told to."""
        self._socket = data_socket
        self._setup = setup
        self._config = b""
        """As the last reload said, for a worker that was starting meanwhile."""
        self._drain_s = drain_s
        self._log = log
        self._tasks = Tasks()
        self._keepers: list[asyncio.Task[None]] = []
        self._began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._buried = NOTHING

    # --- for all workers -------------------------------------------------------------

    @property
    def serving(self) -> list[Worker]:
        return [worker for worker in self.workers if worker is not None and worker.is_serving]

    def total(self) -> Snapshot:
        """What all workers counted, as far as they said; those that ended included."""
        return merge([self._buried, *(worker.snapshot for worker in self.workers if worker is not None)])

    async def each(self, ask: Callable[[Worker], Coroutine[Any, Any, None]]) -> None:
        """``ask`` every worker that serves, at the same time, and wait for all."""
        asking = [self._tasks.spawn(ask(worker)) for worker in self.serving]
        if asking:
            await asyncio.wait(asking)

    def tell(self, call: Call[None]) -> None:
        """Every worker, without waiting; one that is gone need not know."""
        for worker in self.workers:
            if worker is not None:
                self._tasks.spawn(self._tell(worker, call))

    async def _tell(self, worker: Worker, call: Call[None]) -> None:
        with contextlib.suppress(WorkerError):
            await worker.link.ask(call, wait_s=None)

    async def reload(self, setup: bytes, config: bytes, *, drain_s: float) -> None:
        """Put the pickled ``config`` in force in every worker, and ``setup`` for those to come. Raises
        StartupError if it cannot be used; the first worker finds that out, and then no other is asked."""
        told: set[Worker] = set()
        while left := [worker for worker in self.serving if worker not in told]:
            try:
                await left[0].link.ask(calls.RELOAD, config, wait_s=START_S)
            except (StartupError, WorkerError, TimeoutError) as error:
                if isinstance(error, StartupError) and not told:
                    raise
                self._replace(left[0])
            told.add(left[0])
        self._setup, self._config, self._drain_s = setup, config, drain_s

    def _replace(self, worker: Worker) -> None:
        """It has not taken over a configuration that others have."""
        if worker.is_serving and not self.is_stopping:
            logger.error("worker %d could not be told the new configuration and is replaced", worker.pid)
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                worker.process.kill()

    # --- beginning and end -----------------------------------------------------------

    async def start(self) -> None:
        """Returns when all workers listen, or when ``stop`` was called before. Raises StartupError
        when one cannot start."""
        self._keepers = [self._tasks.spawn(self._keep(slot)) for slot in range(len(self.workers))]
        await self._began
        self._tasks.spawn(self._poll())

    def stop(self) -> None:
        """Let the workers drain, delay and all; what SIGTERM does, and a request of an operator.
        Idempotent."""
        if self.is_stopping:
            return
        self.is_stopping = True
        self._stopping.set()
        self._socket.close()  # the port is free when the workers have closed theirs
        if not self._began.done():
            self._began.set_result(None)
        self.tell(calls.DRAIN)
        self._tasks.spawn(self._bound_the_end())

    def hurry(self) -> None:
        """``stop`` without waiting for exchanges. Idempotent."""
        self.stop()
        if not self._hurrying.is_set():
            self._hurrying.set()
            logger.info("hurrying: nothing is waited for any more")
            self.tell(calls.HURRY)

    async def over(self) -> None:
        """Returns when every worker has ended after ``stop``."""
        if self._keepers:
            await asyncio.wait(self._keepers)

    async def aclose(self) -> None:
        """Ends everything at once; for a crew that is not over. Idempotent."""
        self.hurry()
        await self.over()
        await self._tasks.aclose()

    async def _bound_the_end(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                await self._hurrying.wait()
        await asyncio.sleep(LEAVE_S)
        for worker in self.workers:
            if worker is not None:
                logger.error("worker %d did not end and is killed", worker.pid)
                worker.process.kill()

    # --- one worker after another ----------------------------------------------------

    async def _keep(self, slot: int) -> None:
        unsettled = 0
        while not self.is_stopping:
            began_s = clock.now()
            try:
                await self._one(slot)
            except (StartupError, WorkerError, OSError, TimeoutError) as error:
                self._failed_to_start(str(error) or "a worker took too long to start")
            if clock.now() - began_s >= SETTLED_S:
                unsettled = 0
            pause_s = BACKOFF_S[min(unsettled, len(BACKOFF_S) - 1)]
            unsettled += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
            self.restarts += not self.is_stopping

    def _failed_to_start(self, reason: str) -> None:
        if not self._began.done():
            self._began.set_exception(StartupError(reason))
            self.hurry()
        elif not self.is_stopping:
            logger.error("a worker could not start: %s", reason)

    async def _one(self, slot: int) -> None:
        """One worker from its start to its end."""
        worker = await self._launch()
        self.workers[slot] = worker
        try:
            await self._serve(worker)
        finally:
            await worker.end()
            self.workers[slot] = None
            self._buried = merge([self._buried, worker.snapshot.remains()])

    async def _launch(self) -> Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "mcp_proxy.workers"),
                    *(str(self._socket.fileno()), str(theirs.fileno()), self._log),
                    pass_fds=(self._socket.fileno(), theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                    # The worker finds its modules where this process found them, and nowhere else.
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            except BaseException:
                ours.close()
                raise
        return Worker(process, await WorkerLink.over(ours, self._tasks))

    async def _serve(self, worker: Worker) -> None:
        try:
            await self._begin(worker)
            worker.is_serving = True
            logger.debug("worker %d serves", worker.pid)
            if len(self.serving) == len(self.workers) and not self._began.done():
                self._began.set_result(None)
            if self.is_stopping:
                await self._tell(worker, calls.DRAIN)
            worker.snapshot = await worker.link.ask(calls.ENDED, wait_s=None)
        except WorkerGone:
            if not worker.is_serving:
                raise StartupError("a worker ended before it listened") from None
            self.is_clean = self.is_clean and not self.is_stopping
            logger.error("worker %d ended unexpectedly", worker.pid)
        else:
            if not self.is_stopping:
                logger.warning("worker %d ended", worker.pid)

    async def _begin(self, worker: Worker) -> None:
        """Returns when it serves as the others do, and no reload can have missed it: nothing may be awaited
        between the last look at ``_setup`` and ``is_serving``."""
        setup = self._setup
        await worker.link.ask(calls.SERVE, setup, wait_s=START_S)
        worker.status = await worker.link.ask(calls.STATUS, wait_s=START_S)
        await self.on_joining(worker)
        while setup is not self._setup:
            setup = self._setup
            await worker.link.ask(calls.RELOAD, self._config, wait_s=START_S)
            await self.on_joining(worker)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            await self.each(Worker.refresh)


async def _nothing(worker: Worker) -> None: ...
