"""A RedisRegistry in use, and what it told its owner."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import SessionKey, SessionRecord
from mcp_proxy.sessions.redis import RedisRegistry
from mcp_proxy.tasks import Tasks
from tests.tools import PATIENCE_S

T = TypeVar("T")

RECORD = SessionRecord("one", principal="p", upstream_id=b"up", initialize=b'{"method":"initialize"}')
MOVED = SessionRecord("two", principal="p", upstream_id=b"up2", generation=1)


def name(number: int) -> str:
    return SessionKey("/mcp", b"session-%d" % number).name


def session(of: str) -> str:
    """The key under which Redis has it."""
    return f"mcp-proxy:session:{of}"


class Replica:
    """A registry and what it said: ``changes`` and ``resets``."""

    def __init__(self, url: str, *, ttl_s: float = 60.0, budget_s: float = 0.25, **options: Any) -> None:
        self.tasks = Tasks()
        self.registry = RedisRegistry(url, ttl_s=ttl_s, tasks=self.tasks, budget_s=budget_s, **options)
        self.registry.on_change = self._on_change
        self.registry.on_reset = self._on_reset
        self.changes: list[str] = []
        self.resets = 0
        self._said = asyncio.Event()

    def _on_change(self, of: str) -> None:
        self.changes.append(of)
        self._said.set()

    def _on_reset(self) -> None:
        self.resets += 1
        self._said.set()

    async def heard(self, condition: Callable[[], object]) -> None:
        """Until what was said so far meets ``condition``."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._said.clear()
                await self._said.wait()

    async def works(self, operation: Callable[[], Awaitable[T]]) -> T:
        """The first answer after an outage. Between attempts the proxy itself gets to work."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(StoreError):
                    return await operation()
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def replica(url: str, *, waits: bool = True, **options: Any) -> AsyncIterator[Replica]:
    """``waits``: until it is connected and listens."""
    one = Replica(url, **options)
    one.registry.start()
    try:
        if waits:
            await one.heard(lambda: one.resets)
            await one.works(lambda: one.registry.fetch(name(0)))
        yield one
    finally:
        await one.registry.aclose()
        await one.tasks.aclose()


async def fails(operation: Awaitable[object]) -> str:
    """It must, and within the patience of the test; what it says."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            answer = await operation
    except StoreError as error:
        return str(error)
    raise AssertionError(f"an answer instead of StoreError: {answer!r}")


async def outcomes(*operations: Awaitable[T]) -> list[T | StoreError]:
    """All at once; answers and StoreErrors. Anything else is raised."""
    found: list[T | StoreError] = []
    async with asyncio.timeout(PATIENCE_S):
        for outcome in await asyncio.gather(*operations, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, StoreError):
                raise outcome
            found.append(outcome)
    return found
