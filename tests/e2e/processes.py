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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from tests.tools import PATIENCE_S
from tests.tools.ports import free_ports
from tests.tools.proxy import ROOT

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
def started(
    *arguments: str,
    fds: tuple[int, ...] = (),
    environ: Mapping[str, str] = MappingProxyType({}),
    is_judged: bool = True,
) -> Iterator[Process]:
    """``python arguments`` until the block ends, then SIGTERM. ``is_judged``: a traceback in what it
    printed is a failure."""
    with tempfile.TemporaryFile() as output:
        popen = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **environ},
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        process = Process(popen, output)
        try:
            yield process
        finally:
            _stop(process)
        assert not is_judged or not _has_failed(process.printed()), process.printed()[-8000:]


_SDK_RACE = ("ClosedResourceError", "after response already completed")
"""mcp 2.3: a POST whose session ends in the middle of it is answered twice by the server."""


def _has_failed(printed: str) -> bool:
    """A traceback, but for those of a race inside of the SDK's server."""
    parts = printed.split("Exception in ASGI application")
    return any("Traceback" in part and not any(known in part for known in _SDK_RACE) for part in parts)


def _stop(process: Process) -> None:
    process.popen.terminate()
    try:
        process.popen.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.popen.kill()
        process.popen.wait()
        raise AssertionError(f"did not stop: {process.printed()[-4000:]}") from None


@contextlib.contextmanager
def _inheriting(*arguments: str, environ: Mapping[str, str] = MappingProxyType({})) -> Iterator[str]:
    """``started`` with ``--fd`` of a listening socket; its origin. It may be connected to at once."""
    with contextlib.ExitStack() as stack:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            fd = listening.fileno()
            port = listening.getsockname()[1]
            stack.enter_context(started(*arguments, "--fd", str(fd), fds=(fd,), environ=environ))
        yield f"http://127.0.0.1:{port}"


def replica(name: str) -> contextlib.AbstractContextManager[str]:
    """A replica of ``replica.py``; its origin (``http://host:port``)."""
    return _inheriting("-m", "tests.e2e.replica", "--name", name)


def configuration(pools: dict[str, list[str]], **options: Any) -> dict[str, Any]:
    """One route and one pool per path; ``options`` are those of the pools."""
    return {
        "pools": {path.strip("/"): {"backends": urls, **options} for path, urls in pools.items()},
        "routes": [{"path": path, "pool": path.strip("/")} for path in pools],
    }


@contextlib.contextmanager
def proxy(door: str, config: dict[str, Any]) -> Iterator[str]:
    """The proxy behind this door; its origin. SIGTERM ends it, and cleanly."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "proxy.yaml"
        running = _asgi(file, config) if door == "asgi" else _http11(file, config)
        with running as origin:
            yield origin


def _asgi(file: Path, config: dict[str, Any]) -> contextlib.AbstractContextManager[str]:
    file.write_text(json.dumps(config))
    server = ("-m", "uvicorn", "mcp_proxy.asgi:app", "--log-level", "warning")
    return _inheriting(*server, environ={"MCP_PROXY_CONFIG": str(file)})


@contextlib.contextmanager
def _http11(file: Path, config: dict[str, Any]) -> Iterator[str]:
    port, admin = free_ports(2)
    listen = {"listen": f"127.0.0.1:{port}", "admin": {"listen": f"127.0.0.1:{admin}"}}
    file.write_text(json.dumps(config | listen))
    with started("-m", "mcp_proxy", "serve", "--config", str(file)) as process:
        wait_until_it_accepts(process, port)
        yield f"http://127.0.0.1:{port}"
    assert process.popen.returncode == 0


def wait_until_it_accepts(process: Process, port: int) -> None:
    """The one wait with a pause: before the listener exists there is nothing to wait on."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.popen.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.02)
    raise AssertionError(f"does not accept connections: {process.printed()[-4000:]}")
