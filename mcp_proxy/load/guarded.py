"""Runs a program and ends it when whoever started it is gone.

``python -m mcp_proxy.load.guarded PROGRAM [ARGUMENT ...]``

Rules of this file: the standard library only. The starter holds the other end of standard input and never
writes; the kernel closes that end however the starter dies, and then the program gets SIGTERM.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any


def main() -> None:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def pass_on(*_: Any) -> None:
        child.terminate()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        child.terminate()

    signal.signal(signal.SIGTERM, pass_on)
    threading.Thread(target=watch, daemon=True).start()
    sys.exit(child.wait())


if __name__ == "__main__":
    main()
