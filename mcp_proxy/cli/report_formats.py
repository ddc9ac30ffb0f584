"""A report for programs: CSV and JSON.

Rules of this file: pure, and what clients wrote acts on nobody who opens the file. JSON is ASCII, with
everything else escaped. Texts of CSV hold no control character and begin no formula: spreadsheets compute
whatever begins with ``=``, ``+``, ``-`` or ``@`` (https://owasp.org/www-community/attacks/CSV_Injection).
"""

from __future__ import annotations

import csv
import io
import json
import re
from typing import TYPE_CHECKING, Any, Final

from mcp_proxy.cli.text import plain
from mcp_proxy.telemetry.report.sketch import RELATIVE_ERROR

if TYPE_CHECKING:
    from mcp_proxy.telemetry.report import Report, Row

_FORMULA: Final = re.compile("(^|[;|])(?=\\s*[=+@\uff1d\uff0b\uff0d\uff20-])")
"""Also behind what other countries separate cells by, and as full-width characters, which East Asian
spreadsheets read like ASCII."""

_FIGURES: Final = (
    *("calls", "streams", "errors", "bytes_in", "bytes_out"),
    *("p50_ms", "p99_ms", "overhead_p50_ms", "overhead_p99_ms"),
)


def csv_text(report: Report) -> str:
    """RFC 4180: a line of titles, a line per group, and one for ``other`` if there is such a thing. What no
    group has is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("row", *report.by, *_FIGURES))
    for row in report.rows:
        writer.writerow(("group", *map(_cell, row.key), *_values(row).values()))
    if report.other is not None:
        writer.writerow(("other", *("" for _ in report.by), *_values(report.other).values()))
    return out.getvalue()


def json_text(report: Report, unreadable: int) -> str:
    """One object. ``unreadable``: lines that are no access lines."""
    document = {
        "by": report.by,
        "first": report.first or None,
        "last": report.last or None,
        "groups": [dict(zip(report.by, row.key, strict=True)) | _values(row) for row in report.rows],
        "other": None if report.other is None else _values(report.other),
        "total": _values(report.total),
        "folded": report.folded,
        "skipped": report.skipped,
        "unreadable": unreadable,
        "relative_error": RELATIVE_ERROR,
    }
    return json.dumps(document, indent=1)


def _values(row: Row) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in _FIGURES}
    return {name: round(each, 3) if isinstance(each, float) else each for name, each in values.items()}


def _cell(text: str) -> str:
    return _FORMULA.sub(r"\1'", plain(text))
