"""Sessions of all workers, for operators.

Rules of this file: where there is a registry, any worker can ask it, and it tells the others what
changed. Where there is none, each worker knows only what it saw: then all are asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import Listed, Page
from mcp_proxy.workers import calls
from mcp_proxy.workers.link import Call, WorkerError

if TYPE_CHECKING:
    from mcp_proxy.workers.crew import Crew, Worker

REGISTRY_S: Final = 10.0
"""A page may take a registry 5 s."""

R = TypeVar("R")


class CrewSessions:
    """Raises StoreError when no worker can be asked."""

    def __init__(self, crew: Crew, *, is_shared: bool) -> None:
        self._crew = crew
        self._is_shared = is_shared

    async def page(self, cursor: str, limit: int) -> Page:
        if self._is_shared:
            return await _ask(self._askable()[0], calls.SESSIONS_PAGE, cursor, limit)
        return await self._walk(cursor, limit)

    async def _walk(self, cursor: str, limit: int) -> Page:
        """One worker after the other. The cursor is the worker's slot and its own cursor."""
        text, colon, inner = cursor.partition(":")
        start = int(text) if text.isascii() and text.isdecimal() else 0
        if cursor and (not colon or str(start) != text or start >= len(self._crew.workers)):
            raise ValueError("not a cursor of ours")
        for slot in range(start, len(self._crew.workers)):
            worker = self._crew.workers[slot]
            if worker is not None and worker.is_serving:
                page = await _ask(worker, calls.SESSIONS_PAGE, inner if slot == start else "", limit)
                is_last = not page.cursor and slot + 1 == len(self._crew.workers)
                following = f"{slot}:{page.cursor}" if page.cursor else f"{slot + 1}:"
                return Page(page.sessions, "" if is_last else following)
        return Page([], "")

    async def show(self, name: str) -> Listed | None:
        found = [await _ask(worker, calls.SESSION, name) for worker in self._askable()]
        return next((listed for listed in found if listed is not None), None)

    async def end(self, name: str) -> bool:
        ended = [await _ask(worker, calls.END_SESSION, name) for worker in self._askable()]
        return any(ended)

    async def restore(self, sessions: list[Listed]) -> int:
        return await _ask(self._askable()[0], calls.RESTORE_SESSIONS, sessions)

    def _askable(self) -> list[Worker]:
        serving = self._crew.serving
        if not serving:
            raise StoreError("no worker is ready")
        return serving[:1] if self._is_shared else serving


async def _ask(worker: Worker, call: Call[R], *arguments: Any) -> R:
    try:
        return await worker.link.ask(call, *arguments, wait_s=REGISTRY_S)
    except (WorkerError, TimeoutError) as error:
        raise StoreError(f"a worker did not answer: {error}") from error
