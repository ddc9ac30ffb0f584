"""How a listening stream ends while its backend could go on: behind an event, and not for ever."""

from __future__ import annotations

import pytest

from mcp_proxy.errors import Fault, Phase
from mcp_proxy.exchange import EVENT_REST_S, State
from tests.unit.exchanges import CALL, JSON, Rig, routing, storing, waiting
from tests.unit.fakes import settle

EVENTS = [(b"content-type", b"text/event-stream")]
FAR_FUTURE_S = 1e12


def streaming(*chunks: bytes, listens: bool = True) -> Rig:
    rig = Rig(is_stream=True, listens=listens)
    rig.send().head(200, EVENTS)
    rig.attempts[0].body(*chunks)
    return rig


async def end(rig: Rig, how: str) -> Fault:
    """Tell it to end; why it does."""
    if how == "drain":
        rig.exchange.drain()
        return Fault.DRAIN
    rig.exchange.end_listening_soon()
    await settle()
    return Fault.BACKEND


either = pytest.mark.parametrize("how", ["drain", "session over"])


@either
@pytest.mark.parametrize("text", [b"", b"data: 1\n\n", b"data: 1\r\n\r\n", b"data: 1\r\r", b": ping\n\n"])
@pytest.mark.parametrize("size", [1, 100])
async def test_between_two_events_a_stream_ends_at_once(text: bytes, size: int, how: str) -> None:
    rig = streaming(*(text[at : at + size] for at in range(0, len(text), size)))
    fault = await end(rig, how)
    assert (rig.reply.outcome, rig.reply.body) == ("end", text)
    assert rig.director.finishes == [(fault, Phase.BODY)]
    assert rig.attempts[0].is_cancelled


@either
async def test_in_the_middle_of_an_event_its_rest_is_relayed_and_nothing_of_the_next(how: str) -> None:
    rig = streaming(b"data: 1\n\nda")
    fault = await end(rig, how)
    assert rig.reply.outcome == ""
    rig.attempts[0].body(b"ta: 2\n", b"\ndata: 3\n\n", b"data: 4\n\n")
    assert (rig.reply.outcome, rig.reply.body) == ("end", b"data: 1\n\ndata: 2\n\n")
    assert rig.exchange.bytes_out == len(rig.reply.body)
    assert rig.director.finishes == [(fault, Phase.BODY)]
    assert rig.attempts[0].is_cancelled


async def test_an_empty_line_cut_within_its_line_end_is_relayed_whole() -> None:
    rig = streaming(b"data: 1\r\n\r")
    rig.exchange.drain()
    assert rig.reply.outcome == ""
    rig.attempts[0].body(b"\ndata: 2\r\n\r\n")
    assert (rig.reply.outcome, rig.reply.body) == ("end", b"data: 1\r\n\r\n")


async def test_a_stream_that_had_ended_its_event_gets_no_empty_piece() -> None:
    rig = streaming(b"data: 1\n\r")
    rig.exchange.drain()
    rig.attempts[0].body(b"data: 2\n\n")
    assert (rig.reply.outcome, rig.reply.chunks) == ("end", [b"data: 1\n\r"])


async def test_the_rest_of_an_event_is_not_waited_for_for_ever() -> None:
    rig = streaming(b"data: 1\n\ndata")
    rig.exchange.drain()
    due = rig.director.parting_due
    assert due.delay_s == EVENT_REST_S
    due.sweep(FAR_FUTURE_S)
    assert (rig.reply.outcome, rig.reply.body) == ("end", b"data: 1\n\ndata")
    assert rig.director.finishes == [(Fault.DRAIN, Phase.BODY)]


@pytest.mark.parametrize("how", ["ends", "fails", "leaves", "expires"])
async def test_a_stream_that_ends_otherwise_meanwhile_ends_once(how: str) -> None:
    rig = streaming(b"data: 1\n\ndata")
    rig.exchange.drain()
    if how == "ends":
        rig.attempts[0].end()
    elif how == "fails":
        rig.attempts[0].fail()
    elif how == "leaves":
        rig.reply.leave(rig.exchange)
    else:
        rig.exchange.expire()
    assert rig.reply.outcome == ("" if how == "leaves" else "end")
    assert len(rig.director.finishes) == 1
    assert len(rig.director.parting_due) == 0


async def test_being_told_twice_is_being_told_once() -> None:
    rig = streaming(b"data: 1\n\ndata")
    rig.exchange.drain()
    await end(rig, "session over")
    rig.exchange.drain()
    rig.attempts[0].body(b": 2\n\n")
    assert rig.director.finishes == [(Fault.DRAIN, Phase.BODY)]


@either
async def test_the_stream_of_a_call_is_left_alone(how: str) -> None:
    """Its answer comes in it; the grace is for that."""
    rig = streaming(b"data: 1\n\n", listens=False)
    rig.exchange.drain()
    rig.attempts[0].body(b"data: 2\n\n")
    rig.attempts[0].end()
    assert (rig.reply.outcome, rig.reply.body) == ("end", b"data: 1\n\ndata: 2\n\n")
    assert rig.director.finishes == [(Fault.NONE, Phase.NONE)]


async def test_a_stream_whose_head_is_on_its_way_begins_and_ends_cleanly() -> None:
    """Clients take a refusal for a failure of the server."""
    rig = waiting(listens=True)
    rig.exchange.is_stream = True
    rig.exchange.drain()
    assert rig.reply.outcome == ""
    rig.attempts[0].head(200, EVENTS)
    await settle()
    assert (rig.reply.status, rig.reply.outcome, rig.reply.body) == (200, "end", b"")
    assert rig.director.finishes == [(Fault.DRAIN, Phase.BODY)]


async def test_a_head_that_does_not_come_is_not_waited_for_for_ever() -> None:
    rig = waiting(listens=True)
    rig.exchange.drain()
    rig.exchange.drain()
    rig.director.parting_due.sweep(FAR_FUTURE_S)
    assert (rig.reply.status, rig.reply.reason) == (503, "draining")
    assert rig.director.finishes[0][0] is Fault.DRAIN


async def test_a_drain_is_not_forgotten_when_the_stream_is_tried_elsewhere() -> None:
    rig = waiting(listens=True)
    rig.exchange.is_stream = True
    rig.exchange.drain()
    rig.exchange.retreat()
    rig.send().head(200, EVENTS)
    await settle()
    assert rig.reply.outcome == "end"
    assert len(rig.director.parting_due) == 0


@pytest.mark.parametrize("begin", [routing, storing])
async def test_a_stream_that_has_not_found_its_backend_is_refused(begin: object) -> None:
    rig = begin(listens=True)  # type: ignore[operator]
    rig.exchange.drain()
    assert (rig.reply.status, rig.reply.reason) == (503, "draining")


async def test_a_json_answer_to_a_listening_request_is_not_cut() -> None:
    rig = Rig(listens=True)
    rig.send().head(400, JSON, len(CALL))
    rig.exchange.drain()
    rig.attempts[0].body(CALL)
    rig.attempts[0].end()
    assert (rig.reply.status, rig.reply.outcome, rig.reply.body) == (400, "answer", CALL)


async def test_nothing_is_kept_of_the_stream_of_a_call_and_three_bytes_of_one_that_listens() -> None:
    """Streams stay for hours, and there are thousands."""
    rig = streaming(b"x" * 100_000)
    assert rig.exchange.state is State.RELAYING
    assert len(rig.exchange._last or b"") == 3
    assert streaming(b"x" * 100, listens=False).exchange._last is None
