"""A session store whose answers are in the test's hands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

from mcp_proxy.sessions import Listed, Page, SessionKey, SessionRecord
from tests.unit.fakes import settle


class SlowStore:
    """Implements SessionStore with awaitables that the test resolves: ``answer`` or ``fail``."""

    name = "slow"

    def __init__(self) -> None:
        self.asked: list[tuple[str, SessionKey, asyncio.Future[Any]]] = []
        self.finished: list[str] = []
        """Operations whose coroutine ran to its end."""
        self.touched: list[SessionKey] = []
        self.disclaimed: list[SessionKey] = []

    def _ask(self, operation: str, key: SessionKey) -> Awaitable[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.asked.append((operation, key, future))

        async def wait() -> Any:
            result = await future
            self.finished.append(operation)
            return result

        return wait()

    def start(self) -> None:
        """Nothing to begin."""

    def get(self, key: SessionKey, principal: str) -> Awaitable[SessionRecord | None]:
        return self._ask("get", key)

    def reread(self, key: SessionKey, principal: str) -> Awaitable[SessionRecord | None]:
        return self._ask("reread", key)

    def issue(self, key: SessionKey, record: SessionRecord) -> tuple[SessionKey, SessionRecord]:
        return key, record

    def create(self, key: SessionKey, record: SessionRecord) -> Awaitable[bool]:
        return self._ask("create", key)

    def move(self, key: SessionKey, old: SessionRecord, new: SessionRecord) -> Awaitable[bool]:
        return self._ask("move", key)

    def delete(self, key: SessionKey) -> Awaitable[None]:
        return self._ask("delete", key)

    def claim(self, key: SessionKey, seconds: float) -> Awaitable[bool]:
        return self._ask("claim", key)

    def disclaim(self, key: SessionKey) -> None:
        self.disclaimed.append(key)

    def touch(self, key: SessionKey) -> None:
        self.touched.append(key)

    def count(self, route: str) -> int:
        return 0

    def page(self, cursor: str, limit: int) -> Page:
        return Page([], "")

    def show(self, name: str) -> Listed | None:
        return None

    def end(self, name: str) -> bool:
        return False

    def restore(self, sessions: Sequence[Listed]) -> int:
        return 0

    def health(self) -> tuple[bool, str]:
        return True, "slow"

    def sweep(self, at_s: float) -> None:
        """Nothing is due."""

    async def aclose(self) -> None:
        """Nothing to close."""

    async def answer(self, value: object) -> None:
        """Resolve the oldest question, if somebody still waits."""
        future = self.asked.pop(0)[2]
        if not future.done():
            future.set_result(value)
        await settle()

    async def fail(self, error: Exception) -> None:
        future = self.asked.pop(0)[2]
        if not future.done():
            future.set_exception(error)
        await settle()
