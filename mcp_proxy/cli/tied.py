"""Runs a module as ``python -m`` would, and ends it when whoever started it is gone.

Rules of this file: the standard library only, because what it runs must not notice it. The
starter holds the other end of standard input and never writes; the kernel closes that end however
the starter dies, SIGKILL included, and end of file turns into SIGTERM here.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def _watch() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """``python -m mcp_proxy.cli.tied MODULE [ARGUMENT ...]``"""
    del sys.argv[0]
    threading.Thread(target=_watch, name="tied", daemon=True).start()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
