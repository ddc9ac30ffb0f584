"""Processes of the e2e tests: replicas, and the proxy behind either door.

Rules of this file: whatever can inherit its listening socket does, so a test may connect before the
process is ready and nobody polls. What a process printed is judged when it ends: a traceback fails
the tests that used it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.tools import PATIENCE_S
from tests.tools.proxy import ROOT, free_ports

DOORS = ("http11", "asgi")
TRANSPORTS = ("http11", "httpx")


@dataclass(frozen=True)
class Process:
    """A running process, owned by ``started``."""

    popen: subprocess.Popen[bytes]
    output: IO[bytes]

    def printed(self) -> str:
        self.output.seek(0)
        return self.output.read().decode(errors="replace")


@contextlib.contextmanager
def started(*arguments: str, fds: tuple[int, ...] = (), **environ: str) -> Iterator[Process]:
    """``python arguments`` until the block ends; then SIGTERM, and a look at what it printed."""
    with tempfile.TemporaryFile() as output:
        popen = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | environ,
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        process = Process(popen, output)
        try:
            yield process
        finally:
            popen.terminate()
            try:
                popen.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()
                raise AssertionError(f"did not stop: {process.printed()[-4000:]}") from None
        assert "Traceback" not in process.printed(), process.printed()[-8000:]


@contextlib.contextmanager
def replica(name: str) -> Iterator[str]:
    """A replica of ``replica.py``; its origin (``http://host:port``)."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        fd = listening.fileno()
        origin = "http://127.0.0.1:{1}".format(*listening.getsockname())
        arguments = ("-m", "tests.e2e.replica", "--name", name, "--fd", str(fd))
        running = started(*arguments, fds=(fd,))
        with contextlib.ExitStack() as stack:
            stack.enter_context(running)
            listening.close()
            yield origin


def configuration(pools: dict[str, list[str]], **options: Any) -> dict[str, Any]:
    """One route and one pool per path; ``options`` are those of the pools."""
    return {
        "pools": {path.strip("/"): {"backends": urls, **options} for path, urls in pools.items()},
        "routes": [{"path": path, "pool": path.strip("/")} for path in pools],
    }


@contextlib.contextmanager
def proxy(door: str, config: dict[str, Any]) -> Iterator[str]:
    """The proxy behind this door; its origin. Stopped with SIGTERM, and that is clean."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "proxy.yaml"
        if door == "asgi":
            file.write_text(json.dumps(config))
            with socket.create_server(("127.0.0.1", 0)) as listening:
                origin = "http://127.0.0.1:{1}".format(*listening.getsockname())
                fd = listening.fileno()
                arguments = ("-m", "uvicorn", "mcp_proxy.asgi:app", "--fd", str(fd), "--log-level", "warning")
                with started(*arguments, fds=(fd,), MCP_PROXY_CONFIG=str(file)):
                    listening.close()
                    yield origin
        else:
            port, admin = free_ports(2)
            listen = {"listen": f"127.0.0.1:{port}", "admin": {"listen": f"127.0.0.1:{admin}"}}
            file.write_text(json.dumps(config | listen))
            with started("-m", "mcp_proxy", "serve", "--config", str(file)) as process:
                _wait_until_it_accepts(process, port)
                yield f"http://127.0.0.1:{port}"


def _wait_until_it_accepts(process: Process, port: int) -> None:
    """The one wait with a pause: before the listener exists there is nothing to wait on."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.popen.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.02)
    raise AssertionError(f"the proxy does not accept connections: {process.printed()[-4000:]}")
