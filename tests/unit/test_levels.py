"""The order of backends by a number: against a sorted list, and bounded."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.backends import Backend
from mcp_proxy.backends.levels import SPARE_LEVELS, Levels
from tests.unit.lineup import make

A, B, C = (make(name) for name in "abc")


def test_nobody_is_first_of_none() -> None:
    levels = Levels()
    levels.drop(A)

    assert levels.first() is None
    assert levels.first([A.id]) is None


def test_those_of_one_level_come_in_the_order_in_which_they_came_to_it() -> None:
    levels = Levels()
    for backend, level in [(A, 1.0), (B, 1.0), (C, 2.0), (A, 2.0), (A, 1.0)]:
        levels.put(backend, level)

    assert levels.first() is B
    levels.defer(B)
    assert levels.first() is A


def test_a_backend_that_is_put_where_it_is_keeps_its_place() -> None:
    levels = Levels()
    for backend in (A, B, A):
        levels.put(backend, 1.0)

    assert levels.first() is A


def test_those_that_were_tried_are_passed_over_and_keep_their_place() -> None:
    levels = Levels()
    for backend, level in [(A, 1.0), (B, 2.0), (C, 3.0)]:
        levels.put(backend, level)

    assert levels.first([A.id]) is B
    assert levels.first([A.id, B.id]) is C
    assert levels.first([A.id, B.id, C.id]) is None
    assert levels.first() is A


backends = [make(f"b{number}") for number in range(6)]
moves = st.lists(
    st.tuples(
        st.sampled_from(["put", "drop", "defer"]),
        st.sampled_from(backends),
        st.integers(0, 4),
        st.sets(st.sampled_from([backend.id for backend in backends])),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(moves)
def test_the_first_is_that_of_a_sorted_list(moves: list[tuple[str, Backend, int, set[str]]]) -> None:
    levels = Levels()
    places: dict[Backend, tuple[int, int]] = {}  # level, and when it came to it
    for turn, (move, backend, level, tried) in enumerate(moves):
        if move == "put":
            levels.put(backend, level)
            if places.get(backend, (None, 0))[0] != level:
                places[backend] = level, turn
        elif move == "drop":
            levels.drop(backend)
            places.pop(backend, None)
        elif backend in places:
            levels.defer(backend)
            places[backend] = places[backend][0], turn

        assert levels.first() is min(places, key=lambda each: places[each], default=None)
        left = [each for each in backends if each in places and each.id not in tried]
        assert levels.first(tried) is min(left, key=lambda each: places[each], default=None)
        assert len(levels) == len(places)


def test_levels_that_nobody_is_at_any_more_are_forgotten() -> None:
    levels = Levels()
    random = Random(1)
    levels.put(A, 0.0)  # in front of all that is left behind

    for _ in range(10_000):
        levels.put(random.choice((B, C)), random.random() + 1)
        assert levels.height <= 2 * 3 + SPARE_LEVELS
    assert levels.first() is A
