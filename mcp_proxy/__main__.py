"""``python -m mcp_proxy`` and the command ``mcp-proxy``."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the command of the process, and exit with its code."""
    if os.getpid() == 1:
        # The kernel gives process 1 of a container no signal that it has no handler for: until the proxy
        # serves, and handles SIGTERM itself, stopping would wait for the whole grace. Nothing runs yet.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from mcp_proxy.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
