"""Whose turn it is, beside a model that keeps a list of everybody's next turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy.backends import Backend
from mcp_proxy.backends.rota import Rota


def make(number: int) -> Backend:
    return Backend(f"b{number}", 80, b"/mcp")


def turns(rota: Rota, at_s: float) -> list[Backend]:
    return list(iter(lambda: rota.next(at_s), None))


def test_each_has_one_turn_in_every_round() -> None:
    rota, backends = Rota(5.0), [make(number) for number in range(7)]
    for backend in backends:
        rota.add(backend, 100.0)
    for round in range(1, 10):
        taken = [backend for tick in range(50) for backend in turns(rota, 95.05 + 5 * round + tick / 10)]
        assert sorted(taken, key=backends.index) == backends


@pytest.mark.parametrize("size", [1, 2, 10, 100, 1000])
def test_turns_are_spread_over_the_round_however_many_there_are(size: int) -> None:
    rota = Rota(10.0)
    for number in range(size):
        rota.add(make(number), 0.0)
    per_second = [len(turns(rota, float(second))) for second in range(1, 11)]
    assert sum(per_second) == size
    assert max(per_second) <= size / 10 + 2


def test_turns_that_were_missed_are_not_made_up_for() -> None:
    rota, backend = Rota(5.0), make(0)
    rota.add(backend, 0.0)
    assert turns(rota, 1000.0) == [backend]
    assert turns(rota, 1000.0) == []
    assert turns(rota, 1005.0) == [backend]


def test_one_in_a_hurry_has_an_extra_turn_before_the_others() -> None:
    rota, first, second = Rota(5.0), make(1), make(2)
    rota.add(first, 0.0)
    rota.add(second, 0.0)
    rota.hurry(second)
    rota.hurry(second)
    assert turns(rota, 0.0) == [second]
    assert sorted(turns(rota, 5.0), key=[first, second].index) == [first, second]


def test_one_that_left_has_no_turn_and_has_one_again_when_it_comes_back() -> None:
    rota, backend = Rota(5.0), make(0)
    rota.add(backend, 0.0)
    rota.hurry(backend)
    rota.drop(backend)
    assert turns(rota, 4.0) == []
    rota.add(backend, 4.0)
    assert turns(rota, 9.0) == [backend]
    assert len(rota._turns) == 1


@given(st.lists(st.tuples(st.sampled_from(["add", "drop", "hurry", "wait"]), st.integers(0, 5)), max_size=60))
def test_nobody_waits_longer_than_a_round(steps: list[tuple[str, int]]) -> None:
    rota, backends, at_s = Rota(5.0), [make(number) for number in range(6)], 0.0
    last: dict[Backend, float] = {}
    hurried: list[Backend] = []
    for word, number in steps:
        backend = backends[number]
        if word == "add" and backend not in last:
            rota.add(backend, at_s)
            last[backend] = at_s
        elif word == "drop" and backend in last:
            rota.drop(backend)
            del last[backend]
            hurried = [other for other in hurried if other is not backend]
        elif word == "hurry" and backend in last:
            rota.hurry(backend)
            hurried += [backend] if backend not in hurried else []
        elif word == "wait":
            at_s += number
            taken = turns(rota, at_s)
            assert taken[: len(hurried)] == hurried
            assert set(taken) <= last.keys()
            regular = taken[len(hurried) :]
            assert len(set(regular)) == len(regular)
            last.update(dict.fromkeys(regular, at_s))
            hurried = []
            assert all(at_s - since_s < 5.0 + 5.0 for since_s in last.values())
