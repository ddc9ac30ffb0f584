"""Who has room for one more request."""

from __future__ import annotations

from math import ceil
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.backends.tally import CROWDED, Tally
from tests.unit.lineup import make


def test_nobody_to_look_at_is_no_trouble() -> None:
    tally = Tally()
    tally.drop(make("a"))
    tally.look()

    assert len(tally) == 0


@pytest.mark.parametrize(
    ("inflight", "weights", "has_room"),
    [
        ((0, 0), (1, 1), (True, True)),
        ((1, 0), (1, 1), (True, True)),  # 1 + 1 <= ceil(1.25 * 2 / 2)
        ((2, 0), (1, 1), (False, True)),
        ((5, 3), (1, 1), (True, True)),
        ((6, 2), (1, 1), (False, True)),
        ((8, 0), (9, 1), (True, True)),
        ((8, 1), (9, 1), (True, True)),
        ((8, 2), (9, 1), (True, False)),
    ],
)
def test_a_backend_has_room_up_to_a_quarter_over_the_mean(
    inflight: tuple[int, ...], weights: tuple[int, ...], has_room: tuple[bool, ...]
) -> None:
    tally = Tally()
    backends = [
        make(f"b{n}", inflight=i, weight=w) for n, (i, w) in enumerate(zip(inflight, weights, strict=True))
    ]
    for backend in backends:
        tally.put(backend)

    assert tuple(map(tally.has_room, backends)) == has_room


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=9))
def test_after_enough_looks_the_mean_is_that_of_all(loads: list[tuple[int, int]]) -> None:
    tally = Tally()
    backends = [make(f"b{number}", weight=weight) for number, (_, weight) in enumerate(loads)]
    for backend in backends:
        tally.put(backend)
    for backend, (inflight, _) in zip(backends, loads, strict=True):
        backend.inflight = inflight  # nobody is told
    for _ in backends:
        tally.look()

    for backend in backends:
        share = backend.weight / sum(weight for _, weight in loads)
        bound = CROWDED * (sum(inflight for inflight, _ in loads) + 1) * share
        # at whole bounds a double may err on either side
        if abs(bound - round(bound)) > 1e-9:
            assert tally.has_room(backend) == (backend.inflight + 1 <= ceil(bound))


def test_what_was_decided_counts_at_once() -> None:
    tally = Tally()
    backends = [make(f"b{number}") for number in range(100)]
    for backend in backends:
        tally.put(backend)
    for backend in backends:
        tally.expect(backend)
        backend.inflight += 1

    assert tally.has_room(backends[0])  # 1 + 1 <= ceil(1.25 * 101 / 100)
    backends[0].inflight = 2
    assert not tally.has_room(backends[0])


def test_who_has_left_does_not_count() -> None:
    tally = Tally()
    busy, idle, other = make("busy", inflight=100), make("idle", inflight=4), make("other")
    for backend in (busy, idle, other):
        tally.put(backend)
    assert tally.has_room(idle)

    tally.drop(busy)

    assert not tally.has_room(idle)
    assert tally.has_room(other)
    assert len(tally) == 2


def test_whoever_comes_and_goes_leaves_nothing_behind() -> None:
    random = Random(1)
    tally = Tally()
    backends = [make(f"b{number}") for number in range(20)]
    for _ in range(2000):
        backend = random.choice(backends)
        backend.inflight, backend.weight = random.randrange(9), random.randrange(1, 9)
        random.choice((tally.put, tally.drop))(backend)
        tally.look()
    for backend in backends:
        tally.drop(backend)

    one, other = make("one", inflight=2), make("other")
    tally.put(one)
    tally.put(other)
    assert (tally.has_room(one), tally.has_room(other)) == (False, True)
