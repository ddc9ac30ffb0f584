"""What is believed of an answer, and when."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy.backends import Endpoint
from mcp_proxy.discovery import merged
from mcp_proxy.discovery.findings import Findings
from mcp_proxy.discovery.pace import BACKOFF_LIMIT_S, REFRESH_S, SHORT_S, Backoff, Pace
from mcp_proxy.discovery.steady import EMPTY_LOOKS, EMPTY_S, FEWER_S, Steady

Look = tuple[float, int, int | None]
"""When, how many endpoints it found, and how many it published; None: nothing."""


def endpoints(count: int, start: int = 1) -> list[Endpoint]:
    return [Endpoint(f"10.0.0.{number}", 8000) for number in range(start, start + count)]


@pytest.mark.parametrize(
    "looks",
    [
        pytest.param([(0, 3, 3), (5, 3, None), (10, 4, 4), (15, 3, 3)], id="changes count at once"),
        pytest.param([(0, 3, 3), (5, 0, None), (34.9, 0, None), (35, 0, 0)], id="three empty looks do"),
        pytest.param([(0, 3, 3), (5, 0, None), (3600, 0, None), (3601, 0, 0)], id="two never do"),
        pytest.param([(0, 3, 3), *((t, 0, None) for t in range(1, 31)), (31, 0, 0)], id="nor many at once"),
        pytest.param(
            [(0, 3, 3), (5, 0, None), (20, 0, None), (25, 3, None), (30, 0, None), (50, 0, None), (60, 0, 0)],
            id="one full look begins it anew",
        ),
        pytest.param([(0, 0, None), (15, 0, None), (30, 0, 0)], id="an empty first one must last"),
        pytest.param([(0, 0, None), (1, 2, 2)], id="a first answer with endpoints counts at once"),
        pytest.param([(0, 2, 2), (5, 1, 1)], id="half is not fewer than half"),
        pytest.param([(0, 5, 5), (5, 2, None), (6, 2, 2)], id="fewer than half is believed at second sight"),
        pytest.param([(0, 5, 5), (5, 2, None), (5.5, 2, None), (6, 2, 2)], id="a second later"),
        pytest.param([(0, 5, 5), (5, 2, None), (6, 5, None), (7, 2, None)], id="unless the others are back"),
        pytest.param([(0, 9, 9), (5, 2, None), (6, 0, None), (7, 2, 2)], id="few and none in turn are few"),
        pytest.param([(0, 9, 9), (5, 1, None), (6, 4, 4)], id="the second look says which"),
    ],
)
def test_an_answer_is_believed(looks: list[Look]) -> None:
    steady = Steady()
    for at_s, found, published in looks:
        news = steady.offer(endpoints(found), at_s)
        assert (None if news is None else len(news)) == published, f"at {at_s} s"


def test_a_replica_replaced_by_another_is_news_at_once() -> None:
    steady = Steady()
    steady.offer(endpoints(1), 0.0)
    assert steady.offer(endpoints(1, start=7), 5.0) == (Endpoint("10.0.0.7", 8000),)


def test_a_doubt_says_how_soon_to_look_again() -> None:
    steady = Steady()
    steady.offer(endpoints(5), 0.0)
    assert (steady.doubt, steady.recheck_s) == (None, None)
    steady.offer(endpoints(1), 1.0)
    assert (steady.doubt, steady.recheck_s) == ("fewer than half", FEWER_S)
    steady.offer([], 1.5)
    assert (steady.doubt, steady.recheck_s) == ("none", EMPTY_S / EMPTY_LOOKS)


@given(st.lists(st.tuples(st.floats(0.01, 40), st.integers(0, 9)), max_size=60))
def test_a_pool_is_emptied_only_by_three_empty_looks_in_a_row_over_thirty_seconds(
    steps: list[tuple[float, int]],
) -> None:
    steady, at_s, empty_since_s, empty_looks = Steady(), 0.0, math.inf, 0
    last: tuple[Endpoint, ...] | None = None
    for wait_s, count in steps:
        at_s += wait_s
        empty_looks = 0 if count else empty_looks + 1
        if empty_looks == 1:
            empty_since_s = at_s
        news = steady.offer(endpoints(count), at_s)
        if news is not None:
            assert news == tuple(endpoints(count)), "only what was found is published"
            assert news != last, "the same is never published twice"
            last = news
        if news == ():
            assert empty_looks >= EMPTY_LOOKS
            assert at_s - empty_since_s >= EMPTY_S
        assert (steady.recheck_s is None) == (last == tuple(endpoints(count)))


@given(st.lists(st.tuples(st.floats(0.01, 40), st.integers(0, 9)), max_size=20), st.integers(0, 9))
def test_what_stays_is_believed_in_the_end(steps: list[tuple[float, int]], final: int) -> None:
    steady, at_s = Steady(), 0.0
    for wait_s, count in steps:
        at_s += wait_s
        steady.offer(endpoints(count), at_s)
    for _ in range(EMPTY_LOOKS + 1):
        steady.offer(endpoints(final), at_s)
        at_s += EMPTY_S
    assert steady.last == tuple(endpoints(final))


def test_an_address_that_is_found_twice_is_one_backend() -> None:
    assert merged(
        [
            Endpoint("10.0.0.2", 1, weight=2, is_open=False),
            Endpoint("10.0.0.1", 1),
            Endpoint("10.0.0.2", 1, weight=5),
            Endpoint("10.0.0.2", 2),
        ]
    ) == (Endpoint("10.0.0.1", 1), Endpoint("10.0.0.2", 1, weight=5), Endpoint("10.0.0.2", 2))


# --- when to look ---------------------------------------------------------------------


def test_the_first_look_is_at_once_and_the_next_at_its_turn() -> None:
    pace = Pace()
    assert pace.due_s <= 0
    pace.start(100.0)
    pace.done(100.2, 5.0)
    assert pace.due_s == 105.2


def test_whoever_asks_gets_a_look_a_second_after_the_last_began() -> None:
    pace = Pace()
    pace.start(100.0)
    pace.done(100.2, 5.0)
    for _ in range(100):
        pace.ask()
    assert pace.due_s == 100.0 + REFRESH_S


def test_asking_during_a_look_is_for_another_one_and_only_one() -> None:
    pace = Pace()
    pace.start(100.0)
    pace.ask()
    pace.ask()
    pace.done(100.5, 5.0)
    assert pace.due_s == 100.0 + REFRESH_S
    pace.start(101.0)
    pace.done(101.5, 5.0)
    assert pace.due_s == 106.5


def test_asking_does_not_put_off_a_look_that_is_due_sooner() -> None:
    pace = Pace()
    pace.start(100.0)
    pace.done(100.0, 0.5)
    pace.ask()
    assert pace.due_s == 100.5


def test_pauses_grow_up_to_a_limit_and_begin_anew_when_a_look_worked() -> None:
    backoff = Backoff(lambda: 0.0)
    assert [backoff.failed() for _ in range(7)] == [
        1.0,
        2.0,
        4.0,
        8.0,
        16.0,
        BACKOFF_LIMIT_S,
        BACKOFF_LIMIT_S,
    ]
    for _ in range(2000):
        assert backoff.failed() == BACKOFF_LIMIT_S
    backoff.worked()
    assert backoff.failed() == 1.0


@given(st.floats(0, 1), st.integers(1, 8))
def test_chance_takes_away_up_to_half_of_a_pause(draw: float, failures: int) -> None:
    whole, drawn = Backoff(lambda: 0.0), Backoff(lambda: draw)
    for _ in range(failures):
        whole_s, drawn_s = whole.failed(), drawn.failed()
        assert whole_s / 2 <= drawn_s <= whole_s


def test_what_the_other_side_ends_soon_has_failed_and_what_lasted_has_not() -> None:
    backoff = Backoff(lambda: 0.5)
    assert [backoff.ended(SHORT_S / 2) for _ in range(3)] == [0.75, 1.5, 3.0]
    assert backoff.ended(SHORT_S) == 0.5
    assert backoff.ended(0.0) == 0.75


# --- what is said ---------------------------------------------------------------------


def test_a_pool_that_is_emptied_after_all_is_said_and_is_well(caplog: pytest.LogCaptureFixture) -> None:
    published: list[int] = []
    findings = Findings("dns weather.test")
    findings.publish = lambda found: published.append(len(found))
    findings.found(endpoints(2), 0.0)
    for at_s in (10.0, 20.0, 40.0, 50.0):
        findings.found([], at_s)
    assert published == [2, 0]
    assert [record.getMessage() for record in caplog.records] == [
        "discovery: dns weather.test: suddenly none; 2 backends from before until that is certain",
        "discovery: dns weather.test: no backends for 30 s, so there are none",
    ]
    assert findings.health() == (True, "dns weather.test: 0 backends")


def test_a_failure_is_said_again_when_it_is_another_one(caplog: pytest.LogCaptureFixture) -> None:
    findings = Findings("dns weather.test")
    for reason in ("it is away", "it is away", "it is broken", "it is broken"):
        findings.failed(reason, "some detail")
    assert [record.getMessage() for record in caplog.records] == [
        "discovery: dns weather.test: it is away; 0 backends from before (some detail)",
        "discovery: dns weather.test: it is broken; 0 backends from before (some detail)",
    ]
    assert findings.health() == (False, "dns weather.test: it is broken; 0 backends from before")
