"""What the pages of the documentation take for granted, and which of their commands are not run by a test.

Rules of this file: tables only, and every entry needs its reason; the tests see to it that none outlives what
it is for. A page says what a reader types; what else has to be there (a server at the address of an example,
a file, a variable) stands here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from tests.tools.terminal import Server

MCP: Final = ("10.0.0.11:8000", "10.0.0.12:8000", "127.0.0.1:3000")
"""Replicas of an MCP server, as most examples have them."""

REDIS: Final = "10.0.0.20:6379"


def mcp(*addresses: str) -> Server:
    """A server of the official SDK at each address."""
    return Server([sys.executable, "-m", "tests.deploy.docs_servers", *addresses], addresses)


def redis(address: str = REDIS) -> Server:
    host, _, port = address.rpartition(":")
    options = ["--protected-mode", "no", "--save", "", "--dir", "/tmp", "--loglevel", "warning"]
    return Server(["redis-server", "--bind", host, "--port", port, *options], [address])


class Page(NamedTuple):
    """What one page takes for granted."""

    servers: Sequence[Server] = ()
    environ: Mapping[str, str] = {}
    before: Mapping[str, Sequence[str]] = {}
    """What somebody has typed elsewhere before the block that begins with this line; ends with the block."""


PROXY: Final = "mcp-proxy http://10.0.0.11:8000/mcp http://10.0.0.12:8000/mcp"
SHARING: Final = f"{PROXY} --sessions redis://{REDIS}/0"
CONFIGURED: Final = "echo 'pools: {weather: {backends: [http://10.0.0.11:8000/mcp]}}' > proxy.yaml"

_NAME: Final = "9f11fdbe98d04f31a86f847ace6583357d99416b"
SESSION: Final = (
    f"printf '%s\\n' '{{\"mcp_proxy_sessions\":1}}'"
    f' \'{{"name":"{_NAME}","backend":"http://10.0.0.11:8000/mcp","expires_in_s":7000}}\''
    " '{\"mcp_proxy_sessions_end\":1}' | mcp-proxy sessions import"
)
"""One session, by the name that the pages give it."""

ACCESS_LINE: Final = json.dumps(
    {
        "ts": "2026-11-21T15:31:16.984Z", "route": "/mcp", "pool": "default",
        "backend": "http://10.0.0.11:8000/mcp",
        "era": "legacy", "http_method": "POST", "method": "tools/call", "name": "count", "kind": "request",
        "status": 200, "reason": "", "session": "50f6820f", "peer": "127.0.0.1", "duration_ms": 4.7,
        "upstream_ms": 3.6, "overhead_ms": 1.1, "bytes_in": 149, "bytes_out": 242, "stream": False,
        "attempts": 1, "end": "--", "request_id": "7d48ebb9f4fec27ff10edb06e21effc5", "principal": "",
        "ttfb_ms": 4.7, "trace": "",
    }
)  # fmt: skip

PAGES: Final[Mapping[str, Page]] = {
    "README.md": Page(
        servers=[mcp(*MCP), redis()],
        environ={"WEATHER_TOKEN": "Bearer weather"},
        before={"mcp-proxy backends": [PROXY]},
    ),
    "docs/configuration.md": Page(environ={"WEATHER_TOKEN": "Bearer weather"}),
    "docs/load-testing.md": Page(servers=[mcp(*MCP)]),
    "docs/operations.md": Page(
        servers=[mcp(*MCP), redis()],
        before={
            "mcp-proxy drain http://10.0.0.11:8000/mcp --for 10m --wait": [PROXY],
            "mcp-proxy sessions export backup.ndjson": [SHARING, SESSION],
            "curl -si -X POST -H 'content-type: application/json' -H 'mcp-session-id: nobody' \\": [PROXY],
            "MCP_PROXY_CONFIG=proxy.yaml uvicorn mcp_proxy.asgi:app --no-proxy-headers": [CONFIGURED],
        },
    ),
    "docs/sessions.md": Page(
        servers=[mcp(*MCP), redis()], before={"mcp-proxy sessions list": [SHARING, SESSION]}
    ),
    "docs/telemetry.md": Page(
        servers=[mcp(*MCP)],
        before={
            "mcp-proxy log-level": [PROXY],
            "mcp-proxy report access.log --by route,method,tool": [
                f"printf '%s\\n' '{ACCESS_LINE}' | tee access.log > access.log.1",
                "gzip -k access.log.1 && mv access.log.1.gz access.log.2.gz",
            ],
        },
    ),
}
"""By the name of the page; ``before`` by the first line of the command."""


# --- commands that stay ------------------------------------------------------------------------------

_VARIABLES: Final = r"(?:\w+=(?:\$\([^)]*\)|[^\s$])+ +)*"

READY: Final[Mapping[str, str]] = {
    rf"{_VARIABLES}(?:\.venv/bin/)?mcp-proxy (?:serve |https?:|--)": r"^  try  ",
    rf"{_VARIABLES}uvicorn .*mcp_proxy\.asgi:": r"Uvicorn running on",
}
"""What runs until Ctrl-C, and what it prints when it is there."""

FOLLOWS: Final = re.compile(r"mcp-proxy tap\b(?:.*--admin \S+:(?P<port>\d+))?")
"""What prints nothing until something happens, and has connected when it is there."""

LISTENS: Final = re.compile(r"(?:uvicorn|redis-server) .*--port (?P<port>\d+).*&$", re.S)
"""What prints nothing, and accepts connections when it is there."""

ADMIN_PORT: Final = 9901


# --- commands that are not run here ------------------------------------------------------------------

NOT_RUN: Final[Mapping[str, str]] = {
    r"make run": "CI runs it: scripts/clean-machine.sh and tests/e2e/test_demo.py",
    r"make test": ".ci/run runs it, and it runs this",
    r"python3 -m venv \.venv && \. \.venv/bin/activate$": "scripts/setup.sh does it; a new one is empty",
    r"pip install -c constraints\.txt \.$": "scripts/setup.sh does it; here it would replace what is tested",
    r"(?:make |python -m tests\.)bench\b": "takes a quiet machine; tests/unit/test_bench.py has its parts",
}
"""By what they begin with."""
