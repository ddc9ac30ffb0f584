"""Hearing of changes: one subscription that is always there, or being made again.

Rules of this file: ``Listen`` does the talking and returns only by LinkError. What was published
while nobody listened is lost, so every new beginning is reported, the first one too.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

from mcp_proxy.sessions.remote.lane import LinkError
from mcp_proxy.tasks import Tasks

logger = logging.getLogger("mcp_proxy")

FIRST_PAUSE_S: Final = 0.1
LAST_PAUSE_S: Final = 1.0
"""Between attempts, doubled each time: hearing again within a second of the server's return."""

Listen = Callable[[Callable[[], None], Callable[[bytes], None]], Awaitable[None]]
"""``listen(opened, heard)``: subscribe, call ``opened`` once, then ``heard`` for every message."""


class Subscription:
    """Keeps listening from ``start`` to ``close``; both are idempotent."""

    def __init__(
        self,
        listen: Listen,
        tasks: Tasks,
        *,
        opened: Callable[[], None],
        heard: Callable[[bytes], None],
        lost: Callable[[], None],
    ) -> None:
        self.is_open = False
        self._listen = listen
        self._tasks = tasks
        self._on_opened = opened
        self._on_heard = heard
        self._on_lost = lost
        self._pause_s = FIRST_PAUSE_S
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._task is None:
            self._task = self._tasks.spawn(self._follow())

    def close(self) -> asyncio.Task[None] | None:
        """The task that ends now, to be waited for."""
        if self._task is not None:
            self._task.cancel()
        return self._task

    async def _follow(self) -> None:
        while True:
            try:
                await self._listen(self._opened, self._on_heard)
            except LinkError as error:
                logger.debug("session registry: not subscribed: %s", error)
                if self.is_open:
                    self.is_open = False
                    self._on_lost()
            # Jitter: replicas that were cut off together must not come back together.
            await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))
            self._pause_s = min(self._pause_s * 2, LAST_PAUSE_S)

    def _opened(self) -> None:
        logger.debug("session registry: subscribed")
        self.is_open = True
        self._pause_s = FIRST_PAUSE_S
        self._on_opened()
