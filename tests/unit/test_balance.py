"""Ways of balancing among equally good backends: as tables, and against the plain rule over all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import cycle
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.backends import Backend
from mcp_proxy.backends.balance import BALANCES, ROUNDS, Balance, LeastInflight, LeastSessions, RoundRobin
from tests.unit.lineup import make


def filled(balance: Balance, backends: Sequence[Backend]) -> Balance:
    for backend in backends:
        balance.put(backend, backend.weight)
    return balance


def chosen(balance: Balance, count: int, *tried: str, opens_session: bool = True) -> str:
    ids = [make(name).id for name in tried]
    picks = [balance.next(ids, opens_session=opens_session) for _ in range(count)]
    return "".join("-" if pick is None else pick.host for pick in picks)


weights = st.lists(st.integers(1, 5), min_size=1, max_size=6)


# --- all of them --------------------------------------------------------------------------


@pytest.fixture(params=list(BALANCES))
def make_balance(request: pytest.FixtureRequest) -> Callable[[], Balance]:
    return lambda: BALANCES[request.param](Random(1).random)


def test_there_is_nobody_if_all_were_tried_or_there_is_none(make_balance: Callable[[], Balance]) -> None:
    assert chosen(make_balance(), 1) == "-"
    assert chosen(filled(make_balance(), [make("a"), make("b")]), 1, "a", "b") == "-"


def test_a_tried_backend_is_never_chosen(make_balance: Callable[[], Balance]) -> None:
    balance = filled(make_balance(), [make("a"), make("b", inflight=9, sessions=9), make("c", weight=3)])

    assert chosen(balance, 9, "a", "c") == "b" * 9
    assert "c" not in chosen(balance, 9, "c")


def test_one_that_was_dropped_is_not_chosen_and_dropping_twice_is_no_trouble(
    make_balance: Callable[[], Balance],
) -> None:
    backends = [make("a"), make("b")]
    balance = filled(make_balance(), backends)
    balance.drop(backends[0])
    balance.drop(backends[0])

    assert chosen(balance, 4) == "bbbb"


@pytest.mark.parametrize("opens_session", [True, False])
def test_idle_backends_are_used_evenly(make_balance: Callable[[], Balance], opens_session: bool) -> None:
    balance = filled(make_balance(), [make(name) for name in "abcde"])

    counts = Counter(chosen(balance, 1000, opens_session=opens_session))

    assert all(195 <= counts[name] <= 205 for name in "abcde"), counts


@pytest.mark.parametrize("opens_session", [True, False])
def test_one_that_joins_late_has_nothing_to_make_up_for(
    make_balance: Callable[[], Balance], opens_session: bool
) -> None:
    balance = filled(make_balance(), [make("a"), make("b")])
    chosen(balance, 1000, opens_session=opens_session)
    balance.put(make("c"), 1)

    counts = Counter(chosen(balance, 30, opens_session=opens_session))

    assert all(7 <= counts[name] <= 13 for name in "abc"), counts


# --- least sessions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({"sessions": 1}, {"sessions": 2}, "aa"),
        ({"sessions": 1, "opening": 1}, {"sessions": 1}, "bb"),
        ({"sessions": 1}, {"opening": 1}, "ab"),
        ({"sessions": 2, "weight": 2}, {"sessions": 1}, "aa"),
        ({"sessions": 3, "weight": 2}, {"sessions": 1}, "ab"),
        ({"sessions": 4, "weight": 2}, {"sessions": 1}, "bb"),
        ({"weight": 2}, {}, "aa"),
        ({"sessions": 1, "inflight": 9}, {"sessions": 2}, "aa"),
    ],
)
def test_a_session_goes_where_there_are_fewest_by_weight_and_in_turn(
    a: dict[str, Any], b: dict[str, Any], expected: str
) -> None:
    assert chosen(filled(LeastSessions(Random(1).random), [make("a", **a), make("b", **b)]), 2) == expected


def test_a_backend_whose_sessions_have_ended_is_chosen_again() -> None:
    backends = [make("a", sessions=5), make("b", sessions=3)]
    balance = filled(LeastSessions(Random(1).random), backends)
    assert chosen(balance, 1) == "b"
    backends[0].sessions = 1
    balance.recount(backends[0])

    assert chosen(balance, 1) == "a"


def test_a_request_that_opens_no_session_does_not_look_at_sessions() -> None:
    balance = filled(LeastSessions(Random(1).random), [make("a", sessions=9), make("b", inflight=1)])

    assert chosen(balance, 4, opens_session=False) == "aaaa"


@settings(deadline=None)
@given(weights, st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=60))
def test_sessions_that_come_and_go_are_placed_as_a_look_at_all_would(
    weights: list[int], moves: list[tuple[int, bool]]
) -> None:
    backends = [make(str(number), weight=weight) for number, weight in enumerate(weights)]
    balance = filled(LeastSessions(Random(1).random), backends)
    came: dict[Backend, float] = {backend: n for n, backend in enumerate(backends)}  # to its present load
    for turn, (number, begins) in enumerate(moves, len(backends)):
        load = {each: Fraction(each.sessions + 1, each.weight) for each in backends}
        least = min(backends, key=lambda each: (load[each], came[each]))
        assert balance.next((), opens_session=True) is least
        came[least] = turn
        moved = least if begins else backends[number % len(backends)]
        if begins or moved.sessions:
            moved.sessions += 1 if begins else -1
            balance.recount(moved)
            came[moved] = turn + 0.5


@settings(deadline=None)
@given(weights, st.integers(0, 60))
def test_sessions_spread_in_proportion_to_weight(weights: list[int], sessions: int) -> None:
    backends = [make(str(number), weight=weight) for number, weight in enumerate(weights)]
    balance = filled(LeastSessions(Random(1).random), backends)
    for _ in range(sessions):
        backend = balance.next((), opens_session=True)
        assert backend is not None
        backend.sessions += 1
        balance.recount(backend)

    for one in backends:
        for other in backends:
            assert one.sessions / one.weight <= (other.sessions + 1) / other.weight + 1e-9


# --- least in flight ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({"inflight": 1}, {"inflight": 2}, "aa"),
        ({"inflight": 2}, {"inflight": 1}, "bb"),
        ({"inflight": 1}, {"inflight": 1}, "ab"),
        ({"inflight": 2, "weight": 2}, {"inflight": 1}, "ab"),
        ({"inflight": 3, "weight": 2}, {"inflight": 1}, "bb"),
        ({"inflight": 1, "weight": 2}, {"inflight": 1}, "aa"),
        ({"weight": 2}, {}, "ab"),
        ({"sessions": 9}, {"inflight": 1}, "aa"),
    ],
)
def test_fewer_in_flight_by_weight_wins_and_ties_go_to_the_one_chosen_less(
    a: dict[str, Any], b: dict[str, Any], expected: str
) -> None:
    balance = LeastInflight(cycle([0.0]).__next__)
    balance = LeastInflight(cycle([0.0]).__next__)
    assert chosen(filled(balance, [make("a", **a), make("b", **b)]), 2) == expected


def test_backends_with_nothing_in_flight_are_used_by_weight() -> None:
    balance = filled(LeastInflight(Random(7).random), [make("a"), make("b", weight=2), make("c")])
    counts = Counter(chosen(balance, 400))
    assert {name: round(count / 100) for name, count in counts.items()} == {"a": 1, "b": 2, "c": 1}


@pytest.mark.parametrize(
    ("draws", "expected"),
    [
        ((0.0, 0.0), "b"),  # a 3, b 1
        ((0.0, 0.5), "c"),  # a 3, c 2
        ((0.3, 0.4), "b"),  # b 1, c 2
        ((0.6, 0.9), "d"),  # c 2, d 0
    ],
)
def test_only_the_two_that_were_drawn_are_compared(draws: tuple[float, float], expected: str) -> None:
    loads = {"a": 3, "b": 1, "c": 2, "d": 0}
    backends = [make(name, inflight=inflight) for name, inflight in loads.items()]

    assert chosen(filled(LeastInflight(iter(draws).__next__), backends), 1) == expected


@settings(deadline=None)
@given(
    loads=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 10)), min_size=2, max_size=8),
    seed=st.integers(),
)
def test_the_better_of_two_is_what_the_plain_rule_says(loads: list[tuple[int, int]], seed: int) -> None:
    backends = [make(str(number), inflight=inflight) for number, (inflight, _) in enumerate(loads)]
    random, same = Random(seed), Random(seed)
    balance = LeastInflight(random.random)
    for backend, (_, tenths) in zip(backends, loads, strict=True):
        balance.put(backend, tenths / 10)
    turns = [0.0] * len(loads)
    for count in range(20):
        i = int(same.random() * len(loads))
        j = int(same.random() * (len(loads) - 1))
        j += j >= i
        rank = [(loads[k][0] / (loads[k][1] / 10), turns[k]) for k in range(len(loads))]
        best = j if rank[j] < rank[i] else i
        present = sum([1 / len(loads)] * count)
        turns[best] = max(present - ROUNDS, min(turns[best], present + ROUNDS)) + 1 / (loads[best][1] / 10)
        assert balance.next((), opens_session=False) is backends[best]


def test_requests_in_flight_spread_by_weight_even_in_a_large_pool() -> None:
    backends = [make(str(number), weight=8 if number == 0 else 1) for number in range(50)]
    balance = filled(LeastInflight(Random(1).random), backends)
    for _ in range(57 * 20):
        backend = balance.next((), opens_session=False)
        assert backend is not None
        backend.inflight += 1

    assert 150 <= backends[0].inflight <= 170  # 160 would be even
    assert all(17 <= backend.inflight <= 23 for backend in backends[1:])


def test_one_that_was_busy_for_long_is_not_paid_back_for_long() -> None:
    backends = [make("a"), make("b", inflight=9)]
    balance = filled(LeastInflight(Random(1).random), backends)
    assert chosen(balance, 1000) == "a" * 1000
    backends[1].inflight = 0

    counts = Counter(chosen(balance, 200))

    assert counts["b"] - counts["a"] <= 3 * ROUNDS


# --- round robin ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1, 1, 1), "abcabc"),
        ((2, 1), "abaaba"),
        ((1, 3), "bbabbbab"),
        ((5, 1, 1), "aaaabcaaaaabca"),
    ],
)
def test_turns_are_taken_smoothly(weights: tuple[int, ...], expected: str) -> None:
    backends = [make(name, weight=weight) for name, weight in zip("abc", weights, strict=False)]

    assert chosen(filled(RoundRobin(Random(1).random), backends), len(expected)) == expected


@settings(deadline=None)
@given(weights, st.integers(1, 4))
def test_each_round_gives_every_backend_as_many_turns_as_its_weight(weights: list[int], rounds: int) -> None:
    backends = [make(str(number), weight=weight) for number, weight in enumerate(weights)]

    picks = Counter(chosen(filled(RoundRobin(Random(1).random), backends), rounds * sum(weights)))

    assert [picks[backend.host] for backend in backends] == [rounds * weight for weight in weights]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=60))
def test_turns_are_those_of_a_look_at_all(moves: list[tuple[int, int]]) -> None:
    backends = [make(str(number)) for number in range(6)]
    balance = RoundRobin(Random(1).random)
    due: dict[Backend, tuple[float, int]] = {}  # and when that was settled
    started: dict[Backend, float] = {}
    taken: dict[Backend, int] = {}
    present = 0.0
    for turn, (number, weight) in enumerate(moves):
        backend = backends[number]
        if weight == 0:
            balance.drop(backend)
            due.pop(backend, None)
        elif backend not in due:
            backend.weight = weight
            balance.put(backend, weight)
            due[backend] = present + 1 / weight, 2 * turn
            started[backend], taken[backend] = present, 0
        first = min(due, key=lambda each: due[each], default=None)
        assert balance.next((), opens_session=False) is first
        if first is not None:
            present = due[first][0]
            taken[first] += 1
            due[first] = started[first] + (taken[first] + 1) / first.weight, 2 * turn + 1


def test_a_backend_that_gets_heavier_comes_sooner_and_never_loses_its_turn() -> None:
    backends = [make(str(number)) for number in range(10)]
    balance = filled(RoundRobin(Random(1).random), backends)
    last = make("x")
    picks = ""
    for turn in range(12):
        balance.put(last, min(1.0, 0.1 * (turn + 1)))
        picks += chosen(balance, 2)

    assert picks.count("x") == 1


def test_round_robin_does_not_look_at_load() -> None:
    balance = filled(RoundRobin(Random(1).random), [make("a", sessions=100, inflight=100), make("b")])

    assert chosen(balance, 4) == "abab"
