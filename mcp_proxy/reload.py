"""Another configuration for a running process: when somebody asks, or when its files have changed.

Rules of this file: read and judge everything first; what is in force stays so until the new one is known
to be good, and whatever is wrong with the new one is said where and how to mend it. One reload at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from mcp_proxy.admin import Check
from mcp_proxy.config import Config, ConfigErrors, Loaded, Problem
from mcp_proxy.config.changes import compare
from mcp_proxy.config.watching import LOOK_S, Watched
from mcp_proxy.errors import StartupError

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

logger = logging.getLogger("mcp_proxy")

Apply = Callable[[Config], Awaitable[None]]
"""Puts a configuration in force. Raises StartupError for what cannot be used; then nothing has changed."""


class Reloader:
    """Keeps what is in force. A collector of its own metrics."""

    def __init__(self, loaded: Loaded, apply: Apply) -> None:
        self._loaded = loaded
        self._apply = apply
        self._watched = Watched(loaded.files)
        self._asked = asyncio.Event()
        self._is_current = True
        self._succeeded = 0
        self._failed = 0

    def ask(self) -> None:
        """Read the files again, changed or not; what SIGHUP does."""
        self._asked.set()

    async def run(self) -> None:
        """Look at the files now and then, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._asked.wait()
            except TimeoutError:
                if not self._watched.look():
                    continue
            self._asked.clear()
            await self.reload()

    async def reload(self) -> None:
        """Put in force what the files say now, or say why not. Never raises."""
        try:
            await self._reload()
        except Exception:
            # A defect; whoever looks for changes must survive it, or nothing could be mended any more.
            logger.exception("configuration: the reload broke off")
            self._refuse([])

    async def _reload(self) -> None:
        try:
            loaded = await asyncio.to_thread(self._loaded.again)
        except ConfigErrors as errors:
            self._watched.follow(errors.files)
            self._refuse(errors.problems)
            return
        self._watched.follow(loaded.files)
        changes = compare(self._loaded.config, loaded.config)
        logger.debug("configuration: read anew; pools new: %d, gone: %d", len(changes.new), len(changes.gone))
        for pool, parts in changes.changed.items():
            said = ", ".join(sorted(part.value for part in parts))
            logger.debug("configuration: pool %s: to be made anew: %s", pool, said)
        if changes.issues:
            self._refuse(list(map(loaded.locate, changes.issues)))
            return
        try:
            await self._apply(loaded.config)
        except StartupError as error:
            self._refuse([error])
            return
        self._loaded = loaded
        self._is_current = True
        self._succeeded += 1
        for warning in loaded.warnings:
            logger.warning("configuration: %s", warning)
        logger.info("configuration: reloaded (%s)", ", ".join(changes.keys) or "nothing has changed")

    def _refuse(self, problems: list[Problem] | list[StartupError]) -> None:
        self._is_current = False
        self._failed += 1
        for problem in problems:
            logger.error("configuration: %s", problem)
        logger.error("configuration: not reloaded, the one before stays in force")

    # --- what it shows -----------------------------------------------------------------

    def check(self) -> Check:
        """A line of ``/readyz?verbose``. A proxy that serves as it did is ready."""
        detail = (
            "in force"
            if self._is_current
            else "the last reload failed, see the log; the one before is in force"
        )
        return Check("configuration", True, detail)

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client."""
        total = CounterMetricFamily(
            "mcp_proxy_config_reloads_total", "Reloads of the configuration.", labels=["result"]
        )
        total.add_metric(["done"], self._succeeded)
        total.add_metric(["failed"], self._failed)
        yield total
        yield GaugeMetricFamily(
            "mcp_proxy_config_last_reload_success",
            "0 while the files say something that could not be put in force.",
            value=int(self._is_current),
        )
