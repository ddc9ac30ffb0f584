"""The program of a worker: ``python -m mcp_proxy.workers DATA_FD LINK_FD LOG``. Started by ``crew.py``."""

from __future__ import annotations

import sys

from mcp_proxy.workers.child import main

if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), "json" if sys.argv[3] == "json" else "text")
