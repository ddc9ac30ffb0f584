"""What an exchange passes on and when: held, streamed, stored first, tried again."""

from __future__ import annotations

import asyncio

import pytest

from mcp_proxy.errors import Fault, Phase
from mcp_proxy.exchange import State
from tests.unit.exchanges import (
    CALL,
    HOLD,
    JSON,
    STATES,
    Rig,
    holding,
    relaying,
    routing,
    waiting,
)  # fmt: skip

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
    paused = [attempt.is_paused]
    attempt.body(b"what was ", b"on its way")
    rig.exchange.pause()
    rig.exchange.resume()
    paused.append(attempt.is_paused)  # the client's readiness does not matter yet
    assert rig.wire == (False, 0, b"", "")
    rig.exchange.stored()
    paused.append(attempt.is_paused)
    assert paused == [True, True, False]
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
    paused = [attempt.is_paused]
    rig.exchange.resume()
    assert [*paused, attempt.is_paused] == [True, False]


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
