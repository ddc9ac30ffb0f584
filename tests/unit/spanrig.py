"""Records of sampled exchanges, for tests of what becomes of them."""

from __future__ import annotations

from typing import Any

from mcp_proxy.errors import Fault, Phase
from mcp_proxy.telemetry import RequestRecord
from mcp_proxy.telemetry.traces import Trace, Tracer

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
HTTP_PARENT = f"00-{'a' * 32}-{'b' * 16}-01"

WALL_S = 1_800_000_000.0
"""When the exchange ended, and the same by the clock of the data path:"""
END_S = 1000.0

RESULT = b'{"jsonrpc":"2.0","id":7,"result":{"content":[]}}'
TOOL_ERROR = b'{"jsonrpc":"2.0","id":7,"result":{"content":[],"isError":true}}'


def error(code: int) -> bytes:
    return b'{"jsonrpc":"2.0","id":7,"error":{"code":%d,"message":"m"}}' % code


def trace(*context: Any, answer: bytes = RESULT, status: int = 200) -> Trace:
    """One attempt: sent 0.4 s, answered 0.2 s and over 0.1 s before the end of an exchange of half a second.
    ``context``: as ``Tracer.begin`` has it."""
    found = begun(*context)
    found.attempt("b1", "10.0.0.9", 8000, END_S - 0.4)
    found.answered(END_S - 0.2, status)
    found.peek(answer)
    found.ended(END_S - 0.1)
    return found


def begun(*context: Any) -> Trace:
    """Nobody has been asked yet."""
    found = Tracer(1.0).begin(*(*context, None, None, None, None)[:4])
    assert found is not None
    found.rpc_id = b"7"
    found.version = "2025-11-25"
    found.finished_s = END_S
    return found


def record(trace: Trace | None, **facts: Any) -> RequestRecord:
    """Of a tool call that went well, but for ``facts``."""
    values: dict[str, Any] = {
        "time_s": WALL_S, "route": "/mcp", "pool": "weather", "backend": "b1", "era": "legacy",
        "http_method": "POST", "method": "tools/call", "name": "echo", "kind": "request", "status": 200,
        "reason": "", "session": "0123abcd", "peer": "192.0.2.7", "duration_s": 0.5, "upstream_s": 0.3,
        "bytes_in": 10, "bytes_out": 20, "is_stream": False, "attempts": 1, "ended_by": Fault.NONE,
        "phase": Phase.NONE, "request_id": "rid-1", "principal": "f" * 32, "trace": trace,
    }  # fmt: skip
    return RequestRecord(**(values | facts))
