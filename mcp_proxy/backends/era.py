"""Which era a backend speaks: how it is asked, and what its answer means.

Rules of this file: pure. The question is ``server/discover`` of 2026-07-28, well-formed for servers of that
revision (server/discover, transports: Server Validation). One that knows only sessions must not make one for
it. Several SDKs do for whatever comes without a session id, so the question names a session that never was:
they refuse that, and 2026-07-28 says to ignore it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from mcp_proxy import __version__

VERSION: Final = "2026-07-28"

USER_AGENT: Final = (b"user-agent", f"mcp-proxy/{__version__}".encode())
"""Of every request on the proxy's own account, so that it can be told from clients' in a backend's log."""

_PREFIX: Final = "io.modelcontextprotocol"

DISCOVER: Final = msgspec.json.encode(
    {
        "jsonrpc": "2.0",
        "id": "mcp-proxy",
        "method": "server/discover",
        "params": {
            "_meta": {
                f"{_PREFIX}/protocolVersion": VERSION,
                f"{_PREFIX}/clientCapabilities": {},
                f"{_PREFIX}/clientInfo": {"name": "mcp-proxy", "version": __version__},
            }
        },
    }
)
"""The body."""

HEADERS: Final = (
    (b"content-type", b"application/json"),
    (b"accept", b"application/json, text/event-stream"),
    (b"accept-encoding", b"identity"),
    USER_AGENT,
    (b"mcp-protocol-version", VERSION.encode()),
    (b"mcp-method", b"server/discover"),
    (b"mcp-session-id", b"none"),
)

_UNSUPPORTED_VERSION: Final = -32022

_UNSETTLED: Final = frozenset((-32603, -32021, -32020))
"""Internal error; and what servers of 2026-07-28 alone say, which our question gives no reason for."""

_OF_OTHER_THINGS: Final = frozenset((401, 403, 407, 408, 421, 425, 429))
"""Credentials, host names, load: these come before the era is looked at."""


def is_modern(status: int, body: bytes) -> bool | None:
    """Whether who answered so speaks 2026-07-28; None if that does not tell."""
    if status >= 500 or 300 <= status < 400 or status in _OF_OTHER_THINGS:
        return None
    message = _message(body)
    if message is None:
        return False if status >= 400 else None
    if message.error is None:
        return message.result is not None and VERSION in message.result.supported_versions
    if message.error.code == _UNSUPPORTED_VERSION:
        data = message.error.data
        supported = data.get("supported") if isinstance(data, dict) else None
        return isinstance(supported, list) and VERSION in supported
    return None if message.error.code in _UNSETTLED else False


class _Result(msgspec.Struct, rename="camel"):
    supported_versions: list[str] = []


class _Error(msgspec.Struct):
    code: int
    data: Any = None


class _Message(msgspec.Struct):
    result: _Result | None = None
    error: _Error | None = None


_decode: Final = msgspec.json.Decoder(_Message).decode


def _message(body: bytes) -> _Message | None:
    """The response in a JSON body, or in the first event of a stream that has one."""
    lines = [line[5:] for line in body.splitlines() if line.startswith(b"data:")]
    for text in [body, *lines]:
        try:
            message = _decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if message.result is not None or message.error is not None:
            return message
    return None
