"""A real nginx that spreads requests over ports in turn, without affinity: the least that works. What is
shipped to operators is run by ``nginx_shipped.py``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from tests.tools import PATIENCE_S
from tests.tools.nginx_shipped import listening, program
from tests.tools.ports import free_ports

# max_fails=0: a replica that restarts refuses connections for a moment, and the next one is asked at
# once; it must not be left out for ten seconds because of that. A POST that was sent is never repeated.
_CONFIG = """\
worker_processes 1;
daemon off;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 1024; }}
http {{
    access_log access.log;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream mcp {{
        {servers}
        keepalive 32;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://mcp;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            {headers}
            proxy_buffering off;
            proxy_read_timeout 1h;
        }}
    }}
}}
"""


@contextlib.asynccontextmanager
async def nginx(ports: Sequence[int], folder: Path, **headers: str) -> AsyncIterator[int]:
    """In front of ``ports``; yields its own port. ``folder`` exists and gets configuration and logs.
    ``headers`` are set in requests; underscores become hyphens."""
    (port,) = free_ports(1)
    servers = "\n        ".join(f"server 127.0.0.1:{each} max_fails=0;" for each in ports)
    config = folder / "nginx.conf"
    lines = (f"proxy_set_header {name.replace('_', '-')} {value};" for name, value in headers.items())
    config.write_text(_CONFIG.format(port=port, servers=servers, headers="\n            ".join(lines)))
    process = await asyncio.create_subprocess_exec(
        *(program(), "-p", f"{folder}/", "-e", "error.log", "-c", str(config)),
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        await listening(port, process)
        yield port
    finally:
        process.terminate()
        async with asyncio.timeout(PATIENCE_S):
            await process.wait()
