"""A drain, in each state of a connection."""

from __future__ import annotations

import pytest

from tests.unit.doorway import Door, get, post, served_once, silent_door
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
    assert door.served[0].conversation.events == ["drain"]


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
