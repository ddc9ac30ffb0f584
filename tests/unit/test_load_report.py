"""The report: what is in it, and that what servers say cannot become part of it.

Rules of this file: reports are made of ledgers that the test has written, so every number is known.
"""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mcp_proxy.load import summary
from mcp_proxy.load.campaign import _headline
from mcp_proxy.load.conduct import During
from mcp_proxy.load.ledger import Ledger
from mcp_proxy.load.report import LOCUST, prepare, write
from mcp_proxy.load.report.chart import Line, chart
from mcp_proxy.load.report.files import document, failures_csv, history_csv, operations_csv
from mcp_proxy.load.report.page import page
from mcp_proxy.load.report.text import lines
from mcp_proxy.load.summary import ALL_JSON, Summary
from mcp_proxy.load.thresholds import Verdict

HOSTILE = "<script>alert(1)</script>&\"'\x1b[31m"


def ledger_of(time_s: float, count: int = 50, failure: str | None = None) -> Ledger:
    ledger = Ledger(wall_s=10.0, steady_s=10.0, steady_cpu_s=1.0, processes=1)
    call = ledger.operation("session", "tools/call (JSON)")
    events = ledger.operation("session", "tools/call (SSE)")
    for _ in range(count):
        ledger.answered(call, time_s, 10, late_s=2 * time_s)
        ledger.answered(events, 10 * time_s)
        ledger.first_event(events, time_s)
        ledger.gap(events, time_s)
    ledger.answered(ledger.operation("abuse", "bad JSON", is_post=False, is_call=False), 99.0)
    if failure is not None:
        ledger.failed(call, failure, f"example {failure}")
        ledger.refused(failure)
    ledger.waited(call, 1.0)
    return ledger


def summary_of(*ledgers: Ledger, **over: object) -> Summary:
    names = ["direct", "proxy", "other"][: len(ledgers)]
    values: dict[str, object] = {
        "version": "1",
        "began": "2026-11-21T15:00:00+00:00",
        "exit_code": 0,
        "headline": "All thresholds are kept",
        "settings": {"shape": "smoke", "time": "15s", "users": 13, "rounds": 1},
        "verdicts": [Verdict("failures", "at most 0%", "0 of 100", True)],
        "notes": ["tools that are called: echo"],
        "warnings": [],
        "endpoints": [
            summary.endpoint(name, "http://127.0.0.1/mcp", ledger)
            for name, ledger in zip(names, ledgers, strict=True)
        ],
        "overheads": summary.overheads({name: [ledger] for name, ledger in zip(names, ledgers, strict=True)}),
    }
    return Summary(**{**values, **over})  # type: ignore[arg-type]


# --- numbers ----------------------------------------------------------------------------------


def test_overhead_is_the_difference_of_medians_of_rounds() -> None:
    """One round in three was bad: it does not count."""
    rounds = {
        "direct": [ledger_of(0.001), ledger_of(0.001), ledger_of(0.5)],
        "proxy": [ledger_of(0.003), ledger_of(0.9), ledger_of(0.003)],
    }
    found = {(each.operation, each.what): each for each in summary.overheads(rounds)}
    json_answers = found[ALL_JSON, "time"]
    assert json_answers.base_p50 == pytest.approx(0.001, rel=0.02)
    assert json_answers.p50 == pytest.approx(0.003, rel=0.02)
    assert json_answers.p99_ratio == pytest.approx(3, rel=0.03)
    assert found["all first events of answers", "first event"].p50_ratio == pytest.approx(3, rel=0.03)
    assert ("session tools/call (SSE)", "first event") in found
    assert not any("abuse" in operation for operation, _ in found)


def test_too_few_answers_are_no_comparison() -> None:
    assert summary.overheads({"direct": [ledger_of(0.1, 5)], "proxy": [ledger_of(0.1, 5)]}) == []
    assert summary.overheads({"direct": [ledger_of(0.1)]}) == []


def test_the_quickest_base_is_no_division_by_zero() -> None:
    (found, *_) = summary.overheads({"direct": [ledger_of(0.0)], "proxy": [ledger_of(0.1)]})
    assert (found.p50_ratio, found.p99_ratio) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("cpu_s", "late_s", "found"),
    [(0.5, 0.001, None), (8.6, 0.001, "busy for 86% of a core"), (0.5, 0.1, "late by 99 ms")],
)
def test_a_generator_that_measures_itself_is_said(cpu_s: float, late_s: float, found: str | None) -> None:
    ledger = Ledger(steady_s=10.0, steady_cpu_s=cpu_s, processes=1)
    row = Ledger().operation("session", "x")
    ledger.answered(row, late_s)
    ledger.lag = row.times
    said = summary.warnings({"direct": ledger})
    assert len(said) == (found is not None)
    assert found is None or found in said[0]


def test_an_endpoint_shows_what_happened_and_nothing_that_did_not() -> None:
    ledger = ledger_of(0.01, failure="HTTP 502")
    ledger.operation("session", "tools/call")
    shown = summary.endpoint("direct", "http://a", ledger)
    assert [row.name for row in shown.rows] == ["tools/call (JSON)", "tools/call (SSE)", "bad JSON"]
    assert (shown.answers, shown.failures, shown.failed_posts, shown.waits) == (101, 1, 1, 1)
    assert shown.rate == pytest.approx(10.1)
    assert shown.calls.p50 is not None
    assert shown.calls.max == pytest.approx(0.1, rel=0.02), "a refusal is no call"


# --- the page ---------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would make of it: tags, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link", "path", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open[-1] != tag and self.open[-1] in ("tr", "td", "th", "li", "thead"):
            self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_says_what_was_found() -> None:
    shown = Page(
        page(summary_of(ledger_of(0.01, failure="HTTP 502"), ledger_of(0.02), warnings=["it was busy"]))
    )
    assert shown.open == []
    for words in (
        "All thresholds are kept",
        "HTTP 502",
        "example HTTP 502",
        "it was busy",
        "Above direct",
        "echo",
    ):
        assert words in shown.text
    assert "script" not in shown.tags


def test_what_a_server_says_is_text_and_nothing_else() -> None:
    ledger = ledger_of(0.01, failure=HOSTILE)
    during = During(HOSTILE, 1, 1.0, HOSTILE)
    verdicts = [Verdict(HOSTILE, HOSTILE, HOSTILE, False)]
    shown = Page(
        page(summary_of(ledger, notes=[HOSTILE], warnings=[HOSTILE], during=during, verdicts=verdicts))
    )
    assert "script" not in shown.tags
    assert HOSTILE in shown.text


def test_the_page_asks_nobody_for_anything() -> None:
    text = page(summary_of(ledger_of(0.01)))
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "url(" not in text
    assert "default-src 'none'" in Page(text).text or "default-src &#x27;none&#x27;" in text


def test_a_chart_has_a_line_for_everything_and_breaks_where_there_is_nothing() -> None:
    drawn = chart(
        "Each second", [Line("a", "p50", [1.0, None, 2.0, 3.0]), Line("b", "p99", [0.0] * 4)], " ms"
    )
    assert drawn.count("<path") == 2
    (first, _) = re.findall(r'd="([^"]*)"', drawn)
    assert first.count("M") == 2
    assert ">a</text>" in drawn
    assert ">b</text>" in drawn


@pytest.mark.parametrize("values", [[], [1.0], [0.0, 0.0], [None, None]])
def test_nothing_to_draw_is_no_chart(values: list[float | None]) -> None:
    assert chart("x", [Line("a", "p50", values)], "") == ""


def test_a_long_run_is_drawn_with_the_peaks_it_had() -> None:
    values: list[float | None] = [1.0] * 3000
    values[1234] = 50.0
    drawn = chart("x", [Line("a", "p50", values)], "")
    (path,) = re.findall(r'class="line p50" d="([^"]*)"', drawn)
    heights = [float(point.split()[1]) for point in re.findall(r"[ML]([\d. ]+)", path)]
    assert len(heights) <= 240
    assert min(heights) < 40 < 150 < max(heights)


# --- files and terminal -----------------------------------------------------------------------


def test_the_files_have_a_line_for_everything() -> None:
    whole = summary_of(ledger_of(0.01, failure="HTTP 502"))
    operations = list(csv.DictReader(io.StringIO(operations_csv(whole))))
    assert [line["operation"] for line in operations] == ["tools/call (JSON)", "tools/call (SSE)", "bad JSON"]
    assert float(operations[0]["time_p50_ms"]) == pytest.approx(10, rel=0.02)
    assert float(operations[0]["late_p99_ms"]) == pytest.approx(20, rel=0.02)
    assert float(operations[1]["first_event_p50_ms"]) == pytest.approx(10, rel=0.02)
    (second,) = csv.DictReader(io.StringIO(history_csv(whole)))
    assert (second["answers"], second["failures"], second["told_to_wait"]) == ("101", "1", "1")
    (failure,) = csv.DictReader(io.StringIO(failures_csv(whole)))
    assert (failure["operation"], failure["reason"], failure["count"]) == (
        "session tools/call (JSON)",
        "HTTP 502",
        "1",
    )
    assert json.loads(document(whole))["endpoints"][0]["answers"] == 101


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx"])
def test_a_spreadsheet_takes_nothing_for_a_formula(text: str) -> None:
    written = failures_csv(summary_of(ledger_of(0.01, failure=text)))
    (failure,) = csv.DictReader(io.StringIO(written))
    assert failure["reason"] == f"'{text}"


def test_the_terminal_shows_tables_failures_and_verdicts() -> None:
    verdicts = [
        Verdict("failures", "at most 0%", "1 of 3", False),
        Verdict("p99", "at most 1s", "20 ms", True),
    ]
    shown = list(lines(summary_of(ledger_of(0.01, failure="HTTP 502"), ledger_of(0.02), verdicts=verdicts)))
    whole = "\n".join(shown)
    assert "FAIL failures: 1 of 3 (at most 0%)" in shown
    assert "ok   p99: 20 ms (at most 1s)" in shown
    assert "1 x session tools/call (JSON): HTTP 502" in shown
    assert re.search(r"session +tools/call \(JSON\) +50 +5\.0 +1 +1 +", whole)
    assert re.search(r"proxy +all JSON answers +time +20\.. ms +\+10\.. ms +(1\.9|2\.0)", whole)


def test_a_terminal_obeys_nothing_that_a_server_says() -> None:
    shown = "\n".join(lines(summary_of(ledger_of(0.01, failure=HOSTILE))))
    assert "\x1b" not in shown


def test_a_report_has_nothing_of_an_earlier_run_of_locust(tmp_path: Path) -> None:
    (tmp_path / LOCUST).write_text("of an earlier run")
    prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_report_replaces_the_last_one(tmp_path: Path) -> None:
    write(summary_of(ledger_of(0.01, failure="HTTP 502")), tmp_path)
    write(summary_of(ledger_of(0.01)), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "report.html", "report.json", "operations.csv", "history.csv", "failures.csv",
    }  # fmt: skip
    assert "HTTP 502" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("kept", "was_stopped", "headline"),
    [
        ([True], False, "All thresholds are kept"),
        ([True, False], False, "Not kept: t1"),
        ([True], True, "Stopped before its end"),
    ],
)
def test_the_headline_is_the_verdict(kept: list[bool], was_stopped: bool, headline: str) -> None:
    verdicts = [Verdict(f"t{number}", "", "", is_kept) for number, is_kept in enumerate(kept)]
    assert _headline(verdicts, was_stopped=was_stopped) == headline
