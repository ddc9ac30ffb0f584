"""The way to one server: operations of one loop tick travel together.

Rules of this file: no library, no protocol; ``Exchange`` is what asks. Every operation that was
accepted gets its answer or StoreError, by its deadline: batches leave in the order in which they
were queued, so whoever waits behind ``IN_FLIGHT`` silent batches is let in when the first of them
is given up, which is before its own deadline. One timer per batch, none per operation.

Failures are of two kinds. The server refuses one operation: only that one fails. The server does
not answer: the batch fails, and the breaker counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from mcp_proxy.clock import now, patience
from mcp_proxy.errors import NotAsked, StoreError
from mcp_proxy.sessions.remote.breaker import Breaker
from mcp_proxy.tasks import Tasks

logger = logging.getLogger("mcp_proxy")

IN_FLIGHT: Final = 8
"""Batches, and so connections. Redis works on one at a time; more only hide the way there."""

QUEUE_LIMIT: Final = 10_000
"""Operations that wait. What comes above would not be answered within the budget either."""

BATCH_LIMIT: Final = 1_000
"""Commands of one batch: a few milliseconds of the server's time."""

PROBE_BUDGET_S: Final = 1.0
"""A probe may have to ask several sentinels for the way, one after the other."""

PROBES: Final = 2
"""A connection that was lost while it was idle says nothing about the server; a second one does."""

Command = tuple[bytes | str | int, ...]


class LinkError(Exception):
    """The server cannot be asked; the text says why, for people."""


class Refusal(NamedTuple):
    """The server answered one command with an error."""

    text: str


class Redirect(NamedTuple):
    """Another node is to be asked. ``ask``: only this once, the slot is on its way."""

    slot: int
    host: str
    port: int
    ask: bool


Answer = object
"""As the server gave it, or a Refusal or a Redirect."""

Exchange = Callable[[Sequence[Command]], Awaitable[list[Answer]]]
"""Asks; one answer for each command, in their order. Raises LinkError; may be cancelled."""


class _Operation:
    """Commands that travel together and are answered together."""

    __slots__ = ("commands", "deadline_s", "future")

    def __init__(self, commands: Sequence[Command], deadline_s: float) -> None:
        self.commands = commands
        self.deadline_s = deadline_s
        self.future: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()


class Lane:
    """Queue, batches and breaker of one server.

    ``changed(cause)`` is called when the breaker opens, with the cause, and when it closes or
    the server answers for the first time, with None.
    """

    def __init__(
        self, exchange: Exchange, tasks: Tasks, budget_s: float, changed: Callable[[str | None], None]
    ) -> None:
        self.breaker = Breaker()
        self.is_reached = False
        """The server has answered at least once."""
        self._exchange = exchange
        self._tasks = tasks
        self._budget_s = budget_s
        self._changed = changed
        self._queue: deque[_Operation] = deque()
        self._batches: dict[asyncio.Task[None], list[_Operation]] = {}
        self._flush_scheduled = False
        self._answered = 0
        """Batches."""
        self._prober: asyncio.Task[None] | None = None
        self._is_closed = False

    # --- operations ------------------------------------------------------------------

    def submit(self, commands: Sequence[Command]) -> asyncio.Future[list[Answer]]:
        """Queue ``commands``; they leave with the current loop tick, side by side. Raises
        NotAsked at once if there is no use in waiting."""
        if self._is_closed:
            raise NotAsked("the registry is closed")
        if not self.breaker.is_closed:
            raise NotAsked("redis is unreachable")
        if len(self._queue) >= QUEUE_LIMIT:
            raise NotAsked("too many operations wait for redis")
        operation = _Operation(commands, now() + self._budget_s)
        self._queue.append(operation)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)
        return operation.future

    def _flush(self) -> None:
        self._flush_scheduled = False
        while self._queue and len(self._batches) < IN_FLIGHT:
            batch: list[_Operation] = []
            size = 0
            while self._queue and size < BATCH_LIMIT:
                operation = self._queue.popleft()
                if not operation.future.done():  # its caller may have left
                    batch.append(operation)
                    size += len(operation.commands)
            if batch:
                task = self._tasks.spawn(self._run(batch))
                self._batches[task] = batch
                task.add_done_callback(self._over)

    async def _run(self, batch: list[_Operation]) -> None:
        remaining_s = batch[0].deadline_s - now()  # of the oldest
        try:
            async with patience(remaining_s):
                answers = await self._exchange([command for one in batch for command in one.commands])
        except LinkError as error:
            self._failed(batch, str(error))
        except TimeoutError:
            self._failed(batch, "no answer in time")
        else:
            self._answered += 1
            self.breaker.succeeded()
            self._reached()
            _distribute(batch, answers)

    def _over(self, task: asyncio.Task[None]) -> None:
        """Also of a batch that was cancelled, perhaps before it began, or that failed by a bug."""
        _fail(self._batches.pop(task), "redis was not asked")
        if self._queue and not self._is_closed:
            self._flush()

    def _failed(self, batch: list[_Operation], cause: str) -> None:
        _fail(batch, f"redis: {cause}")
        if self.breaker.failed(now()):
            self._opened(cause)

    # --- the state of the server -----------------------------------------------------

    def suspect(self) -> None:
        """Something else went wrong with the server, or it was never asked: find out how it is."""
        if self._prober is None and not self._is_closed:
            self._prober = self._tasks.spawn(self._probe())

    def _opened(self, cause: str) -> None:
        waiting, self._queue = self._queue, deque()
        _fail(waiting, f"redis: {cause}")
        self._changed(cause)
        self.suspect()

    async def _probe(self) -> None:
        """Until the server answers."""
        try:
            while True:
                await asyncio.sleep(max(self.breaker.probe_at_s - now(), 0.0))
                if (self.breaker.is_closed or self.breaker.probe(now())) and await self._is_answered():
                    return
        finally:
            self._prober = None

    async def _is_answered(self) -> bool:
        cause = ""
        answered = self._answered
        for _ in range(PROBES):
            cause = await self._ping()
            if not cause or self._answered != answered:
                cause = ""  # it has answered somebody else meanwhile
                break
        has_turned = self.breaker.probed(not cause, now())
        if cause:
            if has_turned:
                self._opened(cause)
            return False
        if has_turned or not self.is_reached:
            self.is_reached = True
            self._tasks.spawn(self._warm_up())
            self._changed(None)
        return True

    async def _warm_up(self) -> None:
        """Open the connections that the first burst will want: opening one takes three round trips, which
        may be more than an operation has time for."""
        await asyncio.gather(*(self._ping() for _ in range(IN_FLIGHT)))

    async def _ping(self) -> str:
        """Why there was no answer; empty if there was one."""
        try:
            async with patience(PROBE_BUDGET_S / PROBES):
                await self._exchange([("PING",)])
        except LinkError as error:
            return str(error)
        except TimeoutError:
            return "no answer in time"
        except Exception:  # or nobody would ever ask again
            logger.exception("session registry: a probe failed")
            return "internal error"
        return ""

    def _reached(self) -> None:
        if not self.is_reached:
            self.is_reached = True
            self._changed(None)

    @property
    def is_idle(self) -> bool:
        return not self._queue and not self._batches

    # --- the end ---------------------------------------------------------------------

    def close(self) -> None:
        """Fail whatever waits or is under way. Idempotent."""
        self._is_closed = True
        for task in self._batches:
            task.cancel()
        if self._prober is not None:
            self._prober.cancel()
        waiting, self._queue = self._queue, deque()
        _fail(waiting, "the registry is closed")


def _distribute(batch: list[_Operation], answers: list[Answer]) -> None:
    at = 0
    for operation in batch:
        end = at + len(operation.commands)
        if not operation.future.done():
            operation.future.set_result(answers[at:end])
        at = end


def _fail(operations: Sequence[_Operation], text: str) -> None:
    for operation in operations:
        if not operation.future.done():
            operation.future.set_exception(StoreError(text))
