"""JSON-RPC messages of both eras, the headers that go with them, and what an answer says. Pure.

Rules of this file: MCP 2025-11-25 and 2026-07-28, transports. A modern request repeats its method and the
name it acts on in headers, and says its version in both places. JSON-RPC errors come with HTTP 200, too, and
so do failed tools (``isError``): an answer is right when it has a result for the id that was asked.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from mcp_proxy import __version__

LEGACY: Final = "2025-11-25"
MODERN: Final = "2026-07-28"

ACCEPT: Final = ("Accept", "application/json, text/event-stream")
JSON: Final = ("Content-Type", "application/json")
EVENTS: Final = ("Accept", "text/event-stream")
AGENT: Final = ("User-Agent", f"mcp-proxy-load/{__version__}")

_PREFIX: Final = "io.modelcontextprotocol"
_CLIENT: Final = {"name": "mcp-proxy-load", "version": __version__}
_META: Final = {
    f"{_PREFIX}/protocolVersion": MODERN,
    f"{_PREFIX}/clientCapabilities": {},
    f"{_PREFIX}/clientInfo": _CLIENT,
}
_NAMES: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
_PLAIN: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?")

encode = msgspec.json.encode

Message = dict[str, Any]
Fields = list[tuple[str, str]]


def request(id: int, method: str, params: Mapping[str, Any] | None = None) -> bytes:
    """Of the legacy era."""
    message: Message = {"jsonrpc": "2.0", "id": id, "method": method}
    if params is not None:
        message["params"] = params
    return encode(message)


def notification(method: str) -> bytes:
    return encode({"jsonrpc": "2.0", "method": method})


def initialize(id: int) -> bytes:
    params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": _CLIENT}
    return request(id, "initialize", params)


def modern_request(id: int, method: str, params: Mapping[str, Any] | None = None) -> bytes:
    given = dict(params or {})
    given["_meta"] = {**_META, **given.get("_meta", {})}
    return request(id, method, given)


def session_fields(session: str | None, version: str | None) -> Fields:
    """Of every request behind ``initialize``."""
    fields = [("MCP-Protocol-Version", version)] if version else []
    return [*fields, ("Mcp-Session-Id", session)] if session else fields


def resume_field(last_id: str) -> tuple[str, str]:
    """``Last-Event-ID`` is the one header in UTF-8 (HTML Living Standard, 9.2.4); others are latin-1 here."""
    return "Last-Event-ID", last_id.encode().decode("latin-1")


def version_of(result: Message) -> str | None:
    """The revision that a server has chosen, if it can stand in a header."""
    version = result.get("protocolVersion")
    return version if isinstance(version, str) and _PLAIN.fullmatch(version) else None


def modern_fields(method: str, params: Mapping[str, Any] | None = None) -> Fields:
    fields = [("MCP-Protocol-Version", MODERN), ("Mcp-Method", method)]
    name = (params or {}).get(_NAMES.get(method, ""))
    return [*fields, ("Mcp-Name", header_value(name))] if isinstance(name, str) else fields


def header_value(text: str) -> str:
    """As a header may carry it: as it is, or in the base64 form of the specification."""
    if _PLAIN.fullmatch(text) and not (text.startswith("=?base64?") and text.endswith("?=")):
        return text
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


def parse(data: bytes | str) -> Message | None:
    """One JSON object, or None."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_answer_to(message: Message, id: int) -> bool:
    """A response (not a request or notification of the server) with this id."""
    return message.get("id") == id and "method" not in message and not isinstance(message.get("id"), bool)


def fault(message: Message, id: int) -> str | None:
    """Why the answer is none that a user could do something with; None: it is right."""
    error = message.get("error")
    if error is not None:
        code = error.get("code") if isinstance(error, dict) else None
        return f"JSON-RPC error {code if isinstance(code, int) else 'without a code'}"
    if not is_answer_to(message, id):
        return "an answer to something else"
    result = message.get("result")
    if not isinstance(result, dict):
        return "an answer without a result"
    if result.get("isError"):
        return "isError in the result"
    return None


def progress(message: Message) -> int | None:
    """The number of a numbered notification: of ``notifications/progress``, or what the bundled server puts
    into its log notifications."""
    params = message.get("params")
    if not isinstance(params, dict):
        return None
    if message.get("method") == "notifications/progress":
        number = params.get("progress")
    else:
        data = params.get("data")
        number = data.get("number") if isinstance(data, dict) else None
    return int(number) if isinstance(number, int | float) and not isinstance(number, bool) else None
