"""How the door frames answers, in every case of RFC 9112 section 6, and what it does when they break."""

from __future__ import annotations

import pytest

from mcp_proxy.wire import Reply
from tests.unit.doorway import CHUNKED, Door, ScriptedHandler, Served, chunked, get, post
from tests.unit.fakes import read_response, settle

REQUESTS = {
    "1.1": post(b"a"),
    "1.1 chunked": post(chunked(b"a"), framing=CHUNKED),
    "1.1 close": post(b"a", b"Connection: close"),
    "1.0": post(b"a").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "1.0 keep-alive": post(b"a", b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"),
}
EVENT_STREAM = [(b"content-type", b"text/event-stream")]


def silent() -> ScriptedHandler:
    handler = ScriptedHandler()
    handler.respond = None
    return handler


def open_door(wire: bytes = REQUESTS["1.1"]) -> tuple[Door, Reply]:
    door = Door(silent())
    door.feed(wire)
    (served,) = door.served
    return door, served.reply


@pytest.mark.parametrize("wire", REQUESTS.values(), ids=REQUESTS.keys())
@pytest.mark.parametrize("status", [200, 202, 301, 404, 500, 599])
async def test_a_whole_answer(wire: bytes, status: int) -> None:
    door, reply = open_door(wire)
    reply.answer(status, [(b"x-one", b"1"), (b"x-one", b"2")], b"hello")
    answer = door.response()
    assert (answer.status, answer.body, answer.framing) == (status, b"hello", "whole")
    assert answer.head.all("x-one") == [b"1", b"2"]
    assert len(answer.head.all("date")) == 1
    is_last = b"close" in wire or b"1.0" in wire
    assert answer.closes is is_last
    await settle()
    assert door.transport.is_closing() is is_last


async def test_a_date_that_the_backend_sent_stays_the_only_one() -> None:
    door, reply = open_door()
    reply.answer(200, [(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT")], b"")
    assert door.response().head.all("date") == [b"Thu, 01 Jan 1970 00:00:00 GMT"]


@pytest.mark.parametrize("wire", REQUESTS.values(), ids=REQUESTS.keys())
@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("is_streamed", [False, True], ids=["answer", "start"])
async def test_an_answer_without_a_body_has_no_framing(wire: bytes, status: int, is_streamed: bool) -> None:
    door, reply = open_door(wire)
    if is_streamed:
        reply.start(status, EVENT_STREAM, 0)
        reply.end()
    else:
        reply.answer(status, [], b"")
    answer = door.response()
    assert (answer.status, answer.body, answer.framing) == (status, b"", "whole")
    assert not answer.head.all("transfer-encoding")
    assert not answer.head.all("content-length")


async def test_head_gets_the_length_and_no_body() -> None:
    door, reply = open_door(get(method=b"HEAD"))
    reply.answer(200, [], b"hello")
    answer = read_response(door.sent, b"HEAD")
    assert (answer.head.one("content-length"), answer.body, answer.framing) == (b"5", b"", "whole")
    door.feed(post(b"next"))
    door.served[1].reply.answer(200, [], b"next")
    assert [answer.body for answer in door.responses(b"HEAD", b"POST")] == [b"", b"next"]


@pytest.mark.parametrize("wire", REQUESTS.values(), ids=REQUESTS.keys())
async def test_a_stream_of_known_length(wire: bytes) -> None:
    door, reply = open_door(wire)
    reply.start(200, [], 10)
    assert door.response().framing == "broken", "the head leaves before the body"
    reply.write(b"hello")
    reply.write(b"world")
    reply.end()
    answer = door.response()
    assert (answer.body, answer.framing) == (b"helloworld", "whole")
    assert door.transport.is_closing() is answer.closes


@pytest.mark.parametrize("wire", REQUESTS.values(), ids=REQUESTS.keys())
async def test_a_stream_of_unknown_length(wire: bytes) -> None:
    door, reply = open_door(wire)
    reply.start(200, EVENT_STREAM, None)
    before = len(door.sent)
    reply.write(b"data: 1\n\n")
    assert len(door.sent) > before, "a chunk leaves when it comes"
    reply.write(b"data: 2\n\n")
    reply.end()
    answer = door.response()
    assert answer.body == b"data: 1\n\ndata: 2\n\n"
    is_old = b"HTTP/1.0" in wire
    assert answer.framing == ("until-close" if is_old else "whole")
    assert bool(answer.head.all("transfer-encoding")) is not is_old
    assert answer.closes is (is_old or b"close" in wire)
    assert door.transport.fate == ("closed" if answer.closes else "")


async def test_an_empty_stream_of_known_length_zero() -> None:
    door, reply = open_door()
    reply.start(200, EVENT_STREAM, 0)
    reply.end()
    assert (door.response().body, door.response().framing) == (b"", "whole")


@pytest.mark.parametrize("wire", REQUESTS.values(), ids=REQUESTS.keys())
@pytest.mark.parametrize("length", [None, 10], ids=["unknown", "known"])
@pytest.mark.parametrize("chunks", [0, 1])
async def test_a_broken_body_can_be_seen(wire: bytes, length: int | None, chunks: int) -> None:
    door, reply = open_door(wire)
    reply.start(200, [], length)
    for _ in range(chunks):
        reply.write(b"hello")
    reply.abort()
    answer = door.response()
    assert answer.body == b"hello" * chunks
    if length is None and b"HTTP/1.0" in wire:
        assert door.transport.fate == "aborted", "a clean close would be the end of the body"
    else:
        assert answer.framing == "broken"
        assert door.transport.is_closing()
    await settle()
    assert door.served[0].conversation.events == []
    assert door.process.connections == 0


@pytest.mark.parametrize("wire", REQUESTS.values(), ids=REQUESTS.keys())
async def test_an_answer_that_never_began_ends_the_connection(wire: bytes) -> None:
    door, reply = open_door(wire)
    reply.abort()
    assert (door.sent, door.transport.is_closing()) == (b"", True)


async def test_an_aborted_answer_does_not_start_the_next_request() -> None:
    door = Door(silent())
    door.feed(post(b"one") + post(b"two"))
    door.served[0].reply.start(200, [], None)
    door.served[0].reply.abort()
    await settle()
    assert len(door.served) == 1


async def test_the_framing_of_one_answer_does_not_leak_into_the_next() -> None:
    door = Door(silent())
    for _ in range(2):
        door.feed(post(b"a"))
        door.served[-1].reply.start(200, [], None)
        door.served[-1].reply.write(b"chunk")
        door.served[-1].reply.end()
        door.feed(post(b"a"))
        door.served[-1].reply.start(200, [], 3)
        door.served[-1].reply.write(b"abc")
        door.served[-1].reply.end()
        door.feed(get())
        door.served[-1].reply.answer(204, [], b"")
        door.feed(post(b"a"))
        door.served[-1].reply.answer(200, [], b"whole")
    bodies = [answer.body for answer in door.responses()]
    assert bodies == [b"chunk", b"abc", b"", b"whole"] * 2
    assert {answer.framing for answer in door.responses()} == {"whole"}


async def test_every_status_has_a_status_line() -> None:
    for status in range(200, 600):
        door, reply = open_door()
        reply.answer(status, [], b"")
        assert door.response().status == status


async def test_an_answer_given_in_the_middle_of_handling_leaves_no_conversation_behind() -> None:
    """``handle`` answers before it returns; the conversation it returns is over already."""
    conversations: list[Served] = []

    def respond(served: Served) -> None:
        conversations.append(served)
        served.reply.answer(200, [], b"")

    handler = ScriptedHandler()
    handler.respond = respond
    door = Door(handler)
    door.feed(post(b"one"))
    door.transport.peer_resets()
    await settle()
    assert [served.conversation.events for served in conversations] == [[]]
