"""The state machine of one exchange: what ends it, and every event in every state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from mcp_proxy.errors import Fault, Phase, UpstreamError
from mcp_proxy.exchange import IllegalMove, State
from mcp_proxy.wire import Fields, Rejection
from tests.unit.exchanges import (
    REFUSAL,
    STATES,
    relaying,
    waiting,
)  # fmt: skip
from tests.unit.fakes import settle

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
    elif state in (State.WAITING, State.HOLDING) and not listens:
        assert (rig.reply.status, rig.reply.reason, rig.reply.outcome) == (504, "upstream_timeout", "answer")
        assert b'"maybeExecuted":true' in rig.reply.body
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


@pytest.mark.parametrize(
    "state", [State.ROUTING, State.WAITING, State.STORING], ids=lambda state: state.value
)
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
    await settle()
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
    events: dict[str, Callable[[], None]] = {
        "refuse": lambda: rig.exchange.refuse(REFUSAL),
        "answer": lambda: rig.exchange.answer(204, [], b""),
    }
    with pytest.raises(IllegalMove):
        events[event]()
    assert (rig.wire, rig.director.finishes) == before


ILLEGAL: list[tuple[State, str]] = [
    *((state, "send") for state in State if state is not State.ROUTING),
    *((state, "retreat") for state in State if state not in (State.WAITING, State.STORING)),
    *((state, "relay") for state in (State.ROUTING, State.HOLDING, State.RELAYING, State.DONE)),
    *((state, "store") for state in State if state is not State.WAITING),
    *((state, "stored") for state in (State.ROUTING, State.HOLDING, State.RELAYING, State.DONE)),
]


@pytest.mark.parametrize(
    ("state", "event"), ILLEGAL, ids=[f"{state.value}-{event}" for state, event in ILLEGAL]
)
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


@pytest.mark.parametrize(
    ("state", "event"), OUT_OF_TURN, ids=[f"{state.value}-{event}" for state, event in OUT_OF_TURN]
)
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
