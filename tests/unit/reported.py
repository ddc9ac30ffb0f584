"""Access logs to report on, written as the proxy writes them, and the naive sums of them."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from mcp_proxy.telemetry.access_log import AccessLine
from mcp_proxy.telemetry.report import Report
from mcp_proxy.telemetry.report.reading import Reader
from mcp_proxy.telemetry.report.totals import Totals

NEW = ("request_id", "principal", "ttfb_ms", "trace")
"""Fields that lines of earlier versions do not have."""

CALL: dict[str, Any] = {
    "ts": "2025-11-21T01:53:20.123Z",
    "route": "/weather/mcp",
    "pool": "weather",
    "backend": "http://10.0.0.11:8000/mcp",
    "era": "legacy",
    "http_method": "POST",
    "method": "tools/call",
    "name": "get_forecast",
    "kind": "request",
    "status": 200,
    "reason": "",
    "session": "0a1b2c3d",
    "peer": "10.1.2.3",
    "duration_ms": 12.5,
    "upstream_ms": 12.0,
    "overhead_ms": 0.5,
    "bytes_in": 300,
    "bytes_out": 900,
    "stream": False,
    "attempts": 1,
    "end": "--",
    "request_id": "01234567",
    "principal": "00112233445566778899aabbccddeeff",
    "ttfb_ms": 12.1,
    "trace": "",
}
STREAM = CALL | {"http_method": "GET", "method": "", "name": "", "stream": True, "overhead_ms": None}


def line(**changes: Any) -> bytes:
    """One line, with every field that the access log has now or will get."""
    return json.dumps(CALL | changes).encode() + b"\n"


def old_line(**changes: Any) -> bytes:
    """One line as earlier versions wrote it."""
    return (
        json.dumps({name: value for name, value in (CALL | changes).items() if name not in NEW}).encode()
        + b"\n"
    )


def written_now() -> set[str]:
    """Names of the fields that the access log writes."""
    return set(AccessLine.__struct_fields__)


def source(content: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(content))


def counted(*files: bytes, **how: Any) -> tuple[Totals, int]:
    totals, reader = Totals(**how), Reader()
    for content in files:
        for lines in reader.read(source(content)):
            totals.add(lines)
    return totals, reader.unreadable


def report(*files: bytes, **how: Any) -> Report:
    return counted(*files, **how)[0].report()


def exact(values: Iterable[float], part: float) -> float:
    """The smallest value that ``part`` of all values are not above."""
    ordered = sorted(values)
    return ordered[max(1, math.ceil(part * len(ordered))) - 1]


def naive(texts: Sequence[bytes], by: Sequence[str]) -> dict[tuple[str, ...], dict[str, Any]]:
    """Figures by group, computed from all lines at once."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for text in texts:
        fields = msgspec.json.decode(text)
        names = {
            "route": fields["route"],
            "method": fields["method"] or fields["http_method"],
            "tool": fields["name"] if fields["method"] == "tools/call" else "",
            "principal": fields.get("principal", ""),
        }
        groups.setdefault(tuple(names[name] for name in by), []).append(fields)
    return {key: _figures(lines) for key, lines in groups.items()}


def _figures(lines: list[dict[str, Any]]) -> dict[str, Any]:
    streams = [each for each in lines if _is_stream(each)]
    calls = [each for each in lines if not _is_stream(each)]
    bad_streams = [each for each in streams if each["status"] >= 400 or each["end"][0] not in "-CD"]
    bad_calls = [each for each in calls if each["status"] >= 400 or each["end"] != "--"]
    return {
        "calls": len(calls),
        "streams": len(streams),
        "errors": len(bad_streams) + len(bad_calls),
        "bytes_in": sum(each["bytes_in"] for each in lines),
        "bytes_out": sum(each["bytes_out"] for each in lines),
        "durations": [each["duration_ms"] for each in calls if each["duration_ms"]],
        "overheads": [each["overhead_ms"] for each in calls if each["overhead_ms"] is not None],
    }


def _is_stream(fields: dict[str, Any]) -> bool:
    opens = fields["http_method"] == "GET" or fields["method"] == "subscriptions/listen"
    return bool(fields["stream"] and opens)
