"""A server built with the official SDK, as a process of its own, that tells what it was asked and how many
sessions it has.

Rules of this file: the MCP part is ordinary SDK code. With ``--legacy`` it does what SDKs did before
2026-07-28: it does not look at the version of a request before it looks for its session. Beside MCP there are
plain routes: ``/facts`` for the test, ``/healthz`` for checks, ``/fail/{what}/{status}`` to fail from now on.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

MODERN = "2026-07-28"
WELL = 200


class Facts:
    """What arrived at ``/mcp`` and ``/healthz``, and what is to fail."""

    def __init__(self, server: MCPServer[Any]) -> None:
        self._server = server
        self.requests: list[dict[str, str]] = []
        self.statuses = {"healthz": WELL, "discover": WELL}

    def routes(self) -> list[Route]:
        return [
            Route("/facts", self._facts),
            Route("/healthz", self._healthz),
            Route("/fail/{what}/{status:int}", self._fail, methods=["POST"]),
        ]

    async def _facts(self, _: Request) -> Response:
        live = len(self._server.session_manager._server_instances)
        return JSONResponse({"live": live, "requests": self.requests})

    async def _healthz(self, _: Request) -> Response:
        return Response(status_code=self.statuses["healthz"])

    async def _fail(self, request: Request) -> Response:
        self.statuses[request.path_params["what"]] = request.path_params["status"]
        return Response(status_code=204)


class Watched:
    """ASGI middleware: notes every request, and fails where it is told to."""

    def __init__(self, app: ASGIApp, facts: Facts, is_legacy: bool) -> None:
        self._app = app
        self._facts = facts
        self._is_legacy = is_legacy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in ("/mcp", "/healthz"):
            await self._app(scope, receive, send)
            return
        fields = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        asked = fields.get("mcp-method", "")
        self._facts.requests.append(
            {
                "http": scope["method"],
                "path": scope["path"],
                "by": fields.get("user-agent", ""),
                "method": asked,
            }
        )
        status = self._facts.statuses["discover"]
        if asked == "server/discover" and status != WELL:
            await Response(status_code=status)(scope, receive, send)
            return
        if self._is_legacy and fields.get("mcp-protocol-version") == MODERN:
            headers = [pair for pair in scope["headers"] if pair[0] != b"mcp-protocol-version"]
            scope = {**scope, "headers": headers}
        await self._app(scope, receive, send)


def application(name: str, authority: str, is_legacy: bool) -> ASGIApp:
    server: MCPServer[Any] = MCPServer("wire", log_level="ERROR")

    def whoami() -> str:
        return name

    server.add_tool(whoami)
    guard = TransportSecuritySettings(allowed_hosts=[authority])
    app = server.streamable_http_app(streamable_http_path="/mcp", transport_security=guard)
    facts = Facts(server)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with app.router.lifespan_context(app):
            yield

    return Watched(Starlette(routes=[*app.routes, *facts.routes()], lifespan=lifespan), facts, is_legacy)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--fd", required=True, type=int)
    parser.add_argument("--legacy", action="store_true")
    options = parser.parse_args()
    listening = socket.socket(fileno=options.fd)
    host, port = listening.getsockname()
    app = application(options.name, f"{host}:{port}", options.legacy)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, ws="none")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
