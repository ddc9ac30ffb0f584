"""The client of 2026-07-28: no handshake, every request stands for itself."""

from __future__ import annotations

from typing import Any, ClassVar

from mcp_proxy.load import messages
from mcp_proxy.load.users import Scenario
from mcp_proxy.load.users.session import LIST_SHARE, STREAM_SHARE


class ModernUser(Scenario):
    kind: ClassVar[str] = "modern"

    def begin(self) -> None:
        self._ask("server/discover")

    def turn(self) -> None:
        tool = self.facts.tool
        if tool is None or self.random.random() < LIST_SHARE:
            self._ask("tools/list" if self.facts.lists_tools else "server/discover")
            return
        if self.facts.stream_tool is not None and self.random.random() < STREAM_SHARE:
            tool = self.facts.stream_tool
        self._ask("tools/call", {"name": tool.name, "arguments": tool.arguments}, progress=True)

    def _ask(self, method: str, params: dict[str, Any] | None = None, *, progress: bool = False) -> None:
        id = self.client.next_id()
        given = dict(params or {})
        if progress:
            given["_meta"] = {"progressToken": id}
        body = messages.modern_request(id, method, given)
        self.client.ask(method, id, body, messages.modern_fields(method, given), splits=progress)
