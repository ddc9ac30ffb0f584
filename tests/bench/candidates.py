"""What is compared: how each candidate is configured and started. The only file that knows them by name.

Every proxy has one worker, speaks HTTP/1.1 with keep-alive on both sides, writes an access line per
request to a file and passes streams on unbuffered. Each is configured as its users would do it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.bench.procs import BenchError, Process, free_port

REFERENCE = "nginx"
"""Ratios are relative to it."""


class Setup(NamedTuple):
    """Where one instance of a candidate runs."""

    directory: Path
    """Its own; configuration and logs go here."""
    port: int
    backend_port: int
    file_limit: int
    profile: Path | None = None
    """Write a cProfile dump here when the instance ends (our doors only)."""
    sessions: str = "{store: memory}"
    """Where sessions are kept (our doors only)."""
    telemetry: str = ""
    """What is told about calls (our doors only), if not metrics and access lines."""
    admin_port: int = 0
    """Of our doors; 0: any."""


class Start(NamedTuple):
    argv: list[str]
    env: Mapping[str, str] = {}


_NGINX = """\
worker_processes 1;
daemon off;
user root;
pid nginx.pid;
error_log error.log;
events {{ worker_connections {connections}; }}
http {{
    access_log access.log combined;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    keepalive_timeout 1h;
    keepalive_requests 100000000;
    upstream mcp {{
        {servers}
        keepalive 128;
        keepalive_requests 100000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location /mcp {{
            proxy_pass http://mcp;
            proxy_http_version 1.1;
            proxy_set_header Connection "";{host}
            proxy_buffering off;
            proxy_read_timeout 1h;
        }}
    }}
}}
"""

_HAPROXY = """\
global
    log stdout format raw local0
    nbthread 1
    maxconn {connections}
defaults
    mode http
    log global
    option httplog
    option http-no-delay
    option abortonclose
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h
frontend mcp
    bind 127.0.0.1:{port} backlog 4096
    default_backend servers
backend servers
    balance leastconn
    http-reuse always
    stick-table type string len 64 size 100k expire 2h
    stick store-response res.hdr(Mcp-Session-Id)
    stick match req.hdr(Mcp-Session-Id)
    server one 127.0.0.1:{backend_port} pool-max-conn 128 pool-purge-delay 1h
"""

_OURS = """\
listen: 127.0.0.1:{port}
admin: {{listen: 127.0.0.1:{admin_port}}}
sessions: {sessions}
pools:
  bench: {{backends: ["http://127.0.0.1:{backend_port}/mcp"]}}
routes:
  - {{path: /mcp, pool: bench}}
telemetry: {telemetry}
"""


_TELEMETRY = "{{access_log: json, access_log_file: {directory}/access.log, metrics: true}}"


def _nginx(setup: Setup, *replicas: int) -> Start:
    """``replicas``: ports of proxies that are served in turn, instead of the backend."""
    config = setup.directory / "nginx.conf"
    # A stream takes two connections, and nginx allocates the whole table at start.
    config.write_text(
        _NGINX.format(
            port=setup.port,
            # In front of another proxy Host has to stay what the client asked for.
            host=" proxy_set_header Host $http_host;" if replicas else "",
            servers="\n        ".join(
                f"server 127.0.0.1:{port};" for port in replicas or [setup.backend_port]
            ),
            connections=setup.file_limit * 4 // 5,
        )
    )
    return Start([installed("nginx"), "-p", f"{setup.directory}/", "-e", "error.log", "-c", str(config)])


def _haproxy(setup: Setup) -> Start:
    config = setup.directory / "haproxy.cfg"
    # HAProxy refuses to start unless two descriptors per connection fit the limit.
    config.write_text(
        _HAPROXY.format(
            port=setup.port, backend_port=setup.backend_port, connections=setup.file_limit * 2 // 5
        )
    )
    return Start([installed("haproxy"), "-db", "-f", str(config)])


def _http11(setup: Setup) -> Start:
    arguments = ["mcp_proxy", "serve", "--config", str(_our_config(setup)), "--log-level", "warning"]
    return Start([*_python(setup), *arguments])


def _asgi(setup: Setup) -> Start:
    arguments = ["uvicorn", "mcp_proxy.asgi:app", "--host", "127.0.0.1", "--port", str(setup.port)]
    quiet = ["--no-access-log", "--log-level", "warning", "--loop", "uvloop", "--http", "httptools"]
    # As the README says: the proxy judges forwarded addresses itself (trusted_proxies), and what
    # uvicorn had already replaced it could not. Date and Server stay uvicorn's own: the door leaves
    # Date to its server, and with --no-date-header an answer would have none (RFC 9110 section 6.6.1).
    quiet.append("--no-proxy-headers")
    return Start([*_python(setup), *arguments, *quiet], {"MCP_PROXY_CONFIG": str(_our_config(setup))})


CANDIDATES: Mapping[str, Callable[[Setup], Start]] = {
    "nginx": _nginx,
    "haproxy": _haproxy,
    "http11": _http11,
    "asgi": _asgi,
}
OURS = ("http11", "asgi")


def start(name: str, setup: Setup) -> Process:
    """Start one instance; it listens when this returns. Raises BenchError if it cannot be used."""
    return _started(CANDIDATES[name], setup)


def start_spreader(setup: Setup, ports: Sequence[int]) -> Process:
    """nginx in front of ``ports``, in turn and without affinity."""
    return _started(lambda setup: _nginx(setup, *ports), setup)


def _started(candidate: Callable[[Setup], Start], setup: Setup) -> Process:
    setup.directory.mkdir(parents=True, exist_ok=True)
    argv, env = candidate(setup)
    process = Process(argv, setup.port, setup.directory / "output.log", env)
    try:
        process.wait_until_listening()
    except BaseException:
        process.stop()
        raise
    return process


def start_backend(directory: Path) -> Process:
    port = free_port()
    process = Process(
        [sys.executable, "-m", "tests.bench.backend", str(port)], port, directory / "backend.log"
    )
    try:
        process.wait_until_listening()
    except BaseException:
        process.stop()
        raise
    return process


def installed(program: str) -> str:
    # Debian keeps both in sbin, which is not on everybody's PATH.
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise BenchError(f"{program} is not installed")
    return path


def _our_config(setup: Setup) -> Path:
    config = setup.directory / "mcp-proxy.yaml"
    config.write_text(
        _OURS.format(
            port=setup.port,
            backend_port=setup.backend_port,
            admin_port=setup.admin_port or free_port(),
            sessions=setup.sessions,
            telemetry=setup.telemetry or _TELEMETRY.format(directory=setup.directory),
        )
    )
    return config


def _python(setup: Setup) -> list[str]:
    if setup.profile is None:
        return [sys.executable, "-m"]
    return [sys.executable, "-m", "tests.bench.profiled", str(setup.profile)]
