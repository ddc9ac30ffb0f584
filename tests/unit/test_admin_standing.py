"""What is told of a backend: the gravest state that is true, and the sum of several views."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mcp_proxy.admin import DrainStatus, State
from mcp_proxy.admin.standing import merged, status_of
from mcp_proxy.backends import Backend, Drain, Ejection
from tests.unit.operated import ONE
from tests.unit.operated import backend as status


def drained(backend: Backend) -> None:
    backend.drain = Drain(100.0, 400.0, "operator", 9)


def away(backend: Backend) -> None:
    backend.unreachable_since_s = 1.0


def ill(backend: Backend) -> None:
    backend.is_healthy = False


def out(backend: Backend) -> None:
    backend.ejection, backend.ejections = Ejection.OUT, 2


def due(backend: Backend) -> None:
    backend.ejection = Ejection.DUE


def probed(backend: Backend) -> None:
    backend.ejection = Ejection.PROBED


@pytest.mark.parametrize(
    ("facts", "state", "is_up"),
    [
        ([], "up", True),
        ([away], "down", False),
        ([ill], "unhealthy", False),
        ([out], "ejected", False),
        ([due], "trial", False),
        ([probed], "trial", False),
        ([drained], "draining", True),
        ([drained, away, ill, out], "draining", False),
        ([away, ill, out], "down", False),
        ([ill, out], "unhealthy", False),
    ],
)
def test_the_gravest_state_is_told(facts: list[Callable[[Backend], None]], state: State, is_up: bool) -> None:
    backend = Backend("10.0.0.11", 8000, b"/mcp", weight=3)
    for fact in facts:
        fact(backend)

    told = status_of(backend, "weather", 150.0)

    assert (told.id, told.pool, told.weight) == (ONE, "weather", 3)
    assert (told.state, told.up) == (state, is_up)
    assert told.ejections == (2 if out in facts else 0)


@pytest.mark.parametrize(("is_modern", "era"), [(True, "modern"), (False, "legacy"), (None, "unknown")])
def test_the_era_is_told_once_it_is_known(is_modern: bool | None, era: str) -> None:
    backend = Backend("10.0.0.11", 8000, b"/mcp")
    backend.is_modern = is_modern

    assert status_of(backend, "weather", 0.0).era == era


@pytest.mark.parametrize(("at_s", "left_s"), [(100.0, 300.0), (399.96, 0.0), (500.0, 0.0)])
def test_the_time_of_a_drain_runs_out_and_not_further(at_s: float, left_s: float) -> None:
    backend = Backend("10.0.0.11", 8000, b"/mcp")
    drained(backend)

    assert status_of(backend, "weather", at_s).drain == DrainStatus("operator", left_s, 9)


def test_loads_of_processes_are_added_and_the_graver_view_counts() -> None:
    one = status(ONE, pool="weather", sessions=2, inflight=1, streams=1, era="legacy", ejections=1)
    other = status(
        ONE, pool="weather", up=False, state="down", sessions=3, streams=4,
        drain=DrainStatus("operator", 5.0, 3), ejections=2,
    )  # fmt: skip

    for sum in (merged(one, other), merged(other, one)):
        assert (sum.sessions, sum.inflight, sum.streams) == (5, 1, 5)
        assert (sum.up, sum.state, sum.era, sum.ejections) == (False, "down", "legacy", 2)
        assert sum.drain == DrainStatus("operator", 5.0, 3)
    both = merged(other, status(ONE, drain=DrainStatus("operator", 7.0, 4)))
    assert both.drain == DrainStatus("operator", 7.0, 7)
