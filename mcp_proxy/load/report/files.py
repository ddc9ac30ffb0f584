"""The report for programs. Pure: text out.

Rules of this file: times are milliseconds in CSV, as spreadsheets are read by people, and seconds in JSON.
A cell that a spreadsheet would take for a formula is defused: names and texts come from servers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from mcp_proxy.load.summary import PARTS, Summary, Times

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")

Cell = str | int | float | None


def document(summary: Summary) -> bytes:
    """``report.json``."""
    return msgspec.json.format(msgspec.json.encode(summary), indent=1) + b"\n"


def operations_csv(summary: Summary) -> str:
    """A line per endpoint and operation."""
    shown = [("time", True), ("late", True), ("first_event", False), ("gap", False)]
    head = ["endpoint", "user", "operation", "answers", "failures", "told_to_wait", "per_s", "stream_ends"]
    for name, is_whole in shown:
        head += [f"{name}_{part}_ms" for part in (PARTS if is_whole else ("p50", "p99"))]
    lines: list[list[Cell]] = []
    for endpoint in summary.endpoints:
        for row in endpoint.rows:
            line: list[Cell] = [endpoint.name, row.kind, row.name, row.answers, row.failures, row.waits]
            line += [round(row.rate, 2), row.ends]
            for name, is_whole in shown:
                line += _times(getattr(row, name), tuple(PARTS) if is_whole else ("p50", "p99"))
            lines.append(line)
    return _csv(head, lines)


def history_csv(summary: Summary) -> str:
    """A line per endpoint and second."""
    head = ["endpoint", "second", "users", "answers", "failures", "told_to_wait", "p50_ms", "p99_ms"]
    lines: list[list[Cell]] = [
        [
            *(endpoint.name, at.second, at.users, at.answers, at.failures, at.waits),
            *(_ms(at.p50), _ms(at.p99)),
        ]
        for endpoint in summary.endpoints
        for at in endpoint.history
    ]
    return _csv(head, lines)


def failures_csv(summary: Summary) -> str:
    """A line per kind of failure."""
    lines: list[list[Cell]] = [
        [endpoint.name, failure.operation, failure.reason, failure.count, " | ".join(failure.examples)]
        for endpoint in summary.endpoints
        for failure in endpoint.errors
    ]
    return _csv(["endpoint", "operation", "reason", "count", "examples"], lines)


def _csv(head: Sequence[str], lines: Iterable[Sequence[Cell]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_defused(cell) for cell in line] for line in lines)
    return out.getvalue()


def _defused(cell: Cell) -> Cell:
    if isinstance(cell, str) and cell.startswith(_FORMULA):
        return f"'{cell}"
    return cell


def _times(times: Times, parts: Iterable[str]) -> list[Cell]:
    return [_ms(getattr(times, part)) for part in parts]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
