"""The circuit breaker under any order of events, beside a model that looks at everybody every time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mcp_proxy.backends import Backend, Ejection
from mcp_proxy.backends.ejection import PROBE_S, Ejector, Rule

_NUMBERS = st.integers(0, 4)
_PERCENTS = st.sampled_from([0, 20, 40, 50, 100])
_RULES = st.builds(
    lambda after, for_s, percent: (Rule(after, for_s, percent / 100), percent),
    st.integers(1, 3), st.sampled_from([1.0, 8.0, 30.0]), _PERCENTS,
)  # fmt: skip


@dataclass
class Known:
    """What the model knows of one backend."""

    state: str = "none"
    row: int = 0
    times: int = 0
    since_s: float = 0.0
    """none: when it came back; out: ejected; probed: chosen."""
    length_s: float = 0.0
    """Of its ejection, by the rule that was in force."""


class EjectorAgainstModel(RuleBasedStateMachine):
    @initialize(drawn=_RULES)
    def begin(self, drawn: tuple[Rule, int]) -> None:
        self.at_s = 1000.0
        self.rule, self.percent = drawn
        self.ejector = Ejector(self.rule)
        self.backends: dict[int, Backend] = {}
        self.known: dict[int, Known] = {}
        self.limit_broken_by: set[int] = set()
        """Those that were out when the share shrank, or a backend left."""
        for number in range(3):
            self.come(number)

    def room(self) -> int:
        return math.floor(Fraction(self.percent, 100) * len(self.backends))

    def out(self) -> set[int]:
        return {number for number, known in self.known.items() if known.state != "none"}

    def length(self, times: int) -> float:
        length_s = self.rule.for_s
        for _ in range(times - 1):
            length_s = min(2 * length_s, 10 * self.rule.for_s)
        return length_s

    # --- events ------------------------------------------------------------------------

    @rule(number=_NUMBERS)
    def come(self, number: int) -> None:
        if number not in self.backends:
            self.backends[number] = Backend(f"b{number}", 80, b"/mcp")
            self.known[number] = Known()

    @rule(number=_NUMBERS)
    def leave(self, number: int) -> None:
        if number in self.backends:
            self.limit_broken_by |= self.out()
            self.ejector.drop(self.backends.pop(number))
            del self.known[number]

    @rule(number=_NUMBERS, times=st.integers(1, 4))
    def fail(self, number: int, times: int) -> None:
        for _ in range(times if number in self.backends else 0):
            expected = self.expect_failure(self.known[number])
            assert self.ejector.failed(self.backends[number], self.at_s, len(self.backends)) is expected

    def expect_failure(self, known: Known) -> bool:
        if known.state == "out":
            return False
        if known.state == "none":
            is_forgotten = known.times and self.at_s - known.since_s >= self.length(known.times)
            if known.row == 0 and is_forgotten:
                known.times = 0
            known.row += 1
            if known.row < self.rule.after or len(self.out()) + 1 > self.room():
                return False
        else:
            known.row += 1
        known.state = "out"
        known.times += 1
        known.since_s, known.length_s = self.at_s, self.length(known.times)
        return True

    @rule(number=_NUMBERS)
    def succeed(self, number: int) -> None:
        if number not in self.backends:
            return
        known = self.known[number]
        is_return = known.state in ("due", "probed")
        if known.state != "out":
            known.row = 0
        if is_return:
            known.state, known.since_s = "none", self.at_s
        assert self.ejector.succeeded(self.backends[number], self.at_s) is is_return

    @precondition(lambda self: any(known.state == "due" for known in self.known.values()))
    @rule(number=_NUMBERS)
    def choose(self, number: int) -> None:
        due = [number for number, known in self.known.items() if known.state == "due"]
        chosen = due[number % len(due)]
        self.ejector.probed(self.backends[chosen], self.at_s)
        self.known[chosen].state, self.known[chosen].since_s = "probed", self.at_s

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 9.5, 10.0, 30.0, 300.0]))
    def wait(self, seconds: float) -> None:
        self.at_s += seconds
        expected = set()
        for number, known in self.known.items():
            lasts_s = {"out": known.length_s, "probed": PROBE_S}.get(known.state, math.inf)
            if self.at_s >= known.since_s + lasts_s:
                known.state = "due"
                expected.add(number)
        changed = self.ejector.sweep(self.at_s)
        assert len(changed) == len(expected)
        assert set(changed) == {self.backends[number] for number in expected}

    @rule(drawn=_RULES)
    def reload(self, drawn: tuple[Rule, int]) -> None:
        self.limit_broken_by |= self.out()
        self.rule, self.percent = drawn
        self.ejector = Ejector(self.rule)
        for backend in self.backends.values():
            self.ejector.adopt(backend)

    @rule()
    def reload_without_a_rule(self) -> None:
        for ejector in (Ejector(None), Ejector(self.rule)):
            self.ejector = ejector
            for backend in self.backends.values():
                self.ejector.adopt(backend)
        for known in self.known.values():
            known.state, known.row, known.times = "none", 0, 0

    # --- what always holds -------------------------------------------------------------

    @invariant()
    def backends_are_as_the_model_says(self) -> None:
        for number, known in self.known.items():
            backend = self.backends[number]
            assert backend.ejection.value == known.state
            assert (backend.failures, backend.ejections) == (known.row, known.times)
            if known.state == "out":
                assert backend.released_s == known.since_s + known.length_s
            elif known.state == "none" and known.times:
                assert backend.released_s == known.since_s

    @invariant()
    def no_more_than_the_share_is_out(self) -> None:
        self.limit_broken_by &= self.out()
        if not self.limit_broken_by:
            assert len(self.out()) <= self.room()

    @invariant()
    def nobody_is_out_for_more_than_ten_times_the_first(self) -> None:
        for backend in self.backends.values():
            if backend.ejection is Ejection.OUT:
                assert backend.released_s - self.at_s <= 10 * 30.0

    @invariant()
    def only_those_out_and_probed_wait_for_a_time(self) -> None:
        assert len(self.ejector._times) <= 2 * len(self.backends) + 16


TestEjectorAgainstModel = EjectorAgainstModel.TestCase
TestEjectorAgainstModel.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
