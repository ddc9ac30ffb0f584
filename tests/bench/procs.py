"""Processes of the benchmark: started with an owner, measured by the kernel's own counters, always ended.

Linux only: it reads ``/proc``. A child dies with the benchmark (PDEATHSIG), and ``Process.stop`` ends its
whole process group.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

START_S = 15.0
"""Until a candidate must accept connections. Imports take about one second on a busy machine."""
STOP_S = 3.0
"""Between the polite and the final signal. Logs are the only thing that could be lost."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A candidate cannot be measured; the text says why."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def raise_file_limit() -> int:
    """Soft limit of open files up to the hard limit, which is returned. Children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Process:
    """A child process that listens on ``port``. Use as a context manager."""

    def __init__(
        self, argv: Sequence[str], port: int, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.port = port
        self._log = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                preexec_fn=_die_with_parent,
                start_new_session=True,
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_until_listening(self) -> None:
        """Raises BenchError with the end of the log if the process exits or stays deaf."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._popen.poll() is not None:
                raise BenchError(f"exited with {self._popen.returncode}: {self.log_end()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            time.sleep(0.02)
        raise BenchError(f"does not listen after {START_S:.0f} s: {self.log_end()}")

    def log_end(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) or "it said nothing"

    def pids(self) -> list[int]:
        """The process and all its descendants (workers)."""
        found = [self._popen.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found.extend(int(child) for child in children.read_text().split())
        return found

    def cpu_ns(self) -> int:
        """CPU time used so far by the process and its descendants, user and system."""
        return sum(cpu_ns(pid) for pid in self.pids())

    def waited_ns(self) -> int:
        """For how long it could have run and another process did, 0 where the kernel does not say so."""
        return sum(
            int(file.read_text().split()[1])
            for pid in self.pids()
            for file in Path(f"/proc/{pid}/task").glob("*/schedstat")
        )

    def rss_bytes(self) -> int:
        return sum(rss_bytes(pid) for pid in self.pids())

    def stop(self) -> None:
        """End the process, then whatever is left of its group. Idempotent."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(STOP_S)


def cpu_ns(pid: int) -> int:
    """utime + stime. ``schedstat`` holds the same sum in nanoseconds instead of ticks of 10 ms, which
    would be up to a tenth of a short round; kernels without it fall back to the ticks."""
    threads = [file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    if threads:
        return sum(int(thread[0]) for thread in threads)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_NS


def rss_bytes(pid: int) -> int:
    """Exact resident size; ``statm`` lags behind by a batch of pages per thread."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise BenchError("the kernel reports no resident size")


def _die_with_parent() -> None:
    # SIGTERM, not SIGKILL: an nginx master that is killed leaves its worker behind.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
