"""The result for a terminal. Pure: lines out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from mcp_proxy.load.summary import Endpoint, Overhead, Summary
from mcp_proxy.load.thresholds import milliseconds

_FAILURES: Final = 10
"""Kinds of failures shown; all are in the report."""


def lines(summary: Summary) -> Iterator[str]:
    """Tables, failures, thresholds, and what is to be known of them. A terminal obeys nothing in them."""
    return (_plain(line) for line in _lines(summary))


def _lines(summary: Summary) -> Iterator[str]:
    for endpoint in summary.endpoints:
        yield from _endpoint(endpoint, len(summary.endpoints) > 1)
    if summary.overheads:
        yield from _overheads(summary.overheads, summary.endpoints[0].name)
    if summary.during is not None and summary.during.exit_code != 0:
        yield f"The command said: {summary.during.output[-500:] or 'nothing'}"
        yield ""
    for warning in summary.warnings:
        yield f"Warning: {warning}"
    for verdict in summary.verdicts:
        mark = "ok  " if verdict.is_kept else "FAIL"
        yield f"{mark} {verdict.name}: {verdict.actual} ({verdict.limit})"


def _endpoint(endpoint: Endpoint, is_named: bool) -> Iterator[str]:
    yield f"{endpoint.name}: {endpoint.url}" if is_named else endpoint.url
    table = [
        ["USER", "OPERATION", "ANSWERS", "/S", "FAILED", "WAITED", "P50", "P99", "FIRST P50", "FIRST P99"]
    ]
    table += [
        [
            *(row.kind, row.name, f"{row.answers:,}", f"{row.rate:.1f}"),
            *(f"{row.failures:,}" if row.failures else "", f"{row.waits:,}" if row.waits else ""),
            *(_time(row.time.p50), _time(row.time.p99)),
            *(_time(row.first_event.p50), _time(row.first_event.p99)),
        ]
        for row in endpoint.rows
        if row.kind != "abuse"
    ]
    yield from _table(table, left=2)
    abuses = [row for row in endpoint.rows if row.kind == "abuse"]
    if abuses:
        count = sum(row.answers for row in abuses)
        yield f"abuse: {len(abuses)} kinds, {count:,} refused as they should be"
    yield ""
    for failure in endpoint.errors[:_FAILURES]:
        yield f"{failure.count:,} x {failure.operation}: {failure.reason}"
        if failure.examples:
            yield f"      {failure.examples[0]}"
    if len(endpoint.errors) > _FAILURES:
        yield f"and {len(endpoint.errors) - _FAILURES} more kinds of failures, which are in the report"
    if endpoint.errors:
        yield ""


def _overheads(overheads: Sequence[Overhead], base: str) -> Iterator[str]:
    yield f"Above {base} (medians of rounds)"
    table = [["ENDPOINT", "OPERATION", "WHAT", "P50", "MORE", "TIMES", "P99", "MORE", "TIMES"]]
    table += [
        [
            *(each.endpoint, each.operation, each.what),
            *(milliseconds(each.p50), _more(each.p50 - each.base_p50), f"{each.p50_ratio:.2f}"),
            *(milliseconds(each.p99), _more(each.p99 - each.base_p99), f"{each.p99_ratio:.2f}"),
        ]
        for each in overheads
    ]
    yield from _table(table, left=3)
    yield ""


def _table(rows: Sequence[Sequence[str]], left: int) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _time(seconds: float | None) -> str:
    return "" if seconds is None else milliseconds(seconds)


def _more(seconds: float) -> str:
    return f"{'-' if seconds < 0 else '+'}{milliseconds(abs(seconds))}"


def _plain(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)
