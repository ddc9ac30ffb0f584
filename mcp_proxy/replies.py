"""Every answer that the proxy authors itself, in one table.

Rules of this file: pure. The body is a JSON-RPC error whose ``id`` is the request's own,
byte for byte; ``error.data.reason`` and ``Mcp-Proxy-Reason`` are the same stable word, so
that a person with curl sees who answered. Codes are standard JSON-RPC ones or MCP's
``-32020``; none is minted from a reserved range. A 404 of an unknown path is plain text on
purpose: with a JSON-RPC body, clients would take it for an MCP server's verdict.
"""

from __future__ import annotations

from typing import Final

import msgspec

from mcp_proxy.wire import Headers, Rejection

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
HEADER_MISMATCH: Final = -32020

_RETRY: Final = (b"retry-after", b"1")
"""Seconds. Restarts and fail-overs take that long; SDK clients ignore it today."""


class Template(msgspec.Struct, frozen=True):
    status: int
    code: int | None
    """None: plain text body."""
    message: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


TABLE: Final[dict[str, Template]] = {
    # The request is not HTTP as it should be.
    "bad_request": Template(400, INVALID_REQUEST, "Bad request"),
    "request_timeout": Template(408, INVALID_REQUEST, "Request timeout"),
    "body_too_large": Template(413, INVALID_REQUEST, "Request body too large"),
    "uri_too_long": Template(414, INVALID_REQUEST, "Request target too long"),
    "expectation_failed": Template(417, INVALID_REQUEST, "Expectation failed"),
    "head_too_large": Template(431, INVALID_REQUEST, "Request head too large"),
    "not_implemented": Template(501, INVALID_REQUEST, "Transfer coding not implemented"),
    "http_version": Template(505, INVALID_REQUEST, "HTTP version not supported"),
    # The request is not for us, or not allowed.
    "forbidden_origin": Template(403, INVALID_REQUEST, "Origin not allowed"),
    "not_found": Template(404, None, "No MCP endpoint at this path"),
    "method_not_allowed": Template(405, INVALID_REQUEST, "Method not allowed"),
    "unsupported_media_type": Template(415, INVALID_REQUEST, "Content-Type must be application/json"),
    "misdirected": Template(421, INVALID_REQUEST, "Host not served here"),
    "loop_detected": Template(508, INTERNAL_ERROR, "Proxy loop detected"),
    # The message is not MCP as it should be.
    "parse_error": Template(400, PARSE_ERROR, "Parse error"),
    "invalid_request": Template(400, INVALID_REQUEST, "Invalid request"),
    "header_mismatch": Template(400, HEADER_MISMATCH, "Header mismatch"),
    "missing_meta": Template(400, INVALID_PARAMS, "Invalid params"),
    "missing_session": Template(400, INVALID_REQUEST, "Missing session id"),
    # One body for unknown, expired and foreign sessions: nothing can be learnt from it.
    "session_not_found": Template(404, INVALID_REQUEST, "Session not found"),
    # The client has as much in progress as it may have; nothing ran.
    "too_many_requests": Template(429, INTERNAL_ERROR, "Too many at once", (_RETRY,)),
    # The proxy or its backends cannot serve it now.
    "overloaded": Template(503, INTERNAL_ERROR, "Overloaded", (_RETRY,)),
    "draining": Template(503, INTERNAL_ERROR, "Shutting down", (_RETRY,)),
    "store_unavailable": Template(503, INTERNAL_ERROR, "Session registry unavailable", (_RETRY,)),
    "backend_unavailable": Template(503, INTERNAL_ERROR, "Backend unavailable", (_RETRY,)),
    "upstream_lost": Template(502, INTERNAL_ERROR, "Backend connection lost"),
    "upstream_invalid": Template(502, INTERNAL_ERROR, "Backend answered with invalid HTTP"),
    "session_conflict": Template(502, INTERNAL_ERROR, "Backend issued a session id that is in use"),
    "credentials_refused": Template(502, INTERNAL_ERROR, "Backend refused the credentials of the proxy"),
    "upstream_timeout": Template(504, INTERNAL_ERROR, "Backend did not answer in time"),
    "internal_error": Template(500, INTERNAL_ERROR, "Internal proxy error"),
}

_MAYBE_EXECUTED: Final = frozenset(("upstream_lost", "upstream_invalid", "upstream_timeout"))
"""The request may have run; a client that repeats it decides that for itself."""


def render(rejection: Rejection) -> tuple[int, Headers, bytes]:
    """Status, headers without framing, and body of a proxy-authored answer."""
    template = TABLE[rejection.reason]
    reason = rejection.reason.encode("ascii")
    if template.code is None:
        content_type, body = b"text/plain; charset=utf-8", f"{template.message}\n".encode()
    else:
        content_type, body = b"application/json", _error_body(rejection, template)
    headers = [
        (b"content-type", content_type),
        (b"cache-control", b"no-store"),
        (b"mcp-proxy-reason", reason),
        *template.headers,
        *rejection.extra,
    ]
    return template.status, headers, body


def _error_body(rejection: Rejection, template: Template) -> bytes:
    data: dict[str, object] = {"reason": rejection.reason}
    if rejection.detail:
        data["detail"] = rejection.detail
    if rejection.reason in _MAYBE_EXECUTED:
        data["maybeExecuted"] = True
    error = msgspec.json.encode({"code": template.code, "message": template.message, "data": data})
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (rejection.id, error)
