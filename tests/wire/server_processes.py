"""Servers as processes: started, killed, frozen, and started again where they were.

Rules of this file: a server inherits its listening socket, so that it may be connected to at once and nobody
polls. Only processes that were started here are signalled, by their handle.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.tools import PATIENCE_S
from tests.tools.proxy import ROOT

SCRIPTED = "tests.wire.journal_server"
OFFICIAL = "tests.wire.sdk_server"


class Server:
    """``with Server(name, folder) as server``: runs until the block ends. ``folder`` gets what it prints."""

    def __init__(self, name: str, folder: Path, *options: str, program: str = SCRIPTED) -> None:
        self.name = name
        self.port = 0
        self._program = program
        self._options = options
        self._journal = folder / f"{name}.journal"
        self._printed = folder / f"{name}.output"
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def start(self) -> None:
        """Also after ``kill``, at the same port."""
        with socket.create_server(("127.0.0.1", self.port), backlog=1024) as listening:
            self.port = listening.getsockname()[1]
            command = [sys.executable, "-m", self._program, "--name", self.name]
            command += ["--fd", str(listening.fileno()), *self._options]
            if self._program == SCRIPTED:
                command += ["--journal", str(self._journal)]
            with self._printed.open("ab") as output:
                self._popen = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    pass_fds=(listening.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )

    def kill(self) -> None:
        """SIGKILL: connections are reset or closed, new ones refused, nothing is finished. Idempotent."""
        assert self._popen is not None
        self._popen.kill()
        self._popen.wait(PATIENCE_S)

    def freeze(self) -> None:
        """The kernel accepts connections and bytes for it, and nobody is answered."""
        assert self._popen is not None
        self._popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._popen is not None
        self._popen.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if kind is None:
            assert "Traceback" not in self._printed.read_text(), self._printed.read_text()[-4000:]
            assert [entry for entry in self.entries() if "violation" in entry] == []

    # -- what a scripted one has received -------------------------------------------------------

    def entries(self) -> list[dict[str, Any]]:
        """The journal so far, of all its lives."""
        if not self._journal.exists():
            return []
        return [json.loads(line) for line in self._journal.read_text().splitlines()]

    def received(self, method: str = "tools/call") -> list[Any]:
        """JSON-RPC ids of the requests of this method, in order."""
        return [entry["id"] for entry in self.entries() if entry.get("method") == method]

    @property
    def made(self) -> list[str]:
        """Sessions that it has made."""
        return [entry["made"] for entry in self.entries() if "made" in entry]

    def about(self, session: str) -> int:
        """Requests of this session."""
        return sum(entry.get("session") == session for entry in self.entries())


@contextlib.contextmanager
def started(folder: Path, *names: str, options: tuple[str, ...] = ()) -> Iterator[list[Server]]:
    """Scripted servers of these names."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Server(name, folder, *options)) for name in names]
