"""Backends as balancing sees them, and who is next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.backends import AVOID_S, Backend, Balance
from mcp_proxy.backends.balance import LeastSessions, RoundRobin

AT_S = 1000.0


def make(
    name: str, *, weight: int = 1, sessions: int = 0, inflight: int = 0, is_down: bool = False
) -> Backend:
    backend = Backend(name, 80, b"/mcp", weight=weight)
    backend.sessions = sessions
    backend.inflight = inflight
    if is_down:
        backend.refused(AT_S)
    return backend


def chosen(
    balance: Balance,
    backends: list[Backend],
    count: int = 1,
    *,
    tried: Collection[str] = (),
    at_s: float = AT_S,
) -> list[str]:
    picks = [balance.choose(backends, tried, at_s) for _ in range(count)]
    return ["-" if pick is None else pick.host for pick in picks]


# --- what a backend is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "port", "tls", "origin"),
    [
        ("10.0.0.1", 8000, False, "http://10.0.0.1:8000"),
        ("10.0.0.1", 80, False, "http://10.0.0.1:80"),
        ("mcp.example.com", 443, True, "https://mcp.example.com:443"),
        ("2001:db8::1", 8000, False, "http://[2001:db8::1]:8000"),
    ],
)
def test_a_backend_is_known_by_its_url_with_its_port(host: str, port: int, tls: bool, origin: str) -> None:
    backend = Backend(host, port, b"/mcp", tls=tls)

    assert backend.origin == origin
    assert backend.id == origin + "/mcp"


def test_the_first_of_several_failures_is_the_beginning_of_the_absence() -> None:
    backend = make("a")

    backend.refused(10.0)
    backend.refused(15.0)

    assert backend.unreachable_since_s == 10.0
    assert backend.avoid_until_s == 15.0 + AVOID_S


def test_an_absence_ends_when_the_backend_is_reached() -> None:
    backend = make("a")
    backend.refused(10.0)
    backend.reached()

    backend.refused(12.0)

    assert backend.unreachable_since_s == 12.0


def test_a_backend_that_was_reached_is_as_good_as_any() -> None:
    backend = make("a", is_down=True)

    backend.reached()

    assert backend.unreachable_since_s is None
    assert chosen(LeastSessions(), [backend, make("b", sessions=1)]) == ["a"]


def test_a_backend_describes_itself() -> None:
    backend = make("a", sessions=1, inflight=2)
    backend.streams = 3

    assert repr(backend) == "<Backend http://a:80/mcp up sessions=1 inflight=2 streams=3>"
    backend.refused(AT_S)
    assert repr(backend) == "<Backend http://a:80/mcp unreachable sessions=1 inflight=2 streams=3>"


# --- both ways of balancing -----------------------------------------------------------------------


@pytest.fixture(params=[LeastSessions, RoundRobin])
def balance(request: pytest.FixtureRequest) -> Balance:
    made: Balance = request.param()
    return made


def test_there_is_nobody_if_all_were_tried_or_there_is_none(balance: Balance) -> None:
    backends = [make("a"), make("b", is_down=True)]

    assert chosen(balance, backends, tried=[backend.id for backend in backends]) == ["-"]
    assert chosen(balance, []) == ["-"]


def test_idle_backends_take_turns(balance: Balance) -> None:
    backends = [make("a"), make("b"), make("c")]

    assert Counter(chosen(balance, backends, 9)) == {"a": 3, "b": 3, "c": 3}


def test_a_tried_backend_is_never_chosen(balance: Balance) -> None:
    backends = [make("a"), make("b"), make("c", is_down=True)]

    assert set(chosen(balance, backends, 9, tried=[backends[0].id])) == {"b"}
    assert set(chosen(balance, backends, 9, tried={backends[0].id, backends[1].id})) == {"c"}


def test_a_backend_to_be_avoided_is_chosen_only_if_there_is_no_other(balance: Balance) -> None:
    backends = [make("a", is_down=True), make("b", sessions=1000, inflight=1000)]

    assert set(chosen(balance, backends, 4)) == {"b"}
    assert set(chosen(balance, backends, 4, tried=[backends[1].id])) == {"a"}


def test_backends_that_are_all_to_be_avoided_are_chosen_all_the_same(balance: Balance) -> None:
    backends = [make("a", is_down=True), make("b", is_down=True)]

    assert Counter(chosen(balance, backends, 4)) == {"a": 2, "b": 2}


@pytest.mark.parametrize(("after_s", "expected"), [(AVOID_S - 0.001, {"b"}), (AVOID_S, {"a", "b"})])
def test_a_backend_is_avoided_for_a_while(balance: Balance, after_s: float, expected: set[str]) -> None:
    backends = [make("a", is_down=True), make("b")]

    assert set(chosen(balance, backends, 4, at_s=AT_S + after_s)) == expected


def test_the_turns_of_a_missing_backend_are_shared(balance: Balance) -> None:
    backends = [make("a", is_down=True), make("b"), make("c")]

    assert Counter(chosen(balance, backends, 30)) == {"b": 15, "c": 15}


@settings(deadline=None)
@given(st.data())
def test_whoever_is_chosen_is_one_of_them_and_was_not_tried(data: st.DataObject) -> None:
    backends = [
        make(name, weight=weight, sessions=sessions, inflight=inflight, is_down=is_down)
        for name, weight, sessions, inflight, is_down in data.draw(
            st.lists(
                st.tuples(
                    st.sampled_from("abcdef"),
                    st.integers(1, 5),
                    st.integers(0, 9),
                    st.integers(0, 9),
                    st.booleans(),
                ),
                unique_by=lambda values: values[0],
                max_size=6,
            )
        )
    ]
    tried = [backend.id for backend in backends if data.draw(st.booleans())]
    left = [backend for backend in backends if backend.id not in tried]
    up = [backend for backend in left if backend.avoid_until_s <= AT_S]

    for algorithm in (LeastSessions(), RoundRobin()):
        for _ in range(3):
            choice = algorithm.choose(backends, tried, AT_S)
            assert (choice is None) == (not left)
            assert choice is None or choice in (up or left)


# --- least sessions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({"sessions": 1}, {"sessions": 2}, {"a"}),
        ({"sessions": 3, "weight": 2}, {"sessions": 2}, {"a"}),
        ({"sessions": 5, "weight": 2}, {"sessions": 2}, {"b"}),
        ({"sessions": 1, "inflight": 9}, {"sessions": 2, "inflight": 0}, {"a"}),
        ({"sessions": 1, "inflight": 9}, {"sessions": 1, "inflight": 8}, {"b"}),
        ({"inflight": 5, "weight": 3}, {"inflight": 2}, {"a"}),
        ({"sessions": 4, "weight": 2, "inflight": 2}, {"sessions": 2, "inflight": 1}, {"a", "b"}),
    ],
)
def test_fewest_sessions_per_weight_then_fewest_in_flight_then_in_turn(
    a: dict[str, Any], b: dict[str, Any], expected: set[str]
) -> None:
    backends = [make("a", **a), make("b", **b)]

    assert set(chosen(LeastSessions(), backends, 4)) == expected
    assert set(chosen(LeastSessions(), backends[::-1], 4)) == expected


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 40))
def test_sessions_spread_in_proportion_to_weight(weights: list[int], rounds: int) -> None:
    backends = [make(f"b{number}", weight=weight) for number, weight in enumerate(weights)]
    algorithm = LeastSessions()

    for _ in range(rounds):
        choice = algorithm.choose(backends, (), AT_S)
        assert choice is not None
        choice.sessions += 1

    loads = [backend.sessions / backend.weight for backend in backends]
    assert max(loads) - min(loads) <= 1


def test_idle_backends_take_turns_by_weight() -> None:
    backends = [make("a", weight=2), make("b")]

    assert Counter(chosen(LeastSessions(), backends, 30)) == {"a": 20, "b": 10}


# --- round robin ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 4))
def test_each_round_gives_every_backend_as_many_turns_as_its_weight(weights: list[int], rounds: int) -> None:
    backends = [make(f"b{number}", weight=weight) for number, weight in enumerate(weights)]

    picks = Counter(chosen(RoundRobin(), backends, rounds * sum(weights)))

    assert [picks[backend.host] for backend in backends] == [rounds * weight for weight in weights]


def test_round_robin_does_not_look_at_load() -> None:
    backends = [make("a", sessions=100), make("b")]

    assert Counter(chosen(RoundRobin(), backends, 4)) == {"a": 2, "b": 2}
