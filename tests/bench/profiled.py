"""Runs a module as a program under cProfile and writes the dump when it ends, however it ends.

``python -m tests.bench.profiled DUMP MODULE [ARGUMENT ...]``
"""

from __future__ import annotations

import cProfile
import runpy
import signal
import sys


def main() -> None:
    dump, module = sys.argv[1:3]
    sys.argv = [module, *sys.argv[3:]]
    # uvicorn raises the signal again after its shutdown; without a handler that ends the process
    # before anything is written.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    profile = cProfile.Profile()
    try:
        profile.runcall(runpy.run_module, module, run_name="__main__", alter_sys=True)
    finally:
        profile.dump_stats(dump)


if __name__ == "__main__":
    main()
