"""``python -m mcp_proxy`` and the command ``mcp-proxy``."""

from __future__ import annotations

from mcp_proxy.cli.main import main

if __name__ == "__main__":
    main()
