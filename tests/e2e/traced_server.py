"""A server built with the official SDK, with OpenTelemetry on, as a process of its own.

Rules of this file: the MCP part is ordinary SDK code, traced by the SDK itself; HTTP is traced around it.
"""

from __future__ import annotations

import argparse
import socket
from typing import Any

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from opentelemetry import trace
from starlette.types import ASGIApp

from tests.e2e.tracing import TracedHttp, provider

SERVICE = "traced-server"
RESULT = "planted-result-6f02"


def application(collector: str) -> ASGIApp:
    traces = provider(SERVICE, collector)
    trace.set_tracer_provider(traces)
    server: MCPServer[Any] = MCPServer("traced", log_level="ERROR")

    def echo(text: str) -> str:
        return f"{RESULT} {text}"

    def fail(text: str) -> str:
        raise ToolError(f"{RESULT} {text}")

    for tool in (echo, fail):
        server.add_tool(tool)
    guard = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    app = server.streamable_http_app(streamable_http_path="/mcp", transport_security=guard)
    return TracedHttp(app, traces.get_tracer("http"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--collector", required=True)
    parser.add_argument("--fd", required=True, type=int)
    options = parser.parse_args()
    listening = socket.socket(fileno=options.fd)
    app = application(options.collector)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, ws="none")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
