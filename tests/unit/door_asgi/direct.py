"""An ASGI server reduced to one request, for what real servers rarely do."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.tools import PATIENCE_S

Messages = list[dict[str, Any]]


class Server:
    """An ASGI server with one request. ``received`` are its messages; the last repeats when the
    client has ``left``."""

    def __init__(self, *received: dict[str, Any], **scope: Any) -> None:
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "https",
            "path": "/mcp",
            "raw_path": b"/mcp",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"a"), (b"content-length", b"2")],
            "client": ("192.0.2.1", 5),
        } | scope
        self.received = list(received or [{"type": "http.request", "body": b"{}"}])
        self.sent: Messages = []
        self.left = asyncio.Event()
        self.send_error: Exception | None = None

    async def receive(self) -> dict[str, Any]:
        if self.received:
            return self.received.pop(0)
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if self.send_error is not None:
            raise self.send_error
        self.sent.append(message)

    async def run(self, app: Any) -> Messages:
        async with asyncio.timeout(PATIENCE_S):
            await app(self.scope, self.receive, self.send)
        return self.sent
