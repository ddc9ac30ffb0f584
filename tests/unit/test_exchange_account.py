"""What an exchange notes of itself for its record: status, times, and whether a stream was begun.

Rules of this file: times are held against times that the test took itself, each while it knows what the
exchange waits for.
"""

from __future__ import annotations

import pytest

from mcp_proxy.clock import now
from mcp_proxy.exchange import Exchange, State
from mcp_proxy.telemetry.traces import Tracer
from mcp_proxy.upstream import Outgoing
from mcp_proxy.wire import Fields
from tests.unit.exchanges import STATES, Rig, relaying

EVENTS = [(b"content-type", b"text/event-stream")]
SAMPLED = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def own_s(exchange: Exchange) -> float:
    """The proxy's share."""
    return exchange.finished_s - exchange.started_s - exchange.waited_s


def pass_time(exchange: Exchange) -> float:
    """Ten times as much as the exchange has taken so far; how much that was."""
    from_s = now()
    until_s = from_s + 10 * (from_s - exchange.started_s)
    while (at_s := now()) < until_s:
        pass
    return at_s - from_s


@pytest.mark.parametrize(
    "state", [State.WAITING, State.STORING, State.HOLDING], ids=lambda state: state.value
)
async def test_who_leaves_before_the_head_was_sent_got_no_status(state: State) -> None:
    rig = STATES[state]()
    rig.exchange.disconnect()
    assert not rig.reply.has_started
    assert rig.exchange.status == 0


async def test_who_leaves_after_an_answer_was_dropped_got_no_status() -> None:
    rig = Rig()
    rig.storing()
    rig.exchange.retreat()
    rig.exchange.disconnect()
    assert rig.exchange.status == 0


async def test_who_leaves_a_stream_keeps_the_status_that_it_got() -> None:
    rig = relaying()
    rig.exchange.disconnect()
    assert rig.exchange.status == 200


async def test_the_wait_for_the_registry_is_no_wait_for_a_backend_whose_answer_goes_on_behind_it() -> None:
    rig = Rig(is_stream=True)
    attempt = rig.storing()
    stored_s = pass_time(rig.exchange)
    rig.exchange.stored()
    answered_s = pass_time(rig.exchange)
    attempt.body(b"data: 1\n\n")
    attempt.end()
    assert own_s(rig.exchange) >= stored_s
    assert rig.exchange.waited_s >= answered_s


@pytest.mark.parametrize("ending", ["refused", "left"])
async def test_an_exchange_that_ends_while_the_registry_is_asked_has_not_waited_for_its_backend(
    ending: str,
) -> None:
    rig = Rig()
    rig.storing()
    stored_s = pass_time(rig.exchange)
    if ending == "left":
        rig.exchange.disconnect()
    else:
        rig.exchange.expire()
    assert own_s(rig.exchange) >= stored_s


async def test_the_span_of_an_attempt_lasts_until_its_answer_was_complete() -> None:
    rig = Rig(is_stream=True)
    trace = rig.exchange.trace = Tracer(1.0).begin(SAMPLED, None, None, None)
    assert trace is not None
    trace.attempt(rig.backend.id, rig.backend.host, rig.backend.port, now())
    attempt = rig.storing()
    pass_time(rig.exchange)
    rig.exchange.stored()
    pass_time(rig.exchange)
    said_s = now()
    attempt.body(b"data: 1\n\n")
    attempt.end()
    assert said_s <= trace.attempts[0].ended_s <= rig.exchange.finished_s


async def test_events_that_come_in_one_piece_are_an_answer_and_no_stream() -> None:
    rig = Rig(is_stream=True)
    rig.send().whole(200, EVENTS, b"data: 1\n\n")
    assert rig.director.streams == 0
    assert (rig.reply.status, rig.reply.body, rig.reply.outcome) == (200, b"data: 1\n\n", "answer")
    assert rig.exchange.bytes_out == len(b"data: 1\n\n")


async def test_the_rest_of_an_event_behind_which_a_stream_ends_is_no_idleness() -> None:
    rig = Rig(listens=True, is_stream=True)
    attempt = rig.send()
    attempt.head(200, EVENTS)
    attempt.body(b"data: begun")
    rig.exchange.drain()
    pass_time(rig.exchange)
    said_s = now()
    attempt.body(b" and ended\n\n")
    assert rig.exchange.state is State.DONE
    assert rig.exchange.byte_s >= said_s


async def test_a_listening_stream_is_not_kept_for_its_trace() -> None:
    rig = Rig(listens=True, is_stream=True)
    trace = rig.exchange.trace = Tracer(1.0).begin(SAMPLED, None, None, None)
    assert trace is not None
    trace.rpc_id = b"1"
    trace.attempt(rig.backend.id, rig.backend.host, rig.backend.port, now())
    rig.exchange.send(rig.backend, rig.transport, Outgoing(b"POST", b"/mcp", Fields(), b""))
    rig.attempts[-1].head(200, EVENTS)
    rig.attempts[-1].body(b"data: 1\n\n")
    assert trace.body == b""
