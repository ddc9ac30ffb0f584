"""The state machine of one exchange: every event in every state, and any sequence of them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mcp_proxy.admission import Admitted, Porter
from mcp_proxy.backends import Backend
from mcp_proxy.backends.balance import RoundRobin
from mcp_proxy.envelope import parse
from mcp_proxy.errors import Fault, Phase, UpstreamError
from mcp_proxy.exchange import Exchange, IllegalMove, State
from mcp_proxy.forwarding import Forwarder
from mcp_proxy.policy.origin import OriginGuard
from mcp_proxy.pools import Pool
from mcp_proxy.routing import Plan, plan_get, plan_post
from mcp_proxy.upstream import Outgoing
from mcp_proxy.wire import Fields, Headers, Rejection, Request
from tests.unit.actors import Attempt, ScriptedTransport, StrictReply

HOLD = 100
CALL = b'{"jsonrpc":"2.0","id":"\\u0061","method":"tools/call","params":{"name":"x"}}'
JSON = [(b"content-type", b"application/json")]


class Director:
    """Passes heads on as they are and gives up on every error, unless told otherwise."""

    json_hold = HOLD

    def __init__(self) -> None:
        self.finishes: list[tuple[Fault, Phase]] = []
        self.streams = 0
        self.errors: list[UpstreamError] = []
        self.decide: Callable[..., None] = lambda exchange, status, headers, length: exchange.relay(
            status, headers, length
        )

    def on_head(self, exchange: Exchange, status: int, headers: Fields, length: int | None) -> None:
        self.decide(exchange, status, headers, length)

    def on_error(self, exchange: Exchange, error: UpstreamError) -> None:
        self.errors.append(error)
        exchange.refuse(Rejection("upstream_lost", id=exchange.id), Fault.BACKEND, error.phase)

    def on_stream(self, exchange: Exchange) -> None:
        self.streams += 1

    def on_finish(self, exchange: Exchange) -> None:
        assert exchange.state is State.DONE
        self.finishes.append((exchange.fault, exchange.phase))


def admitted(method: bytes = b"POST", *headers: tuple[bytes, bytes]) -> Admitted:
    porter = Porter({b"/mcp": "pool"}, OriginGuard("0.0.0.0", None), Forwarder(()))
    pairs: Headers = [(b"host", b"proxy.example"), (b"content-type", b"application/json"), *headers]
    admission = porter.admit(Request(method, b"/mcp", pairs, "192.0.2.7", "http"))
    assert isinstance(admission, Admitted)
    return admission


class Rig:
    def __init__(self, *, listens: bool = False, is_stream: bool = False) -> None:
        self.director = Director()
        self.reply = StrictReply()
        self.backend = Backend("backend.example", 80, b"/mcp")
        self.attempts: list[Attempt] = []
        self.transport = ScriptedTransport(self.backend.id, self.attempts)
        self.pool = Pool(
            "pool", [self.backend], {self.backend.id: self.transport}, RoundRobin(), lost_after_s=10, authorization=None
        )
        admission = admitted(b"GET", (b"mcp-session-id", b"s")) if listens else admitted()
        self.exchange = Exchange(self.director, admission, self.pool, b"" if listens else CALL, self.reply)
        if not listens:
            self.exchange.envelope = parse(CALL)
        plan = plan_get(admission.head) if listens else plan_post(admission.head, parse(CALL))
        assert isinstance(plan, Plan)
        self.exchange.plan = plan
        self.exchange.is_stream = is_stream

    def send(self) -> Attempt:
        outgoing = Outgoing(b"POST", b"/mcp", Fields(), self.exchange.body)
        self.exchange.send(self.backend, self.transport, outgoing)
        return self.attempts[-1]

    def storing(self) -> Attempt:
        self.director.decide = lambda exchange, *head: exchange.store(*head)
        attempt = self.send()
        attempt.head(200, JSON)
        return attempt

    @property
    def wire(self) -> tuple[object, ...]:
        """All that the client could see."""
        reply = self.reply
        return reply.has_started, reply.status, reply.body, reply.outcome


def routing(**options: bool) -> Rig:
    return Rig(**options)


def waiting(**options: bool) -> Rig:
    rig = Rig(**options)
    rig.send()
    return rig


def storing(**options: bool) -> Rig:
    rig = Rig(**options)
    rig.storing()
    return rig


def holding(**options: bool) -> Rig:
    rig = Rig(**options)
    attempt = rig.send()
    attempt.head(200, JSON)
    attempt.body(b"held")
    return rig


def relaying(**options: bool) -> Rig:
    rig = Rig(is_stream=True, **options)
    attempt = rig.send()
    attempt.head(200, [(b"content-type", b"text/event-stream")])
    attempt.body(b"data: 1\n\n")
    return rig


def done(**options: bool) -> Rig:
    rig = Rig(**options)
    rig.send().answer(200, b"{}")
    return rig


STATES = {
    State.ROUTING: routing,
    State.WAITING: waiting,
    State.STORING: storing,
    State.HOLDING: holding,
    State.RELAYING: relaying,
    State.DONE: done,
}
REFUSAL = Rejection("upstream_lost", "x")


# -- what ends an exchange ---------------------------------------------------------------------

PHASES = {
    State.ROUTING: Phase.ROUTE,
    State.WAITING: Phase.HEAD,
    State.STORING: Phase.HEAD,
    State.HOLDING: Phase.BODY,
    State.RELAYING: Phase.BODY,
}


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.value)
async def test_a_disconnect_cancels_the_attempt_and_is_recorded_once(state: State) -> None:
    rig = STATES[state]()
    before = rig.wire
    finishes = list(rig.director.finishes)
    rig.exchange.disconnect()
    rig.exchange.disconnect()
    assert rig.wire == before
    assert rig.exchange.state is State.DONE
    assert rig.director.finishes == (finishes or [(Fault.CLIENT, PHASES[state])])
    assert all(attempt.is_over for attempt in rig.attempts)
    assert rig.backend.inflight == 0


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.value)
@pytest.mark.parametrize("listens", [False, True], ids=["call", "listening"])
async def test_the_end_of_the_grace_ends_everything_once(state: State, listens: bool) -> None:
    rig = STATES[state](listens=listens)
    rig.exchange.expire()
    rig.exchange.expire()
    assert rig.exchange.state is State.DONE
    assert len(rig.director.finishes) == 1
    assert rig.backend.inflight == 0
    if state is State.RELAYING:
        assert rig.reply.outcome == ("end" if listens else "abort")
    elif state is not State.DONE:
        assert (rig.reply.status, rig.reply.reason, rig.reply.outcome) == (503, "draining", "answer")
    if state is not State.DONE:
        assert rig.director.finishes[0][0] is Fault.DRAIN


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.value)
async def test_a_drain_lets_calls_finish(state: State) -> None:
    rig = STATES[state]()
    before = (rig.wire, rig.exchange.state)
    rig.exchange.drain()
    assert (rig.wire, rig.exchange.state) == before


async def test_a_drain_ends_a_listening_stream_cleanly() -> None:
    rig = relaying(listens=True)
    rig.exchange.drain()
    rig.exchange.drain()
    assert (rig.reply.outcome, rig.reply.body) == ("end", b"data: 1\n\n")
    assert rig.director.finishes == [(Fault.DRAIN, Phase.BODY)]
    assert rig.attempts[0].is_cancelled


@pytest.mark.parametrize("state", [State.ROUTING, State.WAITING, State.STORING], ids=lambda state: state.value)
async def test_a_drain_before_the_head_ends_the_listening_stream_that_comes(state: State) -> None:
    """Told once, it must be remembered: nobody tells it again."""
    rig = STATES[state](listens=True)
    rig.exchange.drain()
    if rig.exchange.state is State.ROUTING:
        rig.send()
    if rig.exchange.state is State.STORING:
        rig.exchange.is_stream = True
        rig.exchange.stored()
    elif rig.exchange.state is State.WAITING:
        rig.exchange.is_stream = True
        rig.attempts[0].head(200, [(b"content-type", b"text/event-stream")])
    assert rig.exchange.state is State.DONE
    assert rig.director.finishes[0][0] is Fault.DRAIN


@pytest.mark.parametrize("state", [State.ROUTING, State.WAITING, State.STORING, State.HOLDING])
async def test_a_refusal_before_the_head_is_a_whole_answer_with_the_id_of_the_request(state: State) -> None:
    rig = STATES[state]()
    rig.exchange.refuse(Rejection("upstream_lost", id=rig.exchange.id))
    assert (rig.reply.status, rig.reply.outcome, rig.reply.reason) == (502, "answer", "upstream_lost")
    assert b'"id":"\\u0061"' in rig.reply.body
    assert rig.director.finishes == [(Fault.PROXY, PHASES[state])]
    assert all(attempt.is_over for attempt in rig.attempts)
    assert (rig.backend.inflight, rig.exchange.reason) == (0, "upstream_lost")


@pytest.mark.parametrize("state", [State.RELAYING, State.DONE])
@pytest.mark.parametrize("event", ["refuse", "answer"])
async def test_after_the_head_there_is_no_other_answer(state: State, event: str) -> None:
    """An illegal move raises before anything is written."""
    rig = STATES[state]()
    before = (rig.wire, list(rig.director.finishes))
    with pytest.raises(IllegalMove):
        if event == "refuse":
            rig.exchange.refuse(REFUSAL)
        else:
            rig.exchange.answer(204, [], b"")
    assert (rig.wire, rig.director.finishes) == before


ILLEGAL: list[tuple[State, str]] = [
    *((state, "send") for state in State if state is not State.ROUTING),
    *((state, "retreat") for state in State if state is not State.WAITING),
    *((state, "relay") for state in (State.ROUTING, State.HOLDING, State.RELAYING, State.DONE)),
    *((state, "store") for state in State if state is not State.WAITING),
    *((state, "stored") for state in (State.ROUTING, State.HOLDING, State.RELAYING, State.DONE)),
]


@pytest.mark.parametrize(("state", "event"), ILLEGAL, ids=[f"{state.value}-{event}" for state, event in ILLEGAL])
async def test_an_illegal_move_raises_and_shows_nothing(state: State, event: str) -> None:
    rig = STATES[state]()
    before = (rig.wire, list(rig.director.finishes))
    events: dict[str, Callable[[], Any]] = {
        "send": rig.send,
        "retreat": rig.exchange.retreat,
        "relay": lambda: rig.exchange.relay(200, [], None),
        "store": lambda: rig.exchange.store(200, [], None),
        "stored": rig.exchange.stored,
    }
    with pytest.raises(IllegalMove):
        events[event]()
    assert rig.wire == before[0]
    assert rig.director.finishes == before[1]


@pytest.mark.parametrize("state", [State.STORING, State.HOLDING, State.RELAYING, State.DONE])
async def test_a_second_head_is_a_bug_that_the_client_can_see_and_nobody_else(state: State) -> None:
    rig = STATES[state]()
    before = rig.wire
    rig.exchange.on_head(200, Fields(), None)
    assert len(rig.director.finishes) == 1
    assert rig.backend.inflight == 0
    if state is State.DONE:
        assert rig.wire == before
    else:
        assert rig.reply.outcome == ("abort" if state is State.RELAYING else "answer")
        assert rig.reply.status == (200 if state is State.RELAYING else 500)


OUT_OF_TURN = [
    *((state, "on_body") for state in (State.ROUTING, State.WAITING, State.DONE)),
    *((state, "on_end") for state in (State.ROUTING, State.WAITING, State.DONE)),
    (State.DONE, "on_error"),
]


@pytest.mark.parametrize(("state", "event"), OUT_OF_TURN, ids=[f"{state.value}-{event}" for state, event in OUT_OF_TURN])
async def test_a_transport_that_talks_out_of_turn_shows_nothing(state: State, event: str) -> None:
    """It may raise or be ignored; the client must not see it, and the exchange can still end."""
    rig = STATES[state]()
    before = (rig.wire, list(rig.director.finishes))
    error = UpstreamError(Phase.HEAD, "lost", "x", sent=True)
    events: dict[str, Callable[[], None]] = {
        "on_body": lambda: rig.exchange.on_body(b"x"),
        "on_end": rig.exchange.on_end,
        "on_error": lambda: rig.exchange.on_error(error),
    }
    with contextlib.suppress(IllegalMove):
        events[event]()
    assert (rig.wire, rig.director.finishes) == before
    rig.exchange.disconnect()
    assert len(rig.director.finishes) == 1
    assert rig.backend.inflight == 0


async def test_an_end_without_a_head_does_not_leave_the_client_waiting() -> None:
    rig = waiting()
    try:
        rig.exchange.on_end()
    except IllegalMove:
        return
    assert rig.reply.outcome == "answer"


# -- relaying ----------------------------------------------------------------------------------


async def test_a_json_answer_leaves_in_one_piece() -> None:
    rig = waiting()
    rig.attempts[0].head(200, JSON)
    rig.attempts[0].body(b"x" * 40, b"y" * 40)
    assert rig.wire == (False, 0, b"", "")
    rig.attempts[0].end()
    assert rig.wire == (False, 200, b"x" * 40 + b"y" * 40, "answer")
    assert (rig.exchange.bytes_out, rig.director.finishes) == (80, [(Fault.NONE, Phase.NONE)])


@pytest.mark.parametrize("length", [None, HOLD, HOLD + 1], ids=["unknown", "known", "known, too long"])
async def test_the_hold_is_exact(length: int | None) -> None:
    size = HOLD if length is None else length
    rig = waiting()
    attempt = rig.attempts[0]
    attempt.head(200, JSON, length)
    assert rig.reply.has_started is (size > HOLD)
    attempt.body(b"x" * (size - 1), b"x")
    assert rig.reply.has_started is (size > HOLD)
    attempt.end()
    assert rig.reply.body == b"x" * size
    assert rig.exchange.bytes_out == size


async def test_an_answer_that_outgrows_the_hold_is_streamed_from_then_on() -> None:
    rig = waiting()
    attempt = rig.attempts[0]
    attempt.head(200, JSON)
    attempt.body(b"x" * HOLD)
    assert not rig.reply.has_started
    attempt.body(b"y")
    assert (rig.reply.has_started, rig.reply.length, rig.reply.body) == (True, None, b"x" * HOLD + b"y")
    attempt.body(b"z")
    assert rig.reply.body.endswith(b"z")
    attempt.end()
    assert (rig.reply.outcome, rig.exchange.bytes_out) == ("end", HOLD + 2)


@pytest.mark.parametrize("size", [0, 1, HOLD, HOLD + 1, HOLD * 10])
async def test_an_answer_in_one_piece_leaves_in_one_piece(size: int) -> None:
    rig = waiting()
    rig.attempts[0].whole(200, JSON, b"x" * size)
    assert rig.wire == (False, 200, b"x" * size, "answer")
    assert (rig.exchange.bytes_out, rig.director.finishes) == (size, [(Fault.NONE, Phase.NONE)])


async def test_an_answer_in_one_piece_may_be_stored_first_or_given_up() -> None:
    rig = Rig()
    rig.director.decide = lambda exchange, *head: exchange.store(*head)
    rig.send().whole(200, JSON)
    assert rig.wire == (False, 0, b"", "")
    rig.exchange.stored()
    assert rig.wire == (False, 200, b"{}", "answer")
    rig = Rig()
    rig.director.decide = lambda exchange, *head: exchange.retreat()
    rig.send().whole(503, JSON)
    rig.director.decide = lambda exchange, *head: exchange.relay(*head)
    attempt = rig.send()
    attempt.head(200, JSON)
    attempt.body(b"second")
    attempt.end()
    assert rig.wire == (False, 200, b"second", "answer")


async def test_an_event_stream_leaves_chunk_by_chunk() -> None:
    rig = relaying()
    assert (rig.reply.chunks, rig.director.streams) == ([b"data: 1\n\n"], 1)
    rig.attempts[0].body(b"data: 2\n\n")
    assert rig.reply.chunks == [b"data: 1\n\n", b"data: 2\n\n"]
    rig.attempts[0].end()
    assert (rig.reply.outcome, rig.director.finishes) == ("end", [(Fault.NONE, Phase.NONE)])


@pytest.mark.parametrize("kind", ["lost", "invalid", "timeout"])
async def test_a_call_that_breaks_off_is_aborted(kind: str) -> None:
    rig = relaying()
    rig.attempts[0].fail(kind)
    assert rig.reply.outcome == "abort"
    fault = Fault.TIMEOUT if kind == "timeout" else Fault.BACKEND
    assert rig.director.finishes == [(fault, Phase.BODY)]
    assert rig.director.errors == []


async def test_a_listening_stream_that_breaks_off_ends_cleanly() -> None:
    rig = relaying(listens=True)
    rig.attempts[0].fail()
    assert (rig.reply.outcome, rig.director.finishes) == ("end", [(Fault.BACKEND, Phase.BODY)])


@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "events"])
@pytest.mark.parametrize("how", ["breaks", "drain", "expire"])
async def test_a_listening_answer_of_known_length_never_ends_cleanly_before_its_length(
    is_stream: bool, how: str
) -> None:
    """A clean end with fewer bytes than Content-Length keeps the connection, and the client takes
    the next answer for the rest of this one (RFC 9112 section 8)."""
    rig = Rig(listens=True, is_stream=is_stream)
    attempt = rig.send()
    attempt.head(200 if is_stream else 404, JSON, HOLD * 2)
    attempt.body(b"x" * HOLD)
    if how == "breaks":
        attempt.fail()
    elif how == "drain":
        rig.exchange.drain()
        if rig.exchange.state is State.RELAYING:
            attempt.fail()
    else:
        rig.exchange.expire()
    assert rig.reply.outcome == "abort"
    assert len(rig.director.finishes) == 1


async def test_a_listening_answer_that_is_no_stream_is_aborted_when_it_breaks_off() -> None:
    """A truncated JSON answer must not look whole, whatever the method."""
    rig = Rig(listens=True)
    attempt = rig.send()
    attempt.head(404, JSON)
    attempt.body(b"x" * (HOLD + 1))
    assert rig.exchange.state is State.RELAYING
    attempt.fail()
    assert rig.reply.outcome == "abort"


async def test_a_break_while_holding_is_the_directors_to_answer() -> None:
    rig = holding()
    rig.attempts[0].fail()
    assert (rig.reply.status, rig.reply.outcome) == (502, "answer")
    assert rig.director.finishes == [(Fault.BACKEND, Phase.BODY)]


# -- storing -----------------------------------------------------------------------------------


async def test_while_storing_nothing_leaves_and_the_backend_waits() -> None:
    rig = Rig()
    attempt = rig.storing()
    assert attempt.is_paused
    attempt.body(b"what was ", b"on its way")
    rig.exchange.pause()
    rig.exchange.resume()
    assert attempt.is_paused, "the client's readiness does not matter yet"
    assert rig.wire == (False, 0, b"", "")
    rig.exchange.stored()
    assert not attempt.is_paused
    attempt.end()
    assert rig.wire == (False, 200, b"what was on its way", "answer")


async def test_an_answer_that_is_whole_before_it_is_stored_leaves_then() -> None:
    for body in (b"whole", b"x" * (HOLD + 1), b""):
        rig = Rig()
        attempt = rig.storing()
        attempt.body(*([body] if body else []))
        attempt.end()
        assert rig.director.finishes == []
        rig.exchange.stored()
        assert rig.reply.body == body
        assert rig.director.finishes == [(Fault.NONE, Phase.NONE)]


async def test_a_client_that_stalls_while_storing_keeps_the_backend_paused() -> None:
    rig = Rig(is_stream=True)
    attempt = rig.storing()
    rig.exchange.pause()
    rig.exchange.stored()
    assert attempt.is_paused
    rig.exchange.resume()
    assert not attempt.is_paused


# -- attempts ----------------------------------------------------------------------------------


async def test_a_retreat_leads_to_another_attempt_and_counts_both() -> None:
    rig = waiting()
    rig.exchange.retreat()
    assert (rig.attempts[0].is_cancelled, rig.backend.inflight) == (True, 0)
    second = rig.send()
    assert (rig.exchange.attempts, rig.backend.inflight) == (2, 1)
    second.answer(200, b"{}")
    assert (rig.reply.body, rig.backend.inflight, len(rig.director.finishes)) == (b"{}", 0, 1)


async def test_a_pause_before_the_attempt_holds_for_it() -> None:
    rig = routing()
    rig.exchange.pause()
    assert rig.send().is_paused
    rig.exchange.retreat()
    assert rig.send().is_paused
    rig.exchange.resume()
    assert not rig.attempts[1].is_paused
    rig.exchange.retreat()
    assert not rig.send().is_paused


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.value)
async def test_pause_and_resume_are_allowed_in_every_state(state: State) -> None:
    rig = STATES[state]()
    before = (rig.wire, rig.exchange.state)
    for _ in range(2):
        rig.exchange.pause()
        rig.exchange.pause()
        rig.exchange.resume()
        rig.exchange.resume()
    assert (rig.wire, rig.exchange.state) == before


async def test_what_an_exchange_waits_for_is_cancelled_when_it_ends() -> None:
    rig = routing()
    task = asyncio.get_running_loop().create_task(asyncio.sleep(3600))
    rig.exchange.pending = task
    rig.exchange.disconnect()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert rig.exchange.pending is None


async def test_the_body_is_freed_when_the_head_leaves() -> None:
    assert relaying().exchange.body == b""
    rig = holding()
    assert rig.exchange.body == CALL, "it may have to be sent again"


async def test_the_repr_says_state_method_and_status() -> None:
    assert repr(waiting().exchange) == "<Exchange waiting POST status=0>"
    assert repr(relaying().exchange) == "<Exchange relaying POST status=200>"


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

    @initialize(listens=st.booleans(), is_stream=st.booleans(), decision=st.sampled_from(["relay", "store", "refuse"]))
    def begin(self, listens: bool, is_stream: bool, decision: str) -> None:
        self.rig = Rig(listens=listens, is_stream=is_stream)
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
        assert rig.exchange.state is State.STORING or len(b"".join(rig.exchange._held)) <= HOLD or is_over

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.leave()
            assert len(self.rig.director.finishes) == 1
            assert self.rig.backend.inflight == 0


TestAnySequence = AnySequence.TestCase
TestAnySequence.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
