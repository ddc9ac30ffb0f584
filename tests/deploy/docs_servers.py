"""``python -m tests.deploy.docs_servers HOST:PORT ...``: a replica of an MCP server at each address.

Rules of this file: the example server of ``mcp-proxy demo``, so a real one of the official SDK.
"""

from __future__ import annotations

import asyncio
import sys

import uvicorn
from mcp.server.transport_security import TransportSecuritySettings

from mcp_proxy.cli.demo_server import build


async def _serve(addresses: list[str]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for address in addresses:
            host, _, port = address.rpartition(":")
            guard = TransportSecuritySettings(allowed_hosts=[address, f"localhost:{port}"])
            app = build(host).streamable_http_app(transport_security=guard)
            config = uvicorn.Config(app, host=host, port=int(port), log_level="warning", ws="none")
            tasks.create_task(uvicorn.Server(config).serve())


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1:]))
