"""The way to what holds the keys: the seam between operations and servers.

Rules of this file: no library. A Link speaks in keys and chooses the server; a Server is one
server and speaks in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from mcp_proxy.clock import now
from mcp_proxy.sessions.remote.lane import Answer, Command, Lane
from mcp_proxy.tasks import Tasks


class Link(Protocol):
    """The way to one server or to many. Whatever is asked is answered within the budget, or
    raises StoreError. One answer per command."""

    async def ask(self, key: bytes, *commands: Command) -> list[Answer]:
        """All commands are about ``key``, or about none."""

    async def ready(self) -> None:
        """Returns when ``nodes`` is known."""

    def nodes(self) -> Sequence[str]:
        """Ids of those that hold keys, in an order that stays."""

    async def ask_node(self, node_id: str, *commands: Command) -> list[Answer]: ...


class Server(Protocol):
    """One server, as the library reaches it. Raises LinkError."""

    async def exchange(self, commands: Sequence[Command]) -> list[Answer]: ...

    async def listen(
        self, channel: str, opened: Callable[[], None], heard: Callable[[bytes], None]
    ) -> None: ...

    async def aclose(self) -> None: ...


class SingleLink:
    """One server, one lane."""

    def __init__(
        self, server: Server, tasks: Tasks, budget_s: float, changed: Callable[[str | None], None]
    ) -> None:
        self._server = server
        self._lane = Lane(server.exchange, tasks, budget_s, changed)
        self._since_s = now()
        self.listen = server.listen
        self.suspect = self._lane.suspect
        self.start = self._lane.suspect

    async def ask(self, key: bytes, *commands: Command) -> list[Answer]:
        return await self._lane.submit(commands)

    async def ask_node(self, node_id: str, *commands: Command) -> list[Answer]:
        return await self._lane.submit(commands)

    async def ready(self) -> None: ...

    def nodes(self) -> Sequence[str]:
        return ("0",)

    def state(self) -> tuple[bool, str, float]:
        """Whether the server answers, what to call it if not, and since when."""
        breaker = self._lane.breaker
        return breaker.is_closed and self._lane.is_reached, "redis", breaker.failing_since_s or self._since_s

    async def aclose(self) -> None:
        self._lane.close()
        await self._server.aclose()
