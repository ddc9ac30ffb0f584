"""Deadlines, drains and disconnects of a connection, in each of its states.

Time is driven through ``DoorSettings.sweep``; nothing waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator

import pytest

from mcp_proxy import clock
from mcp_proxy.downstream.settings import BODY_TIMEOUT_FACTOR, KEEPALIVE_S, LINGER_S
from tests.unit.doorway import CHUNKED, Door, ScriptedHandler, chunked, get, post
from tests.unit.fakes import HIGH_WATER, FakeTransport, settle

HEAD_S = 10.0
BODY_S = HEAD_S * BODY_TIMEOUT_FACTOR
SOON = 0.5
"""Slack around a deadline, far above what a test takes."""


def sweep_in(door: Door, seconds: float) -> None:
    door.process.sweep(clock.now() + seconds)


def silent_door(transport: FakeTransport | None = None) -> Door:
    handler = ScriptedHandler()
    handler.respond = None
    return Door(handler, transport=transport)


def served_once(door: Door) -> Door:
    door.feed(post(b"a"))
    door.served[0].reply.answer(200, [], b"")
    door.transport.sent.clear()
    return door


# -- deadlines ---------------------------------------------------------------------------------


async def test_a_silent_connection_is_closed_at_the_head_deadline_without_an_answer() -> None:
    door = Door()
    sweep_in(door, HEAD_S - SOON)
    assert door.transport.fate == ""
    sweep_in(door, HEAD_S + SOON)
    assert (door.transport.is_closing(), door.sent) == (True, b"")


async def test_empty_lines_are_not_a_request() -> None:
    door = Door()
    for _ in range(100):
        door.feed(b"\r\n")
    sweep_in(door, HEAD_S + SOON)
    assert (door.transport.is_closing(), door.sent) == (True, b"")


@pytest.mark.parametrize("start", [b"P", b"POST /mcp HTTP/1.1\r\nHost: door.example\r\nX: "])
async def test_a_slow_head_is_a_408_at_the_deadline_however_often_bytes_come(start: bytes) -> None:
    door = Door()
    door.feed(*(start[index : index + 1] for index in range(len(start))))
    sweep_in(door, HEAD_S - SOON)
    assert door.sent == b""
    sweep_in(door, HEAD_S + SOON)
    answer = door.response()
    assert (answer.status, answer.reason, answer.closes) == (408, "request_timeout", True)
    assert door.transport.has_sent_eof
    sweep_in(door, LINGER_S + SOON)
    assert door.transport.fate == "aborted"


async def test_a_later_head_has_its_deadline_from_its_first_byte() -> None:
    door = served_once(silent_door())
    sweep_in(door, HEAD_S + SOON)
    assert door.transport.fate == "", "the deadline of the first head is over"
    door.feed(b"P")
    sweep_in(door, HEAD_S + SOON)
    assert door.response().status == 408


@pytest.mark.parametrize("body", [b"", b"x" * 50])
@pytest.mark.parametrize("framing", [b"Content-Length: 1000", CHUNKED])
async def test_a_slow_body_is_a_408_at_its_deadline(framing: bytes, body: bytes) -> None:
    door = Door()
    if framing == CHUNKED and body:
        body = b"ff\r\n" + body
    door.feed(post(body, framing=framing))
    sweep_in(door, BODY_S - SOON)
    assert door.sent == b""
    sweep_in(door, BODY_S + SOON)
    answer = door.response()
    assert (answer.status, answer.reason, answer.closes) == (408, "request_timeout", True)
    assert door.served == []


def idle_for_long(door: Door) -> None:
    """The deadline is looked at once per delay, so it is between one and two of them."""
    sweep_in(door, KEEPALIVE_S + SOON)
    sweep_in(door, 2 * KEEPALIVE_S + 2 * SOON)


async def test_an_idle_connection_is_closed_after_the_keep_alive() -> None:
    door = served_once(silent_door())
    sweep_in(door, KEEPALIVE_S - SOON)
    assert door.transport.fate == ""
    idle_for_long(door)
    assert (door.transport.is_closing(), door.sent) == (True, b"")


async def test_no_deadline_touches_an_exchange_in_progress() -> None:
    door = silent_door()
    door.feed(post(chunked(b"a"), framing=CHUNKED))
    door.expire()
    door.served[0].reply.start(200, [], None)
    door.expire()
    door.served[0].reply.write(b"still here")
    door.served[0].reply.end()
    assert (door.response().framing, door.transport.fate) == ("whole", "")
    idle_for_long(door)
    assert door.transport.is_closing(), "idle from now on"


async def test_the_keep_alive_starts_anew_with_every_answer() -> None:
    door = silent_door()
    for number in range(3):
        door.feed(post(b"a"))
        door.expire()
        assert door.transport.fate == ""
        door.served[number].reply.answer(200, [], b"")
        sweep_in(door, KEEPALIVE_S - SOON)
        assert door.transport.fate == ""


async def test_without_a_head_timeout_only_idle_connections_end() -> None:
    handler = ScriptedHandler()
    door = Door(handler, head_timeout_s=None)
    door.expire()
    door.feed(b"P")
    door.expire()
    door.feed(post(b"a")[1:-1])
    door.expire()
    assert (door.transport.fate, door.sent) == ("", b"")
    door.feed(b"a")
    assert door.response().status == 200
    idle_for_long(door)
    assert door.transport.is_closing()


async def test_a_request_that_arrives_at_the_moment_of_the_idle_close_is_not_run() -> None:
    """TLS transports may still deliver what they had decrypted. Nobody would see the answer."""
    closings: list[Callable[[Door], None]] = [idle_for_long, lambda door: door.protocol.shutdown()]
    for close in closings:
        door = served_once(silent_door(FakeTransport(tls=True)))
        close(door)
        assert door.transport.is_closing()
        door.transport.feed_late(post(b"tools/call"))
        await settle()
        assert len(door.served) == 1


async def test_the_date_is_of_this_second() -> None:
    door = Door()
    door.process.sweep(0.0)
    before = door.process.date_line
    door.process.sweep(0.1)
    assert door.process.date_line is before
    door.process.sweep(1.0)
    assert door.process.date_line is not before
    assert door.process.date_line.startswith(b"date: ")
    assert door.process.date_line.endswith(b" GMT\r\n")


# -- shutdown ----------------------------------------------------------------------------------


async def test_shutdown_closes_a_fresh_and_an_idle_connection() -> None:
    for door in (Door(), served_once(silent_door())):
        door.protocol.shutdown()
        await settle()
        assert (door.transport.lost, door.sent) == ([None], b"")
        assert door.connections == set()


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
    assert (door.response().framing, door.transport.fate) == ("whole", "closed")


async def test_a_stream_that_is_opened_during_a_drain_is_told_to_drain() -> None:
    """Else it holds the shutdown until the grace is over and is cut off then."""
    door = silent_door()
    door.feed(get()[:10])
    door.protocol.shutdown()
    door.feed(get()[10:])
    assert door.served[0].conversation.events == ["drain"]


async def test_shutdown_does_not_start_what_is_queued_behind_the_answer() -> None:
    """A pipelined request that has not begun is not begun: its answer could not be sent."""
    for late in (False, True):
        door = silent_door()
        door.feed(post(b"one") + post(b"two"))
        if not late:
            door.protocol.shutdown()
        door.served[0].reply.answer(200, [], b"")
        if late:
            door.protocol.shutdown()
        await settle()
        door.transport.peer_finishes()
        await settle()
        assert [served.body for served in door.served] == [b"one"]
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


# -- disconnects -------------------------------------------------------------------------------


def _fresh() -> Door:
    return silent_door()


def _in_head() -> Door:
    door = silent_door()
    door.feed(post(b"hello")[:20])
    return door


def _in_body() -> Door:
    door = silent_door()
    door.feed(post(b"hello")[:-1])
    return door


def _in_chunks() -> Door:
    door = silent_door()
    door.feed(post(chunked(b"hello"), framing=CHUNKED)[:-4])
    return door


def _serving() -> Door:
    door = silent_door()
    door.feed(post(b"hello"))
    return door


def _serving_with_more_behind() -> Door:
    door = silent_door()
    door.feed(post(b"hello") + post(b"two") + b"P")
    return door


def _streaming() -> Door:
    door = silent_door()
    door.feed(get() + post(b"two"))
    door.served[0].reply.start(200, [], None)
    door.served[0].reply.write(b"x")
    return door


def _paused() -> Door:
    door = silent_door()
    door.feed(get())
    door.served[0].reply.start(200, [], None)
    door.transport.is_stalled = True
    door.served[0].reply.write(b"x" * (HIGH_WATER + 1))
    return door


def _idle() -> Door:
    return served_once(silent_door())


def _lingering() -> Door:
    door = silent_door()
    door.feed(b"garbage\r\n\r\n")
    return door


def _aborted() -> Door:
    door = silent_door()
    door.feed(post(b"hello"))
    door.served[0].reply.abort()
    return door


STATES = [
    _fresh, _in_head, _in_body, _in_chunks, _serving, _serving_with_more_behind, _streaming, _paused, _idle,
    _lingering, _aborted,
]  # fmt: skip
BUSY = (_serving, _serving_with_more_behind, _streaming, _paused)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("how", ["reset", "fin"])
async def test_a_disconnect_is_told_once_to_whom_it_concerns(state: Callable[[], Door], how: str) -> None:
    door = state()
    served = len(door.served)
    if how == "reset":
        door.transport.peer_resets()
    else:
        door.transport.peer_finishes()
        door.transport.peer_reads()
    await settle()
    assert len(door.served) == served, "nothing starts for a client that is gone"
    for one in door.served:
        assert one.conversation.events.count("disconnect") == (1 if state in BUSY else 0)
    assert door.connections == set()
    assert door.process.connections == 0
    assert not _deadlines(door)


@pytest.mark.parametrize("state", STATES)
async def test_every_state_ends_when_its_deadlines_pass_or_its_exchange_does(state: Callable[[], Door]) -> None:
    door = state()
    for served in door.served[-1:]:
        if state in BUSY:
            served.reply.abort()
    for _ in range(4):
        door.expire()
        await settle()
    assert len(door.transport.lost) == 1
    assert door.process.connections == 0


@pytest.mark.parametrize("state", STATES)
async def test_nothing_keeps_a_connection_that_is_gone(state: Callable[[], Door]) -> None:
    """Not even a reference cycle: a body of megabytes must not wait for the garbage collector."""
    door = state()
    protocol = weakref.ref(door.protocol)
    door.transport.peer_resets()
    await settle()
    with _no_collector():
        door.served.clear()
        del door.protocol
        del door.transport
        await settle()
        assert protocol() is None


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _deadlines(door: Door) -> int:
    process = door.process
    return sum(map(len, (process.head_due, process.body_due, process.keepalive_due, process.linger_due)))


async def test_an_exchange_that_is_over_is_not_kept_by_its_idle_connection() -> None:
    door = silent_door()
    door.feed(post(b"x" * 1000))
    conversation = weakref.ref(door.served[0].conversation)
    door.served[0].reply.answer(200, [], b"")
    with _no_collector():
        door.served.clear()
        assert conversation() is None


async def test_the_repr_says_peer_and_state() -> None:
    door = silent_door()
    assert repr(door.protocol) == "<Http11Protocol 192.0.2.7 head>"
    door.feed(post(b"a"))
    assert repr(door.protocol) == "<Http11Protocol 192.0.2.7 serving>"


async def test_a_unix_socket_has_no_peer_and_tls_is_https() -> None:
    door = Door(transport=FakeTransport(peername="", tls=True))
    door.feed(post(b"a"))
    request = door.served[0].request
    assert (request.peer, request.scheme) == ("", "https")


async def test_the_loop_runs_dry() -> None:
    """No timer and no task per connection."""
    before = asyncio.all_tasks()
    door = served_once(silent_door())
    door.feed(post(b"a"))
    assert asyncio.all_tasks() == before
