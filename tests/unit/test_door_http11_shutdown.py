"""A drain, in each state of a connection."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mcp_proxy.clock import TICK_S
from tests.unit.doorway import (
    FAR_FUTURE_S,
    Door,
    ScriptedHandler,
    get,
    post,
    served_once,
    settings,
    silent_door,
)  # fmt: skip
from tests.unit.fakes import settle

# -- shutdown ----------------------------------------------------------------------------------


async def test_shutdown_closes_a_fresh_and_an_idle_connection_after_a_moment() -> None:
    for door in (Door(), served_once(silent_door())):
        door.protocol.shutdown()
        assert door.transport.fate == ""
        door.expire()
        await settle()
        assert (door.transport.lost, door.sent) == ([None], b"")
        assert door.connections == set()


async def test_a_request_that_was_on_its_way_when_the_drain_began_is_served() -> None:
    """A proxy in front that has sent a POST must not send it to somebody else."""
    for door in (silent_door(), served_once(silent_door())):
        door.protocol.shutdown()
        door.feed(post(b"late"))
        door.served[-1].reply.answer(200, [], b"served")
        assert (door.response().body, door.response().closes) == (b"served", True)
        await settle()
        assert door.transport.lost == [None]


async def test_an_answer_whose_head_did_not_say_so_is_not_followed_by_a_close() -> None:
    """The head left before the drain began, so the next request may be on its way when the body ends."""
    door = silent_door()
    door.feed(post(b"one"))
    door.served[0].reply.start(200, [], None)
    door.protocol.shutdown()
    door.served[0].reply.write(b"data: 1\n\n")
    door.served[0].reply.end()
    assert (door.response().framing, door.response().closes, door.transport.fate) == ("whole", False, "")
    door.feed(post(b"two"))
    door.served[1].reply.answer(200, [], b"")
    assert [response.closes for response in door.responses()] == [False, True]
    await settle()
    assert door.transport.lost == [None]


@pytest.mark.parametrize("cut", [1, 30, len(post(b"hello")) - 5, len(post(b"hello")) - 1])
async def test_shutdown_lets_a_request_that_is_arriving_finish(cut: int) -> None:
    door = silent_door()
    door.feed(post(b"hello")[:cut])
    door.protocol.shutdown()
    assert door.transport.fate == ""
    door.feed(post(b"hello")[cut:])
    door.served[0].reply.answer(200, [], b"world")
    assert (door.response().body, door.response().closes) == (b"world", True)
    await settle()
    assert door.transport.lost == [None]


async def test_shutdown_drains_the_exchange_and_closes_behind_its_answer() -> None:
    door = silent_door()
    door.feed(post(b"a"))
    door.protocol.shutdown()
    door.process.sweep(0.0)
    assert door.served[0].conversation.events == ["drain"]
    door.served[0].reply.answer(200, [], b"b")
    assert (door.response().body, door.response().closes) == (b"b", True)
    await settle()
    assert door.transport.lost == [None]


async def test_shutdown_ends_a_stream_cleanly_when_the_exchange_does() -> None:
    door = silent_door()
    door.feed(get())
    door.served[0].reply.start(200, [], None)
    door.served[0].reply.write(b"data: 1\n\n")
    door.protocol.shutdown()
    door.served[0].reply.end()
    assert (door.response().framing, door.transport.fate) == ("whole", "")
    door.expire()
    assert door.transport.fate == "closed"


async def test_a_stream_that_is_opened_during_a_drain_is_told_to_drain() -> None:
    """Else it holds the shutdown until the grace is over and is cut off then."""
    door = silent_door()
    door.feed(get()[:10])
    door.protocol.shutdown()
    door.feed(get()[10:])
    door.process.sweep(0.0)
    assert door.served[0].conversation.events == ["drain"]


async def test_streams_drain_one_after_the_other_within_a_third_of_the_grace() -> None:
    """All clients come back at once else."""
    handler = ScriptedHandler()
    handler.respond = None
    process = settings(handler, drain_s=6.0)
    doors = [Door(handler, process=process) for _ in range(100)]
    for door in doors:
        door.feed(get())
        door.served[-1].reply.start(200, [], None)
        door.protocol.shutdown()
    drained = []
    for sweep in range(25):
        process.sweep(100.0 + sweep * TICK_S)
        drained.append(sum(bool(served.conversation.events) for served in handler.served))
    assert all(4 <= after - before <= 6 for before, after in pairwise(drained[:19]))
    assert drained[20:] == [100] * 5
    assert all(served.conversation.events == ["drain"] for served in handler.served)


async def test_a_client_that_left_is_not_drained() -> None:
    door = silent_door()
    door.feed(get())
    door.protocol.shutdown()
    door.transport.peer_resets()
    await settle()
    door.process.sweep(0.0)
    assert door.served[0].conversation.events == ["disconnect"]
    assert len(door.process.drains) == 0


async def test_what_is_left_at_the_end_of_the_grace_is_told_so() -> None:
    """By the door itself, because uvicorn waits for ever unless it is told otherwise."""
    door = silent_door()
    door.feed(post(b"a"))
    door.protocol.shutdown()
    door.expire()
    assert door.served[0].conversation.events == ["drain", "expire"]


@pytest.mark.parametrize("cut", [10, len(post(b"hello")) - 1])
async def test_a_request_that_never_gets_whole_does_not_outlast_the_grace(cut: int) -> None:
    door = Door(head_timeout_s=None)
    door.feed(post(b"hello")[:cut])
    door.protocol.shutdown()
    door.expire()
    await settle()
    assert door.transport.fate == "closed"


# -- while the listener is still open ----------------------------------------------------------


async def test_while_the_process_drains_every_answer_says_that_its_connection_closes() -> None:
    for door in (silent_door(), served_once(silent_door())):
        door.process.is_draining = True
        door.feed(post(b"one"))
        door.served[-1].reply.answer(200, [], b"served")
        assert (door.response().body, door.response().closes) == (b"served", True)
        await settle()
        assert door.transport.lost == [None]


async def test_while_the_process_drains_streams_begin_and_stay() -> None:
    door = silent_door()
    door.process.is_draining = True
    door.feed(get())
    door.served[0].reply.start(200, [], None)
    door.process.sweep(0.0)
    assert (door.served[0].conversation.events, door.transport.fate) == ([], "")
    assert b"connection: close\r\n" in door.sent


async def test_while_the_process_drains_an_idle_connection_stays() -> None:
    """Only an answer can say that it closes; a request may be on its way."""
    door = served_once(silent_door())
    door.process.is_draining = True
    door.process.parting_due.sweep(FAR_FUTURE_S)
    assert door.transport.fate == ""


async def test_an_answer_that_began_before_the_drain_keeps_its_word() -> None:
    door = silent_door()
    door.feed(post(b"one") + post(b"two"))
    door.served[0].reply.start(200, [], 1)
    door.process.is_draining = True
    door.served[0].reply.write(b"1")
    door.served[0].reply.end()
    await settle()
    door.served[1].reply.answer(200, [], b"2")
    assert [(response.body, response.closes) for response in door.responses()] == [
        (b"1", False),
        (b"2", True),
    ]


async def test_shutdown_does_not_start_what_is_queued_behind_the_answer() -> None:
    """That answer said that the connection closes, so a pipelined request is not begun."""
    door = silent_door()
    door.feed(post(b"one") + post(b"two"))
    door.protocol.shutdown()
    door.served[0].reply.answer(200, [], b"")
    await settle()
    door.transport.peer_finishes()
    await settle()
    assert [served.body for served in door.served] == [b"one"]
    assert door.transport.lost == [None]


async def test_shutdown_serves_what_is_queued_behind_an_answer_that_promised_more() -> None:
    door = silent_door()
    door.feed(post(b"one") + post(b"two"))
    door.served[0].reply.answer(200, [], b"")
    door.protocol.shutdown()
    await settle()
    door.served[1].reply.answer(200, [], b"")
    assert [response.closes for response in door.responses()] == [False, True]
    await settle()
    assert door.transport.lost == [None]


async def test_shutdown_leaves_a_lingering_connection_to_its_deadline() -> None:
    door = Door()
    door.feed(b"garbage\r\n\r\n")
    door.protocol.shutdown()
    assert door.transport.fate == ""
    door.expire()
    assert door.transport.fate == "aborted"


async def test_shutdown_twice_is_shutdown() -> None:
    door = silent_door()
    door.feed(post(b"a"))
    door.protocol.shutdown()
    door.protocol.shutdown()
    door.served[0].reply.answer(200, [], b"")
    await settle()
    door.protocol.shutdown()
    assert door.transport.lost == [None]
