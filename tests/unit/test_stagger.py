"""A crowd is let go one after the other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy.clock import TICK_S
from mcp_proxy.downstream.stagger import Stagger


@given(count=st.integers(1, 300), sweeps=st.integers(1, 50))
def test_all_are_released_within_the_window_and_never_many_at_once(count: int, sweeps: int) -> None:
    released: list[int] = []
    stagger: Stagger[int] = Stagger(sweeps * TICK_S, released.append)
    for item in range(count):
        stagger.add(item)
    for sweep in range(sweeps):
        before = len(released)
        stagger.sweep(50.0 + sweep * TICK_S)
        assert len(released) - before <= count // sweeps + 1
        assert len(released) > before or len(released) == count
    stagger.sweep(50.0 + sweeps * TICK_S)
    assert released == list(range(count))
    assert len(stagger) == 0


def test_few_are_gone_at_once() -> None:
    released: list[int] = []
    stagger: Stagger[int] = Stagger(10.0, released.append)
    stagger.add(1)
    stagger.add(1)
    stagger.sweep(0.0)
    stagger.sweep(TICK_S)
    assert released == [1]


def test_what_was_discarded_is_not_released_and_what_comes_late_is() -> None:
    released: list[int] = []
    stagger: Stagger[int] = Stagger(1.0, released.append)
    for item in (1, 2):
        stagger.add(item)
    stagger.discard(1)
    stagger.discard(7)
    stagger.sweep(0.0)
    stagger.sweep(2.0)
    for item in range(10, 20):
        stagger.add(item)
    stagger.sweep(2.1)
    assert released == [2, *range(10, 20)]


def test_a_release_may_discard_the_others() -> None:
    def discard_all(_: int) -> None:
        for other in range(9):
            stagger.discard(other)

    stagger: Stagger[int] = Stagger(0.0, discard_all)
    for item in range(9):
        stagger.add(item)
    stagger.sweep(0.0)
    assert len(stagger) == 0


def test_a_window_of_nothing_releases_all_at_once() -> None:
    released: list[int] = []
    stagger: Stagger[int] = Stagger(0.0, released.append)
    for item in range(5):
        stagger.add(item)
    stagger.sweep(0.0)
    assert len(released) == 5
