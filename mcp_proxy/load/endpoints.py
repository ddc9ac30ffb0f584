"""What the load test starts itself: the bundled server, a proxy, an nginx. Each an address, each with an end.

Rules of this file: loopback only, free ports only. A child gets a process group of its own and ends with the
block that started it, or with this process, however that ends. What it prints is shown only if it fails.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from mcp_proxy.load import LoadError, Target, target

START_S: Final = 20.0
"""How long a child may take until it accepts connections: imports on a busy machine."""
STOP_S: Final = 10.0
"""How long it may take to end after SIGTERM; then it is killed."""
_POLL_S: Final = 0.02
_LAST_WORDS_BYTES: Final = 2000

_NGINX: Final = """\
worker_processes 1;
daemon off;
pid nginx.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    client_max_body_size 4m;
    upstream mcp {{
        server {server};
        keepalive 64;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        keepalive_requests 1000000;
        location / {{
            proxy_pass {scheme}://mcp;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host {authority};
            {tls}
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_next_upstream off;
            proxy_read_timeout 1h;
        }}
    }}
}}
"""
"""The least that lets streams through: what nginx costs, not what an operator should run (see ``nginx/``)."""


@contextlib.contextmanager
def stub() -> Iterator[Target]:
    """The bundled server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port, fd = listening.getsockname()[1], listening.fileno()
        # It is listening already: whoever connects waits until the child accepts.
        command = _python("mcp_proxy.cli.tied", "mcp_proxy.load.stub", "--fd", str(fd))
        started = _run("the bundled server", command, port, pass_fds=(fd,))
        with started:
            yield target(f"http://127.0.0.1:{port}/mcp")


@contextlib.contextmanager
def proxy(behind: Target) -> Iterator[Target]:
    """``mcp-proxy serve`` with its defaults, in front of ``behind``."""
    port = _free_port()
    listen = ("--listen", f"127.0.0.1:{port}", "--admin", "off", "--log-level", "error")
    command = _python("mcp_proxy.cli.tied", "mcp_proxy", "serve", behind.url, *listen)
    with _run("mcp-proxy", command, port):
        yield target(f"http://127.0.0.1:{port}/mcp")


@contextlib.contextmanager
def nginx(behind: Target) -> Iterator[Target]:
    """nginx with the least configuration that lets streams through."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin:/usr/local/sbin")
    if program is None:
        raise LoadError("nginx is not installed, so there is nothing to compare with")
    port = _free_port()
    tls = f"proxy_ssl_server_name on; proxy_ssl_name {behind.host};" if behind.scheme == "https" else ""
    host = f"[{behind.host}]" if ":" in behind.host else behind.host
    config = _NGINX.format(
        port=port, server=f"{host}:{behind.port}", scheme=behind.scheme, authority=behind.authority, tls=tls
    )
    with tempfile.TemporaryDirectory(prefix="mcp-load-nginx-") as folder:
        file = Path(folder, "nginx.conf")
        file.write_text(config)
        arguments = ("-p", f"{folder}/", "-e", "stderr", "-c", str(file))
        with _run("nginx", _python("mcp_proxy.load.guarded", program, *arguments), port):
            yield target(f"http://127.0.0.1:{port}{behind.path}")


STARTED: Final = ("direct", "nginx", "proxy", "nginx+proxy")
"""Names of endpoints that are started here; ``direct`` is there already."""


@contextlib.contextmanager
def endpoint(name: str, direct: Target) -> Iterator[Target]:
    """The endpoint of this name in front of ``direct``. Raises LoadError if it does not start."""
    with contextlib.ExitStack() as stack:
        where = direct
        if name in ("proxy", "nginx+proxy"):
            where = stack.enter_context(proxy(where))
        if name in ("nginx", "nginx+proxy"):
            where = stack.enter_context(nginx(where))
        yield where


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


@contextlib.contextmanager
def _run(name: str, command: Sequence[str], port: int, pass_fds: tuple[int, ...] = ()) -> Iterator[None]:
    # The defaults are what is compared; what the user configured for another proxy stays out of it.
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MCP_PROXY_")}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environ,
            pass_fds=pass_fds,
            process_group=0,
        )
        try:
            _wait_until_listening(name, process, port, output.fileno())
            yield
        finally:
            _end(process)


def _wait_until_listening(name: str, process: subprocess.Popen[bytes], port: int, output: int) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        time.sleep(_POLL_S)
    size = os.fstat(output).st_size
    words = os.pread(output, _LAST_WORDS_BYTES, max(0, size - _LAST_WORDS_BYTES)).decode(errors="replace")
    raise LoadError(f"{name} did not start: {words.strip() or 'it said nothing'}")


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
