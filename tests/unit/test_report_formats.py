"""The table in terminals of several widths, its units, and what clients wrote in all formats."""

from __future__ import annotations

import csv
import io

import pytest

from mcp_proxy.cli.report_formats import csv_text
from mcp_proxy.cli.report_table import size, span, table
from tests.unit.reported import STREAM, line, report

LONG = [
    line(route=f"/departments/{name}/weather/mcp", name=f"{name}_search_locations_by_postal_code")
    for name in ("europe", "africa")
]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_a_table_fits_the_terminal_without_losing_a_figure(width: int) -> None:
    found = report(b"".join([*LONG, line(**STREAM)] * 1000))
    wide = table(found)
    lines = table(found, width)

    assert max(map(len, lines)) <= width
    assert sum(map(len, lines)) > 0
    figures = {cell for text in wide[1:] for cell in text.split() if cell[0].isdigit()}
    assert all(any(figure in text.split() for text in lines) for figure in figures)


def test_a_terminal_that_is_wide_enough_has_one_line_for_each_group() -> None:
    found = report(b"".join(LONG), by=("route", "tool"))

    assert len(table(found, 120)) == len(table(found)) == 4
    assert "…" in table(found, 120)[1]
    assert len(table(found, 80)) == 8


def test_columns_that_are_empty_everywhere_are_left_out() -> None:
    titles = table(report(line(principal="", overhead_ms=None)))[0]

    assert "STREAMS" not in titles
    assert "PRINCIPAL" not in titles
    assert "OWN" not in titles


def test_what_a_client_wrote_does_not_act_on_the_terminal() -> None:
    lines = table(report(line(name="\x1b]0;hacked\x07\u202e\x9b31m\n")))

    assert all(character.isprintable() for text in lines for character in text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0B"), (1023, "1023B"), (1024, "1.0KiB"), (34 * 2**20, "34MiB")),
        *((2**30 - 1, "1.0GiB"), (2**60, "1048576TiB")),
    ],
)
def test_sizes_have_two_digits_or_three(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [
        *((None, "-"), (0.0, "0µs"), (0.85, "850µs"), (0.9996, "1.00ms"), (12.34, "12.3ms")),
        *((999.6, "1.00s"), (4560, "4.56s"), (750e3, "12.5min")),
    ],
)
def test_times_have_three_digits_and_a_unit(duration_ms: float | None, text: str) -> None:
    assert span(duration_ms) == text


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\uff1d1", "x;=1+1", "x|-1", 'x",=1', "x\r\n=1"]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_cell_of_csv_is_a_formula_or_more_than_one(name: str) -> None:
    content = csv_text(report(line(name=name), by=("tool",)))
    titles, row = csv.reader(io.StringIO(content, newline=""))

    assert len(row) == len(titles)
    parts = row[1].replace("|", ";").split(";")
    assert not any(part.strip().startswith(("=", "+", "-", "@", "\uff1d")) for part in parts)
    assert row[1].isprintable()
