"""``python -m mcp_proxy.load``: the process of the generator. People use ``mcp-proxy load``."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()  # before anything else makes a socket, a thread or a lock

from mcp_proxy.load.generator import main  # noqa: E402

if __name__ == "__main__":
    main()
