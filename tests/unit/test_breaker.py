"""The breaker: when it opens, who may probe, and that only a probe closes it."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mcp_proxy.sessions.remote.breaker import FIRST_PROBE_S, JITTER, PROBE_S, THRESHOLD, Breaker, State


def opened(at_s: float = 0.0) -> Breaker:
    breaker = Breaker(lambda: 0.5)
    for _ in range(THRESHOLD):
        breaker.failed(at_s)
    assert breaker.state is State.OPEN
    return breaker


def test_it_opens_at_the_last_of_a_row_of_failures_and_says_so_once() -> None:
    breaker = Breaker()

    turned = [breaker.failed(float(n)) for n in range(THRESHOLD + 3)]

    assert turned == [n == THRESHOLD - 1 for n in range(THRESHOLD + 3)]
    assert breaker.failing_since_s == 0.0


def test_a_success_in_between_begins_the_row_anew() -> None:
    breaker = Breaker()
    for _ in range(10):
        for _ in range(THRESHOLD - 1):
            breaker.failed(1.0)
        breaker.succeeded()

    assert breaker.is_closed
    assert breaker.failing_since_s is None


def test_an_answer_from_before_closes_nothing() -> None:
    breaker = opened()

    breaker.succeeded()

    assert breaker.state is State.OPEN
    assert breaker.failing_since_s == 0.0


def test_a_probe_is_due_after_the_pause_and_is_one() -> None:
    breaker = opened(10.0)

    assert not breaker.probe(10.0 + FIRST_PROBE_S / 2)
    assert breaker.probe(10.0 + FIRST_PROBE_S)
    assert not breaker.probe(20.0)
    assert breaker.state is State.HALF_OPEN


def test_a_probe_that_is_answered_closes_it() -> None:
    breaker = opened()
    breaker.probe(1.0)

    assert breaker.probed(True, 1.0)

    assert breaker.is_closed
    assert breaker.failing_since_s is None
    assert not breaker.failed(2.0)


def test_a_probe_that_fails_keeps_it_open_since_the_beginning() -> None:
    breaker = opened(1.0)
    breaker.probe(2.0)

    assert not breaker.probed(False, 2.0)

    assert breaker.state is State.OPEN
    assert breaker.failing_since_s == 1.0
    assert breaker.probe_at_s == 2.0 + PROBE_S


@pytest.mark.parametrize("drawn", [0.0, 0.3, 1.0])
def test_probes_of_several_replicas_do_not_come_together(drawn: float) -> None:
    breaker = Breaker(lambda: drawn)
    breaker.probed(False, 0.0)

    assert breaker.probe_at_s == pytest.approx(PROBE_S * (1 - JITTER + 2 * JITTER * drawn))


def test_a_suspicion_that_proves_true_opens_it_at_once() -> None:
    breaker = Breaker()

    assert breaker.probed(False, 3.0)

    assert breaker.state is State.OPEN
    assert breaker.failing_since_s == 3.0


def test_a_suspicion_that_proves_wrong_changes_nothing() -> None:
    breaker = Breaker()

    assert not breaker.probed(True, 3.0)

    assert breaker.is_closed


class AnyHistory(RuleBasedStateMachine):
    """Against a model that remembers everything."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(lambda: 0.5)
        self.at_s = 0.0
        self.row = 0
        self.turns = [State.CLOSED]

    def turned(self, turned: bool) -> None:
        """Whoever is told of a turn is told of every turn between closed and not closed."""
        is_closed = self.breaker.is_closed
        assert turned == (is_closed != (self.turns[-1] is State.CLOSED))
        self.turns.append(self.breaker.state)

    @rule(seconds=st.floats(0.0, 2.0))
    def wait(self, seconds: float) -> None:
        self.at_s += seconds

    @rule()
    def fail(self) -> None:
        was = self.breaker.state
        turned = self.breaker.failed(self.at_s)
        if was is State.CLOSED:
            self.row += 1
            assert turned == (self.row >= THRESHOLD)
        else:
            assert self.breaker.state is was
        self.turned(turned)

    @rule()
    def succeed(self) -> None:
        was = self.breaker.state
        self.breaker.succeeded()
        assert self.breaker.state is was
        if was is State.CLOSED:
            self.row = 0

    @rule()
    def begin_probe(self) -> None:
        was = self.breaker.state
        is_due = self.at_s >= self.breaker.probe_at_s
        assert self.breaker.probe(self.at_s) == (was is State.OPEN and is_due)
        assert (self.breaker.state is State.HALF_OPEN) == (
            was is State.HALF_OPEN or (was is State.OPEN and is_due)
        )

    @precondition(lambda self: self.breaker.state is not State.OPEN)
    @rule(ok=st.booleans())
    def end_probe(self, ok: bool) -> None:
        turned = self.breaker.probed(ok, self.at_s)
        assert self.breaker.is_closed == ok
        if ok:
            self.row = 0
        self.turned(turned)

    @invariant()
    def an_outage_has_a_beginning(self) -> None:
        since_s = self.breaker.failing_since_s
        if not self.breaker.is_closed:
            assert since_s is not None
            assert since_s <= self.at_s
        else:
            assert (since_s is None) == (self.row == 0)

    @invariant()
    def the_next_probe_is_never_far(self) -> None:
        if self.breaker.state is State.OPEN:
            assert self.breaker.probe_at_s <= self.at_s + PROBE_S * (1 + JITTER)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
