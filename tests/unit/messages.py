"""Heads and bodies of MCP messages as bytes, and what routing makes of them."""

from __future__ import annotations

import json
from typing import Any

from mcp_proxy.envelope import parse
from mcp_proxy.headers import RequestHead, read_request
from mcp_proxy.replies import TABLE
from mcp_proxy.routing import Plan, plan_post
from mcp_proxy.wire import Rejection

MODERN = "2026-07-28"
LEGACY = ("2024-10-07", "2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
UNKNOWN = ("2027-01-01", "", "2025-11-25, 2026-07-28", "2026-07-28 ", "v1")

META_VERSION = "io.modelcontextprotocol/protocolVersion"


def head(**fields: str) -> RequestHead:
    """``mcp_name="x"`` stands for the line ``mcp-name: x``; ``pv`` and ``sid`` for the two common ones."""
    names = {"pv": "mcp-protocol-version", "sid": "mcp-session-id"}
    lines = [
        (names.get(key, key.replace("_", "-")).encode(), value.encode()) for key, value in fields.items()
    ]
    return read_request([(b"host", b"localhost"), *lines])


def message(method: str, *, claim: str | None = None, id: object = 1, **params: Any) -> dict[str, Any]:
    """A request; ``id=None`` makes it a notification. ``claim``: the version in ``_meta``."""
    if claim is not None:
        params["_meta"] = {META_VERSION: claim}
    text: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
    return text if id is None else text | {"id": id}


def post(body: object, **fields: str) -> Plan | Rejection:
    return plan_post(head(**fields), parse(json.dumps(body, ensure_ascii=False).encode()))


def modern(method: str, **params: Any) -> Plan | Rejection:
    """A correct modern request."""
    mirrored = {"mcp_method": method}
    if method in ("tools/call", "prompts/get"):
        mirrored["mcp_name"] = params.setdefault("name", "echo")
    if method == "resources/read":
        mirrored["mcp_name"] = params.setdefault("uri", "file:///a")
    return post(message(method, claim=MODERN, **params), pv=MODERN, **mirrored)


def refused(outcome: Plan | Rejection) -> tuple[int, int | None, bytes]:
    """Status, JSON-RPC code and echoed id."""
    assert isinstance(outcome, Rejection)
    template = TABLE[outcome.reason]
    return template.status, template.code, outcome.id


MISMATCH = (400, -32020, b"1")
INVALID = (400, -32600, b"null")
