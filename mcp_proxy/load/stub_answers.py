"""What the bundled server says: its tools, its refusals, and the bodies of its answers."""

from __future__ import annotations

import re
from typing import Any, Final

from mcp_proxy.load.messages import LEGACY, MODERN, encode
from mcp_proxy.load.stub_http import Exchange, Request

STEPS: Final = 4
"""Progress notifications of the tool ``count``."""
PATH: Final = "/mcp"

HANDSHAKE: Final = ("2025-03-26", "2025-06-18", LEGACY)
_LOOPBACK: Final = re.compile(r"(?:https?://)?(?:localhost|127\.0\.0\.1|\[::1\])(?::\d+)?", re.ASCII)
_NOTES: Final = {"readOnlyHint": True, "destructiveHint": False, "idempotentHint": True}
_SCHEMA: Final = {"type": "object", "properties": {}}
TOOLS: Final = [
    {"name": "echo", "description": "Answers at once.", "inputSchema": _SCHEMA, "annotations": _NOTES},
    {"name": "count", "description": "Counts, by events.", "inputSchema": _SCHEMA, "annotations": _NOTES},
]
SERVER: Final = {"name": "mcp-proxy-load-stub", "version": "1"}
VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
UNSUPPORTED: Final = -32022


def refusal(request: Request) -> int | None:
    """What is wrong with the head, in the order in which it matters."""
    headers = request.headers
    if request.path.partition("?")[0] != PATH:
        return 404
    if not _LOOPBACK.fullmatch(headers.get("host", "")):
        return 421
    if "origin" in headers and not _LOOPBACK.fullmatch(headers["origin"]):
        return 403
    if request.method not in ("POST", "GET", "DELETE"):
        return 405
    if request.method == "POST":
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return 415
        accept = headers.get("accept", "")
        if "application/json" not in accept or "text/event-stream" not in accept:
            return 406
    return None


def tool_of(message: dict[str, Any]) -> str | None:
    params = message.get("params")
    name = params.get("name") if message["method"] == "tools/call" and isinstance(params, dict) else None
    return name if isinstance(name, str) else None


def respond(exchange: Exchange, message: dict[str, Any]) -> None:
    """Requests that are answered at once, alike in both eras."""
    method, tool = message["method"], tool_of(message)
    if method == "tools/list":
        result: dict[str, Any] = {"tools": TOOLS, "ttlMs": 0, "cacheScope": "public"}
    elif method == "server/discover":
        result = {"supportedVersions": [MODERN], "capabilities": {"tools": {}}, "_meta": {}}
    elif method == "ping":
        result = {}
    elif tool == "echo":
        result = text_result("echo")
    else:
        code, status = (-32602, 200) if tool is not None else (-32601, 404)
        refuse(exchange, status, message, code, "Unknown tool" if tool else "Method not found")
        return
    exchange.answer(200, result_body(message, result))


def text_result(text: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], "isError": False, "resultType": "complete"}


def progress(message: dict[str, Any], number: int) -> dict[str, Any]:
    token = ((message.get("params") or {}).get("_meta") or {}).get("progressToken", message["id"])
    params = {"progressToken": token, "progress": number, "total": STEPS}
    return {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}


def event(message: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % encode(message)


def result_body(message: dict[str, Any], result: dict[str, Any]) -> bytes:
    return encode({"jsonrpc": "2.0", "id": message.get("id"), "result": result})


def refuse(
    exchange: Exchange, status: int, message: dict[str, Any] | None, code: int, text: str, data: object = None
) -> None:
    error = {"code": code, "message": text} | ({} if data is None else {"data": data})
    body = encode({"jsonrpc": "2.0", "id": (message or {}).get("id"), "error": error})
    exchange.answer(status, body)
