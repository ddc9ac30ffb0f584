"""An exchange that is told anything in any order, and what keeps it when it is over."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mcp_proxy.clock import now
from mcp_proxy.errors import Fault
from mcp_proxy.exchange import Exchange, State
from mcp_proxy.telemetry.traces import Trace
from tests.unit.actors import Attempt
from tests.unit.exchanges import (
    HOLD,
    JSON,
    REFUSAL,
    STATES,
    Rig,
)  # fmt: skip


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.value)
async def test_nothing_keeps_an_exchange_that_is_over(state: State) -> None:
    rig = STATES[state]()
    rig.exchange.disconnect()
    identity = id(rig.exchange)
    gc.collect()
    gc.disable()
    try:
        rig.attempts.clear()
        del rig.exchange
        assert not any(type(thing) is Exchange and id(thing) == identity for thing in gc.get_objects())
    finally:
        gc.enable()


# -- any sequence ------------------------------------------------------------------------------


class AnySequence(RuleBasedStateMachine):
    """A client, a backend, a registry and a drain that act in any order."""

    @initialize(
        listens=st.booleans(), is_stream=st.booleans(), decision=st.sampled_from(["relay", "store", "refuse"])
    )
    def begin(self, listens: bool, is_stream: bool, decision: str) -> None:
        self.rig = Rig(listens=listens, is_stream=is_stream)
        self.trace = self.rig.exchange.trace = Trace(1, 0, "", None, lambda bits: 1)
        self.expected = b""
        self.is_paused = False
        decisions: dict[str, Callable[..., None]] = {
            "relay": lambda exchange, *head: exchange.relay(*head),
            "store": lambda exchange, *head: exchange.store(*head),
            "refuse": lambda exchange, *head: exchange.refuse(REFUSAL),
        }
        self.rig.director.decide = decisions[decision]

    @property
    def state(self) -> State:
        return self.rig.exchange.state

    @property
    def attempt(self) -> Attempt | None:
        attempts = self.rig.attempts
        return attempts[-1] if attempts and not attempts[-1].is_over else None

    @precondition(lambda self: self.state is State.ROUTING)
    @rule()
    def send(self) -> None:
        backend = self.rig.backend
        self.trace.attempt(backend.id, backend.host, backend.port, now())
        self.rig.send()

    @precondition(lambda self: self.state is State.WAITING)
    @rule()
    def retreat(self) -> None:
        self.rig.exchange.retreat()

    @precondition(lambda self: self.attempt and not self.attempt.has_head)
    @rule(size=st.sampled_from([0, 10, HOLD + 50]))
    def whole(self, size: int) -> None:
        assert self.attempt is not None
        self.expected = b"x" * size
        self.attempt.whole(200, JSON, self.expected)

    @precondition(lambda self: self.attempt and not self.attempt.has_head)
    @rule(length=st.sampled_from([None, None, 0, 50, HOLD, HOLD + 50]))
    def head(self, length: int | None) -> None:
        assert self.attempt is not None
        self.length = length
        self.attempt.head(200, JSON, length)

    @precondition(lambda self: self.attempt and self.attempt.has_head)
    @rule(size=st.sampled_from([1, 40, HOLD, HOLD + 1]))
    def body(self, size: int) -> None:
        assert self.attempt is not None
        if self.length is not None:
            size = min(size, self.length - len(self.expected))
        if size:
            self.expected += b"x" * size
            self.attempt.body(b"x" * size)

    @precondition(lambda self: self.attempt and self.attempt.has_head)
    @rule()
    def end(self) -> None:
        assert self.attempt is not None
        if self.length is None or len(self.expected) == self.length:
            self.attempt.end()

    @precondition(lambda self: self.attempt)
    @rule(kind=st.sampled_from(["lost", "timeout", "invalid"]))
    def fail(self, kind: str) -> None:
        assert self.attempt is not None
        self.attempt.fail(kind)

    @precondition(lambda self: self.state is State.STORING)
    @rule()
    def stored(self) -> None:
        self.rig.exchange.stored()

    @precondition(lambda self: not self.rig.reply.outcome and not self.rig.reply.is_gone)
    @rule()
    def pause_or_resume(self) -> None:
        self.is_paused = not self.is_paused
        self.rig.exchange.pause() if self.is_paused else self.rig.exchange.resume()

    @rule()
    def drain(self) -> None:
        self.rig.exchange.drain()

    @rule()
    def expire(self) -> None:
        self.rig.exchange.expire()

    @rule()
    def leave(self) -> None:
        self.rig.reply.leave(self.rig.exchange)

    @invariant()
    def is_consistent(self) -> None:
        if not hasattr(self, "rig"):
            return
        rig = self.rig
        is_over = self.state is State.DONE
        assert len(rig.director.finishes) == is_over
        assert bool(rig.reply.outcome or rig.reply.is_gone) is is_over
        assert rig.backend.inflight == (self.state not in (State.ROUTING, State.DONE))
        if rig.reply.outcome == "answer" and rig.reply.status == 200:
            assert rig.reply.body == self.expected
        if self.attempt is not None and self.state in (State.WAITING, State.HOLDING, State.RELAYING):
            assert self.attempt.is_paused is self.is_paused
        if is_over:
            assert self.attempt is None
        if rig.reply.outcome == "end" and rig.director.finishes[0][0] is Fault.NONE:
            assert rig.reply.body == self.expected
        if is_over:
            self.is_accounted()
        assert rig.exchange.state is State.STORING or len(b"".join(rig.exchange._held)) <= HOLD or is_over

    def is_accounted(self) -> None:
        """Whatever the ending, the record can be believed."""
        exchange, reply = self.rig.exchange, self.rig.reply
        assert exchange.status == reply.status
        assert exchange.bytes_out == len(reply.body)
        assert 0 <= exchange.waited_s <= exchange.finished_s - exchange.started_s + 1e-9
        assert exchange.started_s <= (exchange.begun_s or exchange.finished_s)
        assert bool(exchange.begun_s) is reply.has_started
        assert self.rig.director.streams == (exchange.is_stream and reply.has_started)
        assert len(self.trace.attempts) == exchange.attempts
        assert all(each.sent_s <= each.ended_s <= exchange.finished_s for each in self.trace.attempts)

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.leave()
            assert len(self.rig.director.finishes) == 1
            assert self.rig.backend.inflight == 0


TestAnySequence = AnySequence.TestCase
TestAnySequence.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
