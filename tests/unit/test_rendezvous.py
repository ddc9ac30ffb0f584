"""The same value at the same backend: stable, fair, and cheap to ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.backends import Backend, Standing
from mcp_proxy.backends.rendezvous import PROBES, Rendezvous
from tests.unit.lineup import make, stand

VALUES = [f"caller-{number}".encode() for number in range(6000)]


def rendezvous(backends: Iterable[Backend], pool: str = "weather") -> Rendezvous:
    made = Rendezvous(pool)
    for backend in backends:
        made.put(backend)
    return made


def owner(hash: Rendezvous, value: bytes) -> str:
    return next((backend.host for backend in hash.choices(value)), "-")


def owners(hash: Rendezvous, values: Sequence[bytes] = VALUES) -> dict[bytes, str]:
    return {value: owner(hash, value) for value in values}


names = st.sampled_from("abcdefgh")
hosts = st.lists(names, unique=True, min_size=1)

# --- stable ----------------------------------------------------------------------------------------


def test_every_process_and_every_version_chooses_the_same() -> None:
    hash = rendezvous([make("a"), make("b"), make("c", weight=2)])

    assert "".join(owner(hash, value) for value in VALUES[:40]) == "bbcaacbabcbaababcacbcccbccabacbabcccccbb"


@settings(deadline=None)
@given(value=st.binary(), names=hosts, seed=st.integers())
def test_the_order_of_backends_does_not_matter(value: bytes, names: list[str], seed: int) -> None:
    backends = [make(name) for name in names]
    shuffled = Random(seed).sample(backends, len(backends))

    assert owner(rendezvous(backends), value) == owner(rendezvous(shuffled), value)


moves = st.lists(st.tuples(names, st.integers(0, 3)), min_size=1, max_size=30)


@settings(deadline=None)
@given(moves=moves, seed=st.integers())
def test_only_the_members_matter_and_not_how_they_came_to_be(moves: list[tuple[str, int]], seed: int) -> None:
    random = Random(seed)
    values = random.sample(VALUES, 4)
    hash = rendezvous([])
    backends = {name: make(name) for name in "abcdefgh"}
    there: set[str] = set()
    for name, weight in moves:
        if weight:
            backends[name].weight = weight
            hash.put(backends[name])
            there.add(name)
        else:
            hash.drop(backends[name])
            there.discard(name)
        fresh = rendezvous(backends[name] for name in there)
        asked = random.sample(values, 2)  # so that some have missed some moves
        assert owners(hash, asked) == owners(fresh, asked)
        assert len(hash) == len(there)


@settings(deadline=None)
@given(value=st.binary(), names=hosts.filter(lambda names: len(names) > 1), data=st.data())
def test_a_backend_that_leaves_moves_only_its_own_values(
    value: bytes, names: list[str], data: st.DataObject
) -> None:
    backends = {name: make(name, weight=data.draw(st.integers(1, 10))) for name in names}
    left = data.draw(st.sampled_from(names))
    hash = rendezvous(backends.values())
    before = owner(hash, value)
    hash.drop(backends[left])

    assert owner(hash, value) == before or before == left
    hash.put(backends[left])
    assert owner(hash, value) == before
    # Read the other way round: one that joins takes values and moves none between the others.


def test_the_values_of_a_backend_that_left_are_shared_by_all_others() -> None:
    backends = [make(name) for name in "abcd"]
    hash = rendezvous(backends)
    before = owners(hash)
    hash.drop(backends[3])
    after = owners(hash)
    moved = Counter(after[value] for value in VALUES if before[value] == "d")

    assert all(400 < moved[name] < 600 for name in "abc"), moved
    assert all(after[value] == before[value] for value in VALUES if before[value] != "d")


def test_a_heavier_backend_takes_values_and_gives_none() -> None:
    backends = [make(name) for name in "abc"]
    hash = rendezvous(backends)
    before = owners(hash)
    backends[2].weight = 3
    hash.put(backends[2])
    after = owners(hash)

    assert {after[value] for value in VALUES if after[value] != before[value]} == {"c"}


def test_how_a_backend_is_judged_does_not_matter() -> None:
    backends = [make(name) for name in "abc"]
    hash = rendezvous(backends)
    before = owners(hash)
    stand(backends[0], Standing.POOR)
    stand(backends[1], Standing.TRIAL)
    for backend in backends:
        backend.inflight = 100
        backend.warm_from_s = 5.0
        hash.put(backend)

    assert owners(hash) == before


def test_a_backend_with_the_id_of_one_that_left_takes_its_place() -> None:
    hash = rendezvous([make("a"), make("b")])
    before = owners(hash)
    again = make("b")
    hash.put(again)

    assert owners(hash) == before
    assert all(backend is again for backend in hash.choices(b"x") if backend.host == "b")


# --- fair ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(1, 1), (1, 1, 1, 1, 1), (1, 2, 3), (1, 10), (7, 7, 1)])
def test_backends_get_values_by_weight(weights: tuple[int, ...]) -> None:
    backends = [make(f"backend-{number}", weight=weight) for number, weight in enumerate(weights)]
    counts = Counter(owners(rendezvous(backends)).values())

    for backend in backends:
        fair = len(VALUES) * backend.weight / sum(weights)
        assert abs(counts[backend.host] - fair) < 5 * fair**0.5, counts


def test_a_thousand_backends_all_get_values_and_the_second_half_of_them_takes_its_share() -> None:
    backends = [make(f"backend-{number}") for number in range(1000)]
    values = VALUES[:300]
    hash = rendezvous(backends[:500])
    before = owners(hash, values)
    for backend in backends[500:]:
        hash.put(backend)
    after = owners(hash, values)
    moved = [value for value in values if after[value] != before[value]]

    assert 100 < len(moved) < 200
    assert {after[value] for value in moved} <= {backend.host for backend in backends[500:]}
    assert after == owners(rendezvous(reversed(backends)), values)


def test_pools_with_the_same_backends_spread_values_differently() -> None:
    backends = [make("a"), make("b")]
    one, two = owners(rendezvous(backends, "weather")), owners(rendezvous(backends, "news"))
    same = sum(one[value] == two[value] for value in VALUES)

    assert 0.45 < same / len(VALUES) < 0.55


# --- choices ---------------------------------------------------------------------------------------


def test_there_is_no_choice_without_backends() -> None:
    hash = rendezvous([])
    assert list(hash.choices(b"caller")) == []
    lonely = make("a")
    hash.put(lonely)
    hash.drop(lonely)
    hash.drop(lonely)
    assert list(hash.choices(b"caller")) == []


def test_every_value_has_choices() -> None:
    hash = rendezvous([make("a")])

    assert [backend.host for backend in hash.choices(b"")] == ["a"] * PROBES
    assert [backend.host for backend in hash.choices(bytes(100_000))] == ["a"] * PROBES


def test_the_next_choices_of_the_values_of_one_backend_are_shared_by_all_others() -> None:
    hash = rendezvous(make(name) for name in "abcd")
    next_choices: Counter[str] = Counter()
    for value in VALUES:
        choices = [backend.host for backend in hash.choices(value)]
        if choices[0] == "a":
            next_choices[next(name for name in choices if name != "a")] += 1

    assert all(400 < next_choices[name] < 600 for name in "bcd"), next_choices
