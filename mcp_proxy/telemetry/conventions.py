"""How an exchange is named and described in a trace: the semantic conventions for MCP.

Rules of this file: pure, and OpenTelemetry is not imported. The text followed is ``docs/gen-ai/mcp.md`` of
github.com/open-telemetry/semantic-conventions-genai at 0393513c908bf895e7b3ec480a2c1eb073c584af (status
Development), with the list of codes that are no errors from the ``model/mcp/spans.yaml`` that came after it;
HTTP attributes are those of the HTTP conventions. Left out on purpose, because they are secrets or may hold
some: session ids, resource URIs, arguments, results and messages of errors. What a client wrote is shortened,
and shown without what acts on a terminal.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from mcp_proxy.errors import Fault

if TYPE_CHECKING:
    from mcp_proxy.telemetry import RequestRecord
    from mcp_proxy.telemetry.traces import Attempt, Trace

Attributes = dict[str, str | int]

# Attributes of the conventions

METHOD: Final = "mcp.method.name"
VERSION: Final = "mcp.protocol.version"
OPERATION: Final = "gen_ai.operation.name"
TOOL: Final = "gen_ai.tool.name"
PROMPT: Final = "gen_ai.prompt.name"
RPC_ID: Final = "jsonrpc.request.id"
RPC_STATUS: Final = "rpc.response.status_code"
ERROR: Final = "error.type"
HTTP_METHOD: Final = "http.request.method"
HTTP_STATUS: Final = "http.response.status_code"
ROUTE: Final = "http.route"
TRANSPORT: Final = "network.transport"
PROTOCOL: Final = "network.protocol.name"
CLIENT_ADDRESS: Final = "client.address"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"

# Our own

POOL: Final = "mcp_proxy.pool"
BACKEND: Final = "mcp_proxy.backend"
REASON: Final = "mcp_proxy.reason"
SESSION: Final = "mcp_proxy.session"
PRINCIPAL: Final = "mcp_proxy.principal"
REQUEST_ID: Final = "mcp_proxy.request_id"
END: Final = "mcp_proxy.end"
ATTEMPT: Final = "mcp_proxy.attempt"

SENT: Final = "mcp_proxy.sent"
HEAD: Final = "mcp_proxy.head"
ANSWERED: Final = "mcp_proxy.answered"
"""Events: the request went to a backend, its head came, it had nothing more to say."""

EXECUTE_TOOL: Final = "execute_tool"
TOOL_ERROR: Final = "tool_error"
OTHER: Final = "_OTHER"

CALLERS_FAULTS: Final = frozenset(("-32700", "-32600", "-32601", "-32602", "-32002"))
"""Codes for a request that could not be served as it was. No error of who was asked; for who asked, any code
is an error."""

TEXT_LIMIT: Final = 256
"""Characters kept of a client's text, as in the access line."""

_TARGETS: Final = {"tools/call": TOOL, "prompts/get": PROMPT}
"""Methods whose name of what they act on may stand in the name of a span."""

_FAULTS: Final = {
    Fault.CLIENT: "cancelled",
    Fault.BACKEND: "backend",
    Fault.PROXY: "proxy",
    Fault.TIMEOUT: "timeout",
    Fault.DRAIN: "drain",
}

_unseen = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\u061c\xad\u200b-\u200f\u2060-\u2065\ufeff\ud800-\udfff]"
)
"""Controls, line separators, changes of direction, what is hidden, and what has no UTF-8."""


def clean(text: str) -> str:
    """As much of ``text`` as is kept, fit to be shown."""
    text = text[:TEXT_LIMIT]
    if text.isascii() and text.isprintable():
        return text
    return _unseen.sub("\ufffd", text)


# What the answer says


class Outcome(NamedTuple):
    """``code`` is that of a JSON-RPC error, empty if there is none."""

    code: str = ""
    is_tool_error: bool = False


class _Error(msgspec.Struct, gc=False):
    code: int


class _Result(msgspec.Struct, gc=False, rename="camel"):
    is_error: bool = False


class _Answer(msgspec.Struct, gc=False):
    error: _Error | None = None
    result: _Result | None = None


_decode = msgspec.json.Decoder(_Answer).decode
_event_ends = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LAST_EVENTS: Final = 8
"""An answer is the last event of its stream; some servers send a comment or two behind it."""


def outcome_of(body: bytes, is_stream: bool) -> Outcome:
    """What an answer says of itself. Nothing when it cannot be read, or its end is missing."""
    if not is_stream:
        return _outcome(body) or Outcome()
    for event in _event_ends.split(body)[: -_LAST_EVENTS - 1 : -1]:
        lines = [line for line in event.splitlines() if line.startswith(b"data:")]
        found = _outcome(b"\n".join(line[5:] for line in lines))
        if found is not None:
            return found
    return Outcome()


def _outcome(message: bytes) -> Outcome | None:
    try:
        answer = _decode(message)
    except (msgspec.DecodeError, RecursionError):
        return None
    if answer.error is not None:
        return Outcome(str(answer.error.code))
    return None if answer.result is None else Outcome(is_tool_error=answer.result.is_error)


# Spans


def span_name(record: RequestRecord) -> str:
    """``{method} {target}``; of a request without a message, HTTP method and route."""
    if record.method:
        target = record.name if record.method in _TARGETS else ""
        return clean(f"{clean(record.method)} {target}" if target else record.method)
    method = "HTTP" if record.http_method == "other" else record.http_method
    return f"{method} {record.route}" if record.route else method


def server_attributes(record: RequestRecord, trace: Trace, outcome: Outcome) -> Attributes:
    """Of the exchange as the client saw it."""
    found = _common(record, trace) | {
        ROUTE: record.route,
        HTTP_STATUS: record.status,
        RPC_STATUS: outcome.code,
        CLIENT_ADDRESS: clean(record.peer),
        POOL: record.pool,
        BACKEND: record.backend,
        REASON: record.reason,
        SESSION: record.session,
        PRINCIPAL: record.principal,
        REQUEST_ID: clean(record.request_id),
        END: record.ended_by._value_ + record.phase._value_,
        ERROR: server_error(record, outcome),
    }
    return _known(found)


def client_attributes(record: RequestRecord, trace: Trace, attempt: Attempt, outcome: Outcome) -> Attributes:
    """Of one attempt. ``outcome`` is empty unless the answer is that of this one."""
    found = _common(record, trace) | {
        HTTP_STATUS: attempt.status,
        RPC_STATUS: outcome.code,
        SERVER_ADDRESS: attempt.host,
        SERVER_PORT: attempt.port,
        POOL: record.pool,
        BACKEND: attempt.backend,
        ERROR: client_error(record, attempt, outcome),
    }
    return _known(found)


def server_error(record: RequestRecord, outcome: Outcome) -> str:
    """What the exchange failed with; empty if it did not, or if that is the client's fault."""
    if outcome.code and outcome.code not in CALLERS_FAULTS:
        return outcome.code
    if outcome.is_tool_error and record.method == "tools/call":
        return TOOL_ERROR
    if record.status >= 500:
        return record.reason or str(record.status)
    if record.ended_by in (Fault.BACKEND, Fault.PROXY, Fault.TIMEOUT) and not record.reason:
        return _FAULTS[record.ended_by]
    return ""


def client_error(record: RequestRecord, attempt: Attempt, outcome: Outcome) -> str:
    """What one attempt failed with; empty if it did not."""
    if attempt.error or outcome.code:
        return attempt.error or outcome.code
    if outcome.is_tool_error and record.method == "tools/call":
        return TOOL_ERROR
    if attempt.status >= 400:
        return str(attempt.status)
    return "" if attempt.status else _FAULTS.get(record.ended_by, OTHER)


def _common(record: RequestRecord, trace: Trace) -> Attributes:
    method = record.method
    found: Attributes = {
        METHOD: clean(method),
        VERSION: clean(trace.version),
        RPC_ID: _rpc_id(trace.rpc_id),
        HTTP_METHOD: OTHER if record.http_method == "other" else record.http_method,
        TRANSPORT: "tcp",
        PROTOCOL: "http",
    }
    if method in _TARGETS:
        found[_TARGETS[method]] = clean(record.name)
    if method == "tools/call":
        found[OPERATION] = EXECUTE_TOOL
    return found


def _rpc_id(raw: bytes) -> str:
    if raw == b"null":
        return ""
    return clean(msgspec.json.decode(raw) if raw.startswith(b'"') else raw.decode("ascii"))


def _known(found: Attributes) -> Attributes:
    return {key: value for key, value in found.items() if value}
