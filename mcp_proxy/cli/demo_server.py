"""The example server of ``mcp-proxy demo``: one replica, built with the official Python SDK.

Rules of this file: an ordinary MCP server that knows nothing of a proxy. It keeps state per
session in its own memory, so a call that reaches the wrong replica shows at once. The listening
socket is inherited: whoever started the replica knows its port before it is ready.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections import Counter

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import BaseModel

SLICE_S = 0.3
"""Pause per step of ``bake``: long enough to see that progress arrives one by one."""

GRACE_S = 1
"""How long a stream that is still open delays the end of the replica."""


class Visit(BaseModel):
    """Who answered. ``visit`` counts the calls of this session; None without a session."""

    replica: str
    visit: int | None


def build(replica: str) -> MCPServer[object]:
    """The server with its two tools."""
    server: MCPServer[object] = MCPServer(f"demo-{replica}", version="1", log_level="WARNING")
    visits: Counter[str] = Counter()

    @server.tool()
    def whoami(ctx: Context[object, object]) -> Visit:
        """Which replica answers, and how often this session has asked it."""
        session = (ctx.headers or {}).get("mcp-session-id")
        if session is None:
            return Visit(replica=replica, visit=None)
        visits[session] += 1
        return Visit(replica=replica, visit=visits[session])

    @server.tool()
    async def bake(ctx: Context[object, object], slices: int = 5) -> str:
        """Takes a while and reports progress for every slice."""
        for done in range(1, slices + 1):
            await asyncio.sleep(SLICE_S)
            await ctx.report_progress(done, slices, f"slice {done} of {slices}")
        return f"{slices} slices, baked by {replica}"

    return server


def main() -> None:
    """``python -m mcp_proxy.cli.demo_server --replica NAME --fd N``; serves until SIGTERM."""
    parser = argparse.ArgumentParser(description="one replica of the demo's example server")
    parser.add_argument("--replica", required=True, help="the name it answers with")
    parser.add_argument("--fd", required=True, type=int, help="an inherited listening socket")
    options = parser.parse_args()
    listening = socket.socket(fileno=options.fd)
    host, port = listening.getsockname()[:2]
    # The SDK's own guard against DNS rebinding; the proxy sends the replica's own authority.
    guard = TransportSecuritySettings(allowed_hosts=[f"{host}:{port}"])
    app = build(options.replica).streamable_http_app(transport_security=guard)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_S, ws="none")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
