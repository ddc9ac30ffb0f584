"""Running a source in a test: what it publishes, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from mcp_proxy.backends import Endpoint, Source
from tests.tools import PATIENCE_S


class Published:
    """Collects what a source publishes."""

    def __init__(self) -> None:
        self.all: list[tuple[Endpoint, ...]] = []
        self._changed = asyncio.Event()

    def __call__(self, endpoints: Sequence[Endpoint]) -> None:
        self.all.append(tuple(endpoints))
        self._changed.set()

    @property
    def hosts(self) -> list[str]:
        """Of the last one."""
        return [endpoint.host for endpoint in self.all[-1]]

    async def count(self, count: int) -> tuple[Endpoint, ...]:
        """Wait until so many have been published; the last of them."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.all) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.all[count - 1]


@asynccontextmanager
async def running(source: Source) -> AsyncIterator[Published]:
    """Ends with the source cancelled and gone."""
    published = Published()
    task = asyncio.get_running_loop().create_task(source.run(published))
    try:
        yield published
        assert not task.done(), "a source never ends"
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=PATIENCE_S)
        assert task.cancelled()
