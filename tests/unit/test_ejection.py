"""When a pool leaves a backend out, for how long, and how it comes back: tables."""

from __future__ import annotations

import pytest

from mcp_proxy.backends import Backend, Ejection
from mcp_proxy.backends.ejection import PROBE_S, Ejector, IllegalMove, Rule

RULE = Rule(after=3, for_s=30.0, at_most=0.5)


def make(number: int = 0) -> Backend:
    return Backend(f"b{number}", 80, b"/mcp")


def eject(ejector: Ejector, backend: Backend, at_s: float = 0.0, size: int = 2) -> None:
    results = [ejector.failed(backend, at_s, size) for _ in range(RULE.after)]
    assert results == [False, False, True]


def facts(backend: Backend) -> tuple[Ejection, int, int, float]:
    return backend.ejection, backend.failures, backend.ejections, backend.released_s


def test_failures_in_a_row_eject() -> None:
    ejector, backend = Ejector(RULE), make()
    eject(ejector, backend, at_s=5.0)
    assert facts(backend) == (Ejection.OUT, 3, 1, 35.0)


def test_a_success_between_them_starts_the_row_again() -> None:
    ejector, backend = Ejector(RULE), make()
    for _ in range(10):
        assert not ejector.failed(backend, 0.0, 2)
        assert not ejector.failed(backend, 0.0, 2)
        assert not ejector.succeeded(backend, 0.0), "it had not been ejected"
    assert facts(backend) == (Ejection.NONE, 0, 0, 0.0)


def test_one_failure_is_enough_if_the_rule_says_so() -> None:
    ejector, backend = Ejector(RULE._replace(after=1)), make()
    assert ejector.failed(backend, 0.0, 2)


@pytest.mark.parametrize(
    ("at_most", "size", "expected"),
    [
        (0.0, 100, 0), (0.5, 1, 0), (0.5, 2, 1), (0.5, 3, 1), (0.5, 4, 2), (0.29, 100, 29), (0.07, 100, 7),
        (0.58, 50, 29), (0.99, 100, 99), (0.999, 100, 99), (1.0, 1, 1), (1.0, 3, 3), (0.01, 99, 0),
    ],
)  # fmt: skip
def test_at_most_a_share_of_the_pool_is_out(at_most: float, size: int, expected: int) -> None:
    ejector = Ejector(Rule(1, 30.0, at_most))
    assert sum(ejector.failed(make(number), 0.0, size) for number in range(size)) == expected


def test_one_that_there_is_no_room_for_is_ejected_as_soon_as_there_is() -> None:
    ejector, first, second = Ejector(RULE), make(1), make(2)
    eject(ejector, first)
    for _ in range(5):
        assert not ejector.failed(second, 1.0, 2)
    assert facts(second) == (Ejection.NONE, 5, 0, 0.0)
    assert ejector.sweep(30.0) == [first]
    assert not ejector.failed(second, 31.0, 2), "one that is DUE counts"
    ejector.probed(first, 31.0)
    assert not ejector.failed(second, 31.0, 2), "one that is PROBED counts"
    assert ejector.succeeded(first, 32.0)
    assert ejector.failed(second, 33.0, 2)


def test_room_comes_with_backends_too() -> None:
    ejector, first, second = Ejector(RULE), make(1), make(2)
    eject(ejector, first)
    assert [ejector.failed(second, 0.0, 2) for _ in range(4)] == [False] * 4
    assert ejector.failed(second, 0.0, 4)


def test_one_that_left_makes_room() -> None:
    ejector, first, second = Ejector(RULE), make(1), make(2)
    eject(ejector, first)
    ejector.drop(first)
    eject(ejector, second)
    assert ejector.sweep(1000.0) == [second], "nobody waits for what is gone"
    assert facts(first) == (Ejection.OUT, 3, 1, 30.0)


def test_without_a_rule_nothing_is_counted() -> None:
    ejector, backend = Ejector(None), make()
    assert not any(ejector.failed(backend, 0.0, 2) for _ in range(100))
    assert not ejector.succeeded(backend, 0.0)
    assert facts(backend) == (Ejection.NONE, 0, 0, 0.0)


# --- while it is out --------------------------------------------------------------------------


def test_results_of_pinned_sessions_change_nothing_while_it_is_out() -> None:
    ejector, backend = Ejector(RULE), make()
    eject(ejector, backend)
    before = facts(backend)
    assert not ejector.failed(backend, 10.0, 2)
    assert not ejector.succeeded(backend, 10.0)
    assert facts(backend) == before


def test_it_is_due_when_its_time_is_over_and_not_before() -> None:
    ejector, backend = Ejector(RULE), make()
    eject(ejector, backend, at_s=1.0)
    assert ejector.sweep(30.9) == []
    assert ejector.sweep(31.0) == [backend]
    assert backend.ejection is Ejection.DUE
    assert ejector.sweep(1000.0) == [], "it is due until somebody probes it"


def test_one_probe_at_a_time_and_a_new_one_when_there_is_no_verdict() -> None:
    ejector, backend = Ejector(RULE), make()
    eject(ejector, backend)
    for at_s in (30.0, 30.0 + PROBE_S, 30.0 + 2 * PROBE_S):
        assert ejector.sweep(at_s - 0.1) == []
        assert ejector.sweep(at_s) == [backend]
        ejector.probed(backend, at_s)
        assert backend.ejection is Ejection.PROBED
        with pytest.raises(IllegalMove, match="probe of a backend that is probed"):
            ejector.probed(backend, at_s)


@pytest.mark.parametrize("is_probed", [True, False])
def test_a_good_answer_brings_it_back(is_probed: bool) -> None:
    """That of the probe, or of a pinned session while nobody has probed yet."""
    ejector, backend = Ejector(RULE), make()
    eject(ejector, backend)
    ejector.sweep(30.0)
    if is_probed:
        ejector.probed(backend, 31.0)
    assert ejector.succeeded(backend, 32.0)
    assert facts(backend) == (Ejection.NONE, 0, 1, 32.0)
    assert ejector.sweep(1000.0) == []


@pytest.mark.parametrize("is_probed", [True, False])
def test_a_failure_then_ejects_it_again_for_longer(is_probed: bool) -> None:
    ejector, backend = Ejector(RULE), make()
    eject(ejector, backend)
    ejector.sweep(30.0)
    if is_probed:
        ejector.probed(backend, 31.0)
    assert ejector.failed(backend, 32.0, 2)
    assert facts(backend) == (Ejection.OUT, 4, 2, 92.0)
    assert ejector.sweep(91.9) == []
    assert ejector.sweep(92.0) == [backend]


def test_a_failed_probe_ejects_again_although_the_pool_has_become_small() -> None:
    ejector, backend = Ejector(RULE), make()
    eject(ejector, backend)
    ejector.sweep(30.0)
    ejector.probed(backend, 30.0)
    assert ejector.failed(backend, 31.0, 1)


def test_the_time_doubles_up_to_ten_times() -> None:
    ejector, backend = Ejector(RULE), make()
    eject(ejector, backend)
    lengths = []
    for _ in range(200):
        lengths.append(backend.released_s)
        at_s = backend.released_s
        assert ejector.sweep(at_s) == [backend]
        ejector.probed(backend, at_s)
        assert ejector.failed(backend, at_s, 2)
        lengths[-1] = backend.released_s - at_s
    assert lengths == [60.0, 120.0, 240.0] + [300.0] * 197


@pytest.mark.parametrize(("well_s", "length_s"), [(0.0, 60.0), (29.9, 60.0), (30.0, 30.0), (500.0, 30.0)])
def test_one_that_stayed_well_starts_from_the_first_time_again(well_s: float, length_s: float) -> None:
    """Well for as long as it had been out, until the first failure of the row that ejects it."""
    ejector, backend = Ejector(RULE), make()
    eject(ejector, backend)
    ejector.sweep(30.0)
    assert ejector.succeeded(backend, 40.0)
    assert not ejector.failed(backend, 40.0 + well_s, 2)
    assert not ejector.failed(backend, 240.0 + well_s, 2)
    assert ejector.failed(backend, 1000.0, 2)
    assert backend.released_s == 1000.0 + length_s


def test_backends_become_due_in_the_order_of_their_times() -> None:
    ejector = Ejector(Rule(1, 30.0, 1.0))
    backends = [make(number) for number in range(5)]
    for number in (3, 1, 4, 0, 2):
        ejector.failed(backends[number], float(number), 5)
    assert ejector.sweep(32.0) == backends[:3]
    assert ejector.sweep(1000.0) == backends[3:]


# --- another rule -----------------------------------------------------------------------------


@pytest.mark.parametrize("state", list(Ejection))
def test_another_rule_takes_over_what_is_known(state: Ejection) -> None:
    old, backend = Ejector(RULE), make()
    if state is Ejection.NONE:
        old.failed(backend, 0.0, 2)
    else:
        eject(old, backend)
    if state in (Ejection.DUE, Ejection.PROBED):
        old.sweep(30.0)
    if state is Ejection.PROBED:
        old.probed(backend, 30.0)
    before = facts(backend)
    assert before[0] is state

    new = Ejector(RULE._replace(for_s=1.0))
    new.adopt(backend)
    assert facts(backend) == before
    expected = {Ejection.OUT: [(30.0, [backend])], Ejection.PROBED: [(40.0, [backend])]}
    for at_s, due in expected.get(state, []):
        assert new.sweep(at_s - 0.1) == []
        assert new.sweep(at_s) == due
    assert new.sweep(1000.0) == []


@pytest.mark.parametrize("state", [Ejection.OUT, Ejection.DUE, Ejection.PROBED])
def test_what_is_taken_over_counts_into_the_share(state: Ejection) -> None:
    backend, other = make(1), make(2)
    backend.ejection, backend.failures, backend.ejections = state, 3, 1
    ejector = Ejector(Rule(1, 30.0, 0.5))
    ejector.adopt(backend)
    assert not ejector.failed(other, 0.0, 2)
    ejector.drop(backend)
    assert ejector.failed(other, 0.0, 2)


@pytest.mark.parametrize("state", list(Ejection))
def test_without_a_rule_everybody_is_let_back(state: Ejection) -> None:
    backend = make()
    backend.ejection, backend.failures, backend.ejections = state, 3, 1
    ejector = Ejector(None)
    ejector.adopt(backend)
    assert facts(backend)[:3] == (Ejection.NONE, 0, 0)
    assert ejector.sweep(1000.0) == []


@pytest.mark.parametrize("state", [Ejection.NONE, Ejection.OUT])
def test_only_one_that_is_due_may_be_probed(state: Ejection) -> None:
    backend = make()
    backend.ejection = state
    with pytest.raises(IllegalMove, match=f"probe of a backend that is {state.value}"):
        Ejector(RULE).probed(backend, 0.0)


def test_what_is_remembered_stays_in_proportion_to_what_is_ejected() -> None:
    ejector = Ejector(Rule(1, 3600.0, 1.0))
    for number in range(1000):
        backend = make(number)
        assert ejector.failed(backend, 0.0, 1)
        ejector.drop(backend)
    assert len(ejector._times) < 20


def test_those_that_stay_keep_their_order_when_many_leave() -> None:
    ejector = Ejector(Rule(1, 3600.0, 1.0))
    backends = [make(number) for number in range(200)]
    for place in range(200):
        number = place * 77 % 200
        assert ejector.failed(backends[number], float(number), 200)
    for number in range(200):
        if number % 7:
            ejector.drop(backends[number])
    assert len(ejector._times) < 100
    assert ejector.sweep(10_000.0) == backends[::7]
