"""What is counted in a load test, and which thresholds that keeps.

Rules of this file: values in, values out.
"""

from __future__ import annotations

import pytest

from mcp_proxy.load import thresholds
from mcp_proxy.load.ledger import EXAMPLES, KINDS, OTHER, Ledger, quantile
from mcp_proxy.load.thresholds import Thresholds, judge

# --- the ledger -------------------------------------------------------------------------------


def filled(answers: int = 100, failures: int = 0) -> Ledger:
    ledger = Ledger(wall_s=10.0)
    row = ledger.operation("session", "tools/call")
    for number in range(answers):
        ledger.answered(row, (number + 1) / 1000, 10)
    for _ in range(failures):
        ledger.failed(row, "HTTP 502", "bad gateway")
    return ledger


def test_quantiles_are_right_within_a_percent_below_a_millisecond_too() -> None:
    ledger = Ledger()
    row = ledger.operation("session", "a")
    for number in range(1, 1001):
        ledger.answered(row, number * 1e-6)
    assert quantile(row.times, 0.5) == pytest.approx(0.0005, rel=0.02)
    assert quantile(row.times, 0.99) == pytest.approx(0.00099, rel=0.02)
    assert quantile({}, 0.5) is None


def test_kinds_of_failures_are_bounded_and_have_few_examples() -> None:
    ledger = Ledger()
    row = ledger.operation("session", "a")
    for number in range(KINDS + 50):
        ledger.failed(row, f"reason {number}")
    for _ in range(EXAMPLES + 2):
        ledger.failed(row, "reason 1", "x" * 10_000)
    assert len(ledger.failures) <= KINDS + 1
    assert ledger.failures[OTHER].count == 50
    entry = ledger.failures["session a: reason 1"]
    assert len(entry.examples) == EXAMPLES
    assert all(len(example) < 500 for example in entry.examples)
    assert ledger.total_failures == ledger.post_failures == KINDS + 50 + EXAMPLES + 2


def test_ledgers_of_processes_are_added_and_of_rounds_put_behind_each_other() -> None:
    whole, other = filled(50, 1), filled(50, 2)
    whole.refused("draining")
    other.refused("draining")
    whole.users_are(3)
    other.users_are(4)
    whole.add(other)
    assert (whole.answers, whole.total_failures, whole.refusals) == (100, 3, {"draining": 2})
    assert whole.seconds[0].users == 7
    assert whole.failures["session tools/call: HTTP 502"].count == 3
    assert whole.wall_s == 10.0
    whole.after(filled(10))
    assert (whole.answers, whole.wall_s, sorted(whole.seconds)) == (110, 20.0, [0, 1])


def test_before_it_is_warm_answers_count_and_their_times_do_not() -> None:
    ledger = Ledger()
    ledger.warm_up_s = 1000.0
    row = ledger.operation("session", "a")
    ledger.answered(row, 1.0, late_s=2.0)
    ledger.first_event(row, 1.0)
    ledger.gap(row, 1.0)
    assert row.answers == 1
    assert row.times == row.late == row.first == row.gaps == {}


# --- what is kept -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "missed"),
    [
        (Thresholds(), []),
        (Thresholds(p50_s=0.060, p99_s=0.110, min_rate=9.0), []),
        (Thresholds(p50_s=0.040), ["p50"]),
        (Thresholds(p99_s=0.090), ["p99"]),
        (Thresholds(min_rate=11.0), ["rate"]),
        (Thresholds(first_event_p99_s=1.0), ["p99 of the first event"]),
    ],
)
def test_a_threshold_is_kept_or_named(limits: Thresholds, missed: list[str]) -> None:
    verdicts = judge(limits, filled(100))
    assert [verdict.name for verdict in verdicts if not verdict.is_kept] == missed


def test_the_first_event_of_a_held_stream_comes_when_it_comes() -> None:
    ledger = filled(10)
    ledger.first_event(ledger.operation("session", "tools/call"), 0.010)
    ledger.first_event(ledger.operation("stream", "GET stream", is_post=False, is_call=False), 9.0)
    assert all(verdict.is_kept for verdict in judge(Thresholds(first_event_p99_s=0.020), ledger))


@pytest.mark.parametrize(("allowed", "is_kept"), [(0.0, False), (0.009, False), (0.0100, True), (1.0, True)])
def test_failures_are_a_share_of_all_requests(allowed: float, is_kept: bool) -> None:
    (verdict,) = judge(Thresholds(max_failures=allowed), filled(99, 1))
    assert verdict.is_kept is is_kept


def test_failed_posts_are_counted_apart() -> None:
    ledger = filled(10)
    ledger.failed(ledger.operation("session", "GET stream", is_post=False), "stream cut")
    limits = Thresholds(max_failures=1.0, max_failed_posts=0)
    assert all(verdict.is_kept for verdict in judge(limits, ledger))
    ledger.failed(ledger.operation("session", "tools/call"), "HTTP 502")
    assert [verdict.is_kept for verdict in judge(limits, ledger)] == [True, False]


def test_a_run_without_an_answer_keeps_nothing() -> None:
    limits = Thresholds(max_failures=1.0, max_failed_posts=5, p50_s=1.0)
    assert not any(verdict.is_kept for verdict in judge(limits, Ledger()))


@pytest.mark.parametrize(("text", "share"), [("0%", 0.0), ("0.5%", 0.005), ("100%", 1.0)])
def test_a_share_is_a_percentage(text: str, share: float) -> None:
    assert thresholds.part(text) == share


@pytest.mark.parametrize("text", ["1", "101%", "-1%", "%", "nan%"])
def test_what_is_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="percentage"):
        thresholds.part(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.00021, "0.21 ms"), (0.0123, "12.3 ms"), (0.5, "500 ms"), (12.34, "12.3 s")]
)
def test_times_are_written_with_three_digits(seconds: float, text: str) -> None:
    assert thresholds.milliseconds(seconds) == text
