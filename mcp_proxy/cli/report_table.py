"""A report for people: a line per group, or two where the terminal is too narrow for one.

Rules of this file: pure. No figure is left out for want of room: names lose their middle first, then they
get a line of their own. Columns that are empty in every row are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mcp_proxy.cli.text import plain, shortened
from mcp_proxy.telemetry.report.sketch import RELATIVE_ERROR

if TYPE_CHECKING:
    from mcp_proxy.telemetry.report import Report, Row

_FIGURES: Final = ("CALLS", "ERRORS", "STREAMS", "IN", "OUT", "P50", "P99", "OWN P50", "OWN P99")
_ALWAYS: Final = ("CALLS", "ERRORS", "P50", "P99")
_EMPTY: Final = ("-", "0", "")

_PRINCIPAL_DIGITS: Final = 8
_NAME_LEAST: Final = 12
"""Characters of a name that tell it from others, more or less."""
_GAP: Final = "  "

Cells = dict[str, str]


def table(report: Report, width: int | None = None) -> list[str]:
    """Lines, the titles first and the sum last. ``width``: of the terminal; None is no limit."""
    groups = [_named(report.by, row) | _figures(row) for row in report.rows]
    sums = [_aside(report, "total", report.total)]
    if report.other is not None:
        sums.insert(0, _aside(report, "other", report.other))
    cells = groups + sums
    names = [name for at, name in enumerate(_titles(report)) if not at or _is_used(name, groups)]
    figures = [name for name in _FIGURES if name in _ALWAYS or _is_used(name, cells)]
    rows = [{name: name for name in (*names, *figures)}, *cells]
    widths = {name: max(len(row[name]) for row in rows) for name in (*names, *figures)}
    if width is None or _fits(names, figures, widths, width):
        return [_line(row, names, widths) + _GAP + _line(row, figures, widths) for row in rows]
    return [line for row in rows for line in _two_lines(row, names, figures, widths, width)]


def caption(report: Report) -> str:
    """What the table is about, in a sentence."""
    first, last = (plain(text[:19]).replace("T", " ") for text in (report.first, report.last))
    return f"From {first} to {last} UTC; quantiles are within {RELATIVE_ERROR:.0%}."


def _titles(report: Report) -> list[str]:
    return [name.upper() for name in report.by]


def _named(by: tuple[str, ...], row: Row) -> Cells:
    texts = dict(zip(by, row.key, strict=True))
    if "principal" in texts:
        texts["principal"] = texts["principal"][:_PRINCIPAL_DIGITS]
    return {name.upper(): plain(text) or "-" for name, text in texts.items()}


def _aside(report: Report, word: str, row: Row) -> Cells:
    """A row that is no group: its word stands where groups have their first name, in brackets, because a
    group may be called the same."""
    titles = _titles(report)
    return dict.fromkeys(titles, "") | {titles[0]: f"({word})"} | _figures(row)


def _figures(row: Row) -> Cells:
    return {
        "CALLS": f"{row.calls:,}",
        "ERRORS": f"{row.errors:,}",
        "STREAMS": f"{row.streams:,}",
        "IN": size(row.bytes_in),
        "OUT": size(row.bytes_out),
        "P50": span(row.p50_ms),
        "P99": span(row.p99_ms),
        "OWN P50": span(row.overhead_p50_ms),
        "OWN P99": span(row.overhead_p99_ms),
    }


def _is_used(name: str, rows: list[Cells]) -> bool:
    return any(row[name] not in _EMPTY for row in rows)


def _fits(names: list[str], figures: list[str], widths: dict[str, int], width: int) -> bool:
    """Makes names narrower, the widest first, until a line fits; False, and as they were, if it cannot."""
    narrow = {name: widths[name] for name in names}
    excess = sum(widths[name] + len(_GAP) for name in (*names, *figures)) - len(_GAP) - width
    for _ in range(excess):
        widest = max(narrow, key=lambda name: narrow[name])
        if narrow[widest] <= _NAME_LEAST:
            return False
        narrow[widest] -= 1
    widths.update(narrow)
    return True


def _line(row: Cells, names: list[str], widths: dict[str, int]) -> str:
    cells = []
    for name in names:
        text, wide = shortened(row[name], widths[name]), widths[name]
        cells.append(f"{text:>{wide}}" if name in _FIGURES else f"{text:<{wide}}")
    return _GAP.join(cells)


def _two_lines(
    row: Cells, names: list[str], figures: list[str], widths: dict[str, int], width: int
) -> tuple[str, str]:
    return (
        shortened(_GAP.join(filter(None, (row[name] for name in names))), width),
        _GAP + _line(row, figures, widths),
    )


def size(count: int) -> str:
    """``512B`` ``1.2KiB`` ``34MiB`` ``340MiB``."""
    if count < 1024:
        return f"{count}B"
    amount, units = count / 1024, ["KiB", "MiB", "GiB", "TiB"]
    while amount >= 999.5 and len(units) > 1:
        amount /= 1024
        del units[0]
    return f"{amount:.{1 if amount < 9.95 else 0}f}{units[0]}"


def span(duration_ms: float | None) -> str:
    """``850µs`` ``12.3ms`` ``4.56s`` ``12.5min``."""
    if duration_ms is None:
        return "-"
    if duration_ms < 0.9995:
        return f"{duration_ms * 1e3:.0f}µs"
    if duration_ms < 999.5:
        return f"{_three_digits(duration_ms)}ms"
    if duration_ms < 119_950:
        return f"{_three_digits(duration_ms / 1e3)}s"
    return f"{_three_digits(duration_ms / 60e3)}min"


def _three_digits(amount: float) -> str:
    digits = 2 if amount < 9.995 else 1 if amount < 99.95 else 0
    return f"{amount:.{digits}f}"
