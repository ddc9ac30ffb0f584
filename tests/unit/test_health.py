"""Checks in a row make a verdict; a single one does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy.backends.health import Health


@pytest.mark.parametrize(
    ("fall", "rise", "results", "verdicts"),
    [
        (3, 2, "wwww", "wwww"),
        (3, 2, "ffff", "wwuu"),
        (3, 2, "ffwff", "wwwww"),
        (3, 2, "fffwfww", "wwuuuuw"),
        (3, 2, "fffwwffwfff", "wwuuwwwwwwu"),
        (1, 1, "fwfw", "uwuw"),
        (1, 3, "fwwfwww", "uuuuuuw"),
    ],
)
def test_so_many_in_a_row_change_the_verdict(fall: int, rise: int, results: str, verdicts: str) -> None:
    health = Health(fall, rise)
    assert health.is_healthy
    assert [health.add(result == "w") for result in results] == [verdict == "w" for verdict in verdicts]


def test_it_may_go_on_from_what_was_known() -> None:
    health = Health(1, 2, is_healthy=False)
    assert [health.add(True), health.add(True)] == [False, True]


@given(st.integers(1, 5), st.integers(1, 5), st.booleans(), st.lists(st.booleans(), max_size=60))
def test_the_verdict_is_that_of_the_last_row_that_was_long_enough(
    fall: int, rise: int, start: bool, results: list[bool]
) -> None:
    health = Health(fall, rise, is_healthy=start)
    for seen in range(1, len(results) + 1):
        health.add(results[seen - 1])
        assert health.is_healthy is _verdict(fall, rise, start, results[:seen])


def _verdict(fall: int, rise: int, start: bool, results: list[bool]) -> bool:
    """Look back from the newest result for a row that decides."""
    for end in range(len(results), 0, -1):
        for is_well, length in ((True, rise), (False, fall)):
            if end >= length and all(result is is_well for result in results[end - length : end]):
                return is_well
    return start
