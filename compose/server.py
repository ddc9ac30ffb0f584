"""An example MCP server of compose.yaml: that of ``mcp-proxy demo``, where the proxies find it.

Needs the extra ``demo``. It answers with the name of its container, and keeps each session in its own memory,
so a request that reaches the wrong server shows at once.
"""

import socket

import uvicorn
from mcp.server.transport_security import TransportSecuritySettings

from mcp_proxy.cli.demo_server import GRACE_S, build

PORT = 8000

if __name__ == "__main__":
    name = socket.gethostname()
    # The SDK's own guard against DNS rebinding: the proxy asks for it by this name.
    guard = TransportSecuritySettings(allowed_hosts=[f"{name}:{PORT}"])
    app = build(name).streamable_http_app(transport_security=guard)
    uvicorn.run(
        app, host="0.0.0.0", port=PORT, log_level="warning", timeout_graceful_shutdown=GRACE_S, ws="none"
    )
