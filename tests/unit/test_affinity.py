"""The same caller at the same backend: stable, fair, and no more than a preference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy import affinity
from mcp_proxy.affinity import Affinity, RendezvousHash
from mcp_proxy.backends import Backend

AT_S = 1000.0
VALUES = [f"caller-{number}".encode() for number in range(6000)]


def make(name: str, *, weight: int = 1, is_down: bool = False) -> Backend:
    backend = Backend(name, 80, b"/mcp", weight=weight)
    if is_down:
        backend.refused(AT_S)
    return backend


def chosen(value: bytes, backends: Sequence[Backend], tried: Collection[str] = (), at_s: float = AT_S) -> str:
    backend = RendezvousHash("weather").choose(value, backends, tried, at_s)
    return "-" if backend is None else backend.host


def owners(backends: Sequence[Backend], pool: str = "weather") -> dict[bytes, str]:
    rendezvous = RendezvousHash(pool)
    picks = {value: rendezvous.choose(value, backends, (), AT_S) for value in VALUES}
    return {value: pick.host for value, pick in picks.items() if pick is not None}


hosts = st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1)

# --- the hash --------------------------------------------------------------------------------------


def test_every_process_and_every_version_chooses_the_same() -> None:
    backends = [make("a"), make("b"), make("c", weight=2)]

    assert (
        "".join(chosen(value, backends) for value in VALUES[:40])
        == "ccbacbcbaacbcacccccccccbacbacacacccbcbca"
    )


@settings(deadline=None)
@given(value=st.binary(), names=hosts, seed=st.integers())
def test_the_order_of_backends_does_not_matter(value: bytes, names: list[str], seed: int) -> None:
    backends = [make(name) for name in names]
    shuffled = Random(seed).sample(backends, len(backends))

    assert chosen(value, backends) == chosen(value, shuffled)


def test_what_was_chosen_before_does_not_matter() -> None:
    backends = [make("a"), make("b"), make("c")]
    busy = RendezvousHash("weather")
    for value in VALUES[:100]:
        busy.choose(value, backends[1:], (), AT_S)

    assert [busy.choose(value, backends, (), AT_S) for value in VALUES[:100]] == [
        RendezvousHash("weather").choose(value, backends, (), AT_S) for value in VALUES[:100]
    ]


def test_more_backends_than_are_remembered_choose_the_same_again() -> None:
    rendezvous = RendezvousHash("weather")
    backends = [make(f"backend-{number}") for number in range(affinity.SEEDS_LIMIT + 10)]

    first = rendezvous.choose(b"caller", backends, (), AT_S)

    assert first is not None
    assert rendezvous.choose(b"caller", backends, (), AT_S) is first
    assert RendezvousHash("weather").choose(b"caller", list(reversed(backends)), (), AT_S) is first


@settings(deadline=None)
@given(value=st.binary(), names=hosts.filter(lambda names: len(names) > 1), data=st.data())
def test_a_backend_that_leaves_moves_only_its_own_values(
    value: bytes, names: list[str], data: st.DataObject
) -> None:
    weights = {name: data.draw(st.integers(1, 10)) for name in names}
    left = data.draw(st.sampled_from(names))
    before = chosen(value, [make(name, weight=weights[name]) for name in names])
    after = chosen(value, [make(name, weight=weights[name]) for name in names if name != left])

    assert after == before or before == left
    # Read the other way round: one that joins takes values and moves none between the others.


def test_the_values_of_a_backend_that_left_are_shared_by_all_others() -> None:
    before = owners([make("a"), make("b"), make("c"), make("d")])
    after = owners([make("a"), make("b"), make("c")])
    moved = Counter(after[value] for value in VALUES if before[value] == "d")

    assert all(400 < moved[name] < 600 for name in "abc"), moved


def test_a_heavier_backend_takes_values_and_gives_none() -> None:
    before = owners([make("a"), make("b"), make("c")])
    after = owners([make("a"), make("b"), make("c", weight=3)])

    assert {after[value] for value in VALUES if after[value] != before[value]} == {"c"}


@pytest.mark.parametrize("weights", [(1, 1), (1, 1, 1, 1, 1), (1, 2, 3), (1, 10), (7, 7, 1)])
def test_backends_get_values_by_weight(weights: tuple[int, ...]) -> None:
    backends = [make(f"backend-{number}", weight=weight) for number, weight in enumerate(weights)]
    counts = Counter(owners(backends).values())

    for backend in backends:
        fair = len(VALUES) * backend.weight / sum(weights)
        assert abs(counts[backend.host] - fair) < 5 * fair**0.5, counts


def test_pools_with_the_same_backends_spread_values_differently() -> None:
    backends = [make("a"), make("b")]
    one, two = owners(backends, "weather"), owners(backends, "news")
    same = sum(one[value] == two[value] for value in VALUES)

    assert 0.45 < same / len(VALUES) < 0.55


# --- no more than a preference -----------------------------------------------------------------------


def test_backends_that_were_tried_are_left_out_until_none_is_left() -> None:
    backends = [make("a"), make("b"), make("c")]
    rendezvous = RendezvousHash("weather")
    for value in VALUES[:20]:
        tried: list[str] = []
        while (pick := rendezvous.choose(value, backends, tried, AT_S)) is not None:
            assert pick.id not in tried
            tried.append(pick.id)
        assert len(tried) == 3


def test_the_next_choice_is_where_the_value_would_be_without_the_first() -> None:
    backends = [make("a"), make("b"), make("c")]
    for value in VALUES[:50]:
        first = chosen(value, backends)
        tried = [backend.id for backend in backends if backend.host == first]
        others = [backend for backend in backends if backend.host != first]
        assert chosen(value, backends, tried) == chosen(value, others)


def test_a_backend_to_be_avoided_is_chosen_only_if_there_is_no_other() -> None:
    up, down = make("up"), make("down", is_down=True)
    later_s = down.avoid_until_s

    assert {chosen(value, [up, down]) for value in VALUES[:50]} == {"up"}
    assert {chosen(value, [up, down], tried=[up.id]) for value in VALUES[:50]} == {"down"}
    assert {chosen(value, [down]) for value in VALUES[:50]} == {"down"}
    assert {chosen(value, [up, down], at_s=later_s) for value in VALUES[:50]} == {"up", "down"}


def test_among_backends_to_be_avoided_the_value_decides_as_well() -> None:
    is_up = [make("a"), make("b"), make("c")]
    is_down = [make(name, is_down=True) for name in "abc"]

    assert [chosen(value, is_up) for value in VALUES[:50]] == [
        chosen(value, is_down) for value in VALUES[:50]
    ]


def test_without_backends_there_is_no_choice() -> None:
    assert chosen(b"caller", []) == "-"
    assert chosen(b"caller", [make("a")], tried=[make("a").id]) == "-"


def test_every_value_has_a_backend() -> None:
    assert chosen(b"", [make("a")]) == "a"
    assert chosen(bytes(100_000), [make("a")]) == "a"


# --- what is hashed --------------------------------------------------------------------------------

HEADERS = [(b"accept", b"*/*"), (b"x-tenant", b"acme"), (b"x-empty", b""), (b"x-two", b"1"), (b"x-two", b"1")]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("principal", b"0123abcd"),
        ("client", b"192.0.2.1"),
        ("header:x-tenant", b"acme"),
        ("header:x-absent", None),
        ("header:x-empty", None),
        ("header:x-two", None),
    ],
)
def test_affinity_follows_the_setting(setting: str, value: bytes | None) -> None:
    assert Affinity(setting).value("0123abcd", "192.0.2.1", HEADERS) == value


@pytest.mark.parametrize("setting", ["principal", "client", "header:x-tenant"])
def test_a_caller_of_whom_nothing_is_known_has_no_affinity(setting: str) -> None:
    assert Affinity(setting).value("", "", []) is None


@pytest.mark.parametrize(
    "setting", ["", "Principal", "header", "header:", "header:X-Tenant", "header:a b", "header:é", "x-tenant"]
)
def test_other_settings_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match="affinity is principal, client or header"):
        Affinity(setting)
