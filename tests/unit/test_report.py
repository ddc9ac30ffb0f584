"""Counting access lines: totals, quantiles, bounds; against the same computed from all lines at once."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy.telemetry.report import DIMENSIONS, Report, Row
from mcp_proxy.telemetry.report.sketch import (
    DENSE_FROM,
    LEAST_MS,
    MOST_MS,
    RELATIVE_ERROR,
    quantiles,
    sparse,
)
from mcp_proxy.telemetry.report.totals import GROUP_LIMIT, KNOWN_LIMIT, TEXT_LIMIT
from tests.unit.reported import NEW, STREAM, counted, exact, line, naive, old_line, report, written_now

ROUNDING = 1e-9


def only(*lines: bytes, **how: Any) -> Row:
    (row,) = report(b"".join(lines), **how).rows
    return row


# --- what is counted ------------------------------------------------------------------------------------


def test_a_call_is_counted_with_its_bytes_and_times() -> None:
    row = only(line(), line(bytes_in=1, bytes_out=2), line())

    assert row.key == ("/weather/mcp", "tools/call", "get_forecast", "00112233445566778899aabbccddeeff")
    assert (row.calls, row.streams, row.errors, row.bytes_in, row.bytes_out) == (3, 0, 0, 601, 1802)
    assert row.p50_ms == row.p99_ms == pytest.approx(12.5, rel=RELATIVE_ERROR)
    assert row.overhead_p50_ms == row.overhead_p99_ms == pytest.approx(0.5, rel=RELATIVE_ERROR)


def test_a_line_of_an_earlier_version_is_one_of_nobody_in_particular() -> None:
    row = only(old_line(), old_line())

    assert (row.key[3], row.calls) == ("", 2)


def test_the_fields_that_are_read_are_those_that_the_access_log_writes() -> None:
    from mcp_proxy.telemetry.report import Line

    assert set(Line.__struct_fields__) - set(NEW) <= written_now()


@pytest.mark.parametrize(
    ("changes", "errors"),
    [
        ({}, 0),
        ({"status": 399}, 0),
        ({"status": 400}, 1),
        ({"status": 0, "end": "CH"}, 1),
        ({"end": "CD"}, 1),
        ({"stream": True, "end": "CD"}, 1),
        ({"end": "DD"}, 1),
        (STREAM, 0),
        (STREAM | {"end": "CD"}, 0),
        (STREAM | {"end": "DD"}, 0),
        (STREAM | {"end": "SD"}, 1),
        (STREAM | {"end": "TD"}, 1),
        (STREAM | {"end": "DR", "status": 503}, 1),
    ],
)
def test_an_error_is_a_status_or_an_end_but_not_a_stream_that_was_left(
    changes: dict[str, Any], errors: int
) -> None:
    assert only(line(**changes)).errors == errors


@pytest.mark.parametrize("opens", [{}, {"http_method": "POST", "method": "subscriptions/listen"}])
def test_a_stream_is_counted_apart_and_its_time_is_no_duration(opens: dict[str, Any]) -> None:
    row = only(line(**STREAM | opens | {"duration_ms": 3.6e6, "overhead_ms": 1.0}))

    assert (row.calls, row.streams) == (0, 1)
    assert (row.p50_ms, row.p99_ms, row.overhead_p50_ms, row.overhead_p99_ms) == (None,) * 4


def test_a_call_that_was_answered_with_events_is_a_call() -> None:
    row = only(line(stream=True))

    assert (row.calls, row.streams) == (1, 0)
    assert row.p50_ms is not None
    assert row.overhead_p50_ms is not None


def test_a_refusal_that_was_not_timed_counts_as_a_call_without_a_duration() -> None:
    refused = line(duration_ms=0.0, overhead_ms=None, status=431, end="CR", method="", name="")

    row = only(line(), refused, by=("route",))

    assert (row.calls, row.errors) == (2, 1)
    assert row.p50_ms == pytest.approx(12.5, rel=RELATIVE_ERROR)


def test_only_tools_have_a_name_and_what_has_no_method_has_that_of_http() -> None:
    read = line(method="resources/read", name="file:///a")
    rows = report(read + line(method="", name="", http_method="DELETE"), by=("method", "tool")).rows

    assert [row.key for row in rows] == [("DELETE", ""), ("resources/read", "")]


@given(st.permutations(DIMENSIONS), st.integers(1, 4))
def test_groups_have_the_names_that_were_asked_for_in_that_order(order: list[str], many: int) -> None:
    names = {"route": "/r", "method": "tools/call", "tool": "t", "principal": "f" * 32}
    by = tuple(order[:many])

    assert only(line(route="/r", name="t", principal="f" * 32), by=by).key == tuple(
        names[name] for name in by
    )


def test_only_lines_of_the_time_asked_for_count() -> None:
    times = [f"2025-11-21T01:0{minute}:00.000Z" for minute in range(5)]

    found = report(b"".join(line(ts=ts) for ts in times), since=times[1], until=times[3])

    assert (found.total.calls, found.skipped, found.first, found.last) == (2, 3, times[1], times[2])


# --- order and what is left ---------------------------------------------------------------------------


def sorted_by(sort: str, *, top: int | None = None) -> Report:
    lines = [
        *[line(name="often")] * 3,
        *[line(name="bad", status=500)] * 2,
        line(name="slow", duration_ms=9e3),
        line(name="large", bytes_out=10**9),
        line(name="costly", overhead_ms=40.0),
        line(name="equal"),
    ]
    return counted(b"".join(lines), by=("tool",))[0].report(sort=sort, top=top)


@pytest.mark.parametrize(
    ("sort", "tool"),
    [
        ("calls", "often"),
        ("errors", "bad"),
        ("p50", "slow"),
        ("p99", "slow"),
        ("bytes", "large"),
        ("overhead", "costly"),
    ],
)
def test_the_largest_comes_first(sort: str, tool: str) -> None:
    assert sorted_by(sort).rows[0].key == (tool,)


def test_among_equals_names_decide() -> None:
    assert [row.key[0] for row in sorted_by("calls").rows] == [
        "often",
        "bad",
        "costly",
        "equal",
        "large",
        "slow",
    ]


def test_what_is_not_at_the_top_is_summed_up_as_other() -> None:
    whole, cut = sorted_by("calls"), sorted_by("calls", top=2)

    assert cut.rows == whole.rows[:2]
    assert cut.other is not None
    assert (cut.other.calls, cut.other.errors) == (4, 0)
    assert cut.other.p99_ms == pytest.approx(9e3, rel=RELATIVE_ERROR)
    assert whole.other is None
    assert cut.total == whole.total


def test_groups_beyond_the_limit_are_other_and_nothing_is_lost() -> None:
    extra = 50
    content = b"".join(line(name=f"tool-{number}") for number in range(GROUP_LIMIT + extra))

    found = report(content, content)

    assert len(found.rows) == GROUP_LIMIT
    assert found.other is not None
    assert found.folded == found.other.calls == 2 * extra
    assert found.total.calls == 2 * (GROUP_LIMIT + extra)


def test_keys_that_share_a_group_are_not_kept_for_ever() -> None:
    totals, _ = counted(
        b"".join(line(name=f"tool-{number}") for number in range(KNOWN_LIMIT + 10)), by=("route",)
    )

    assert len(totals._known) <= KNOWN_LIMIT
    assert [row.calls for row in totals.report().rows] == [KNOWN_LIMIT + 10]


def test_a_text_that_is_too_long_is_cut_and_its_key_not_kept() -> None:
    totals, _ = counted(line(route="r" * 5000), by=("route",))

    assert totals.report().rows[0].key == ("r" * TEXT_LIMIT,)
    assert not totals._known


# --- against all lines at once -----------------------------------------------------------------------

TIMES = st.one_of(st.floats(LEAST_MS * 1.2, MOST_MS / 1.03), st.integers(1, 10**6).map(lambda us: us / 1e3))
LINES = st.builds(
    line,
    route=st.sampled_from(["/a", "/b", ""]),
    http_method=st.sampled_from(["POST", "GET"]),
    method=st.sampled_from(["tools/call", "subscriptions/listen", "tools/list", ""]),
    name=st.sampled_from(["one", "two", "ünï\u2028", ""]),
    principal=st.sampled_from(["", "0" * 32]),
    status=st.sampled_from([0, 200, 202, 404, 503]),
    end=st.sampled_from(["--", "CD", "DD", "SH", "TD"]),
    stream=st.booleans(),
    duration_ms=TIMES,
    overhead_ms=st.one_of(st.none(), TIMES),
    bytes_in=st.integers(0, 2**40),
    bytes_out=st.integers(0, 2**40),
)
BY = st.lists(st.sampled_from(DIMENSIONS), unique=True, min_size=1).map(tuple)


def check_quantiles(row: Row, durations: list[float], overheads: list[float]) -> None:
    found = (row.p50_ms, row.p99_ms, row.overhead_p50_ms, row.overhead_p99_ms)
    wanted = [
        exact(values, part) if values else None for values in (durations, overheads) for part in (0.5, 0.99)
    ]
    assert found == tuple(
        None if value is None else pytest.approx(value, rel=RELATIVE_ERROR + ROUNDING) for value in wanted
    )


@given(st.lists(LINES, max_size=60), BY)
def test_a_report_is_what_a_naive_sum_says(lines: list[bytes], by: tuple[str, ...]) -> None:
    found = report(b"".join(lines), by=by)
    wanted = naive(lines, by)

    assert {row.key for row in found.rows} == wanted.keys()
    for row in found.rows:
        figures = wanted[row.key]
        assert {
            name: getattr(row, name) for name in ("calls", "streams", "errors", "bytes_in", "bytes_out")
        } == {name: figures[name] for name in ("calls", "streams", "errors", "bytes_in", "bytes_out")}
        check_quantiles(row, figures["durations"], figures["overheads"])
    assert found.total.calls == sum(figures["calls"] for figures in wanted.values())


@given(st.lists(LINES, max_size=40), st.lists(st.integers(0, 40), max_size=4), st.booleans(), BY)
def test_any_split_over_files_gives_the_same_report(
    lines: list[bytes], cuts: list[int], is_packed: bool, by: tuple[str, ...]
) -> None:
    at = [0, *sorted(cuts), len(lines)]
    files = [b"".join(lines[start:end]) for start, end in pairwise(at)]

    assert report(*map(gzip.compress, files) if is_packed else files, by=by) == report(b"".join(lines), by=by)


@given(st.lists(TIMES, min_size=1, max_size=40), st.integers(DENSE_FROM - 2, 3 * DENSE_FROM))
def test_quantiles_of_many_values_are_within_the_stated_error(some: list[float], many: int) -> None:
    durations = [some[n % len(some)] for n in range(many)]
    row = only(*(line(duration_ms=each, overhead_ms=each) for each in durations))

    check_quantiles(row, durations, durations)


@given(st.permutations([line(duration_ms=1.07**n, name=f"t{n % 3}") for n in range(40)]))
def test_the_order_of_lines_does_not_matter(lines: Sequence[bytes]) -> None:
    assert report(b"".join(lines)) == report(b"".join(sorted(lines)))


@pytest.mark.parametrize("many", [1, DENSE_FROM + 1])
def test_values_out_of_range_count_as_the_least_and_the_most(many: int) -> None:
    row = only(*[line(duration_ms=1e300, overhead_ms=-3.0)] * many)

    assert row.overhead_p50_ms == 0
    assert row.p50_ms == pytest.approx(MOST_MS, rel=2 * RELATIVE_ERROR)


def test_nothing_has_no_quantile() -> None:
    assert quantiles(sparse(), (0.5, 0.99)) == [None, None]
