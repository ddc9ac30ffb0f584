"""Drawing at random: as a table of chances, and by weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.backends.urn import Urn
from tests.unit.lineup import make


def chances(*numbers: float) -> Callable[[], float]:
    return iter(numbers).__next__


def urn(weights: Iterable[int], random: Callable[[], float]) -> Urn:
    made = Urn(random)
    for name, weight in zip("abcdef", weights, strict=False):
        made.put(make(name, weight=weight))
    return made


def hosts(urn: Urn, *tried: str) -> str:
    drawn = urn.draw([make(name).id for name in tried])
    return "-" if drawn is None else "".join(backend.host for backend in drawn)


@pytest.mark.parametrize(
    ("weights", "numbers", "expected"),
    [
        ((), (), "-"),
        ((1,), (), "aa"),
        ((1, 1), (0.0, 0.0), "ab"),
        ((1, 1), (0.99, 0.99), "ba"),
        ((1, 1, 1, 1), (0.0, 0.0), "ab"),
        ((1, 1, 1, 1), (0.5, 0.5), "cb"),
        ((1, 1, 1, 1), (0.5, 0.7), "cd"),
        ((1, 1, 1, 1), (0.99, 0.99), "dc"),
        # the tickets of b: 1, 2, 3 and 4
        ((1, 4), (0.19, 0.0), "ab"),
        ((1, 4), (0.21, 0.0), "ba"),
        ((1, 4, 1), (0.0, 0.9), "ab"),
        # 7 counts as 4
        ((1, 7, 1), (0.0, 0.19), "ac"),
        ((1, 7, 1), (0.0, 0.21), "ab"),
    ],
)
def test_two_different_backends_are_drawn_by_their_tickets(
    weights: tuple[int, ...], numbers: tuple[float, ...], expected: str
) -> None:
    assert hosts(urn(weights, chances(*numbers))) == expected


def test_each_pair_is_as_likely_as_any_other_among_equals() -> None:
    numbers = [(number + 0.5) / 60 for number in range(60)]
    pairs = Counter(hosts(urn((1,) * 5, chances(*pair))) for pair in product(numbers, numbers))

    assert len(pairs) == 20
    assert set(pairs.values()) == {180}


def test_a_backend_is_drawn_by_its_weight() -> None:
    drawn = urn((1, 1, 1, 1, 4), Random(1).random)
    first = Counter(hosts(drawn)[0] for _ in range(8000))

    assert 3800 < first["e"] < 4200, first


def test_those_that_were_tried_are_not_drawn_and_come_back() -> None:
    drawn = urn((1, 1, 4), Random(1).random)

    assert {hosts(drawn, "c", "unknown", "c") for _ in range(50)} == {"ab", "ba"}
    assert hosts(drawn, "b", "c") == "aa"
    assert hosts(drawn, "a", "b", "c") == "-"
    assert set("".join(hosts(drawn) for _ in range(50))) == set("abc")


@settings(deadline=None)
@given(
    moves=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 9)), max_size=60), seed=st.integers()
)
def test_only_those_that_are_there_are_drawn(moves: list[tuple[str, int]], seed: int) -> None:
    drawn = Urn(Random(seed).random)
    backends = {name: make(name) for name in "abcdef"}
    there: set[str] = set()
    for name, weight in moves:
        if weight:
            backends[name].weight = weight
            drawn.put(backends[name])
            there.add(name)
        else:
            drawn.drop(backends[name])
            there.discard(name)
        pair = hosts(drawn)
        assert set(pair) <= there or (pair == "-" and not there)
        assert len(set(pair)) == min(2, max(1, len(there)))
        assert len(drawn) == len(there)
