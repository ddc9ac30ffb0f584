"""The proxy as an ASGI application: ``mcp_proxy.asgi:app``, or ``create_app`` inside of another.

Rules of this file: importing it reads nothing and opens nothing. ``app`` is an object of its own
and not a module ``__getattr__``, because hypercorn looks names up without asking the module.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mcp_proxy.config import Config, ConfigErrors, load
from mcp_proxy.errors import StartupError

if TYPE_CHECKING:
    from mcp_proxy.downstream.asgi import AsgiDoor
    from mcp_proxy.downstream.asgi_head import Scope
    from mcp_proxy.downstream.asgi_reply import Receive, Send
    from mcp_proxy.downstream.settings import DoorSettings


def create_app(config: Config) -> AsgiDoor:
    """An ASGI application. Raises StartupError for certificates or log files that cannot be used.

    ``listen``, ``admin``, ``tls``, ``workers`` and ``telemetry.log`` are the server's business here;
    ``listen`` and ``external_url`` still say which Hosts are served. With sessions in memory the server must
    run one worker process.
    """
    from mcp_proxy.app import Service

    return Service(config).door


class EnvironmentApp:
    """Configured by MCP_PROXY_CONFIG or MCP_PROXY_* when it is first called. What is wrong with
    them fails the start of the server, with every problem in its log."""

    def __init__(self) -> None:
        self._door: AsgiDoor | None = None

    @property
    def http11(self) -> DoorSettings | None:
        """For ``--http mcp_proxy.downstream.http11:Http11Protocol``."""
        return self._configured().http11

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            door = self._door or self._configured()
        except (ConfigErrors, StartupError) as error:
            if scope["type"] != "lifespan":
                raise
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await door(scope, receive, send)

    def _configured(self) -> AsgiDoor:
        if self._door is None:
            self._door = create_app(load(None, os.environ, {}))
        return self._door


app = EnvironmentApp()
