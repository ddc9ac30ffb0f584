"""The owner of every task. Nothing in the package starts a task any other way.

An ``asyncio.TaskGroup`` would cancel all proxied traffic when one task fails; here a failure
is one exchange's failure, logged with its traceback, and the rest lives on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

logger = logging.getLogger("mcp_proxy")

CLOSE_S: Final = 5.0
"""How long cancelled tasks may take to unwind."""


class Tasks:
    """A set of running tasks. ``aclose`` cancels and awaits them; idempotent."""

    __slots__ = ("_close_s", "_is_closed", "_running")

    def __init__(self, close_s: float = CLOSE_S) -> None:
        self._close_s = close_s
        self._is_closed = False
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def spawn(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``coro`` until it ends; the caller may cancel the task it gets. Once closed, it
        is cancelled before it begins."""
        task = asyncio.get_running_loop().create_task(coro)
        self._running.add(task)
        task.add_done_callback(self._done)
        if self._is_closed:
            task.cancel()
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task failed", exc_info=error)

    async def aclose(self) -> None:
        self._is_closed = True
        for task in self._running:
            task.cancel()
        if self._running:
            _, late = await asyncio.wait(set(self._running), timeout=self._close_s)
            if late:
                logger.error("%d tasks did not end within %g s", len(late), self._close_s)
