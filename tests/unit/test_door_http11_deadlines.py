"""Deadlines of a connection, driven through ``DoorSettings.sweep``; nothing waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mcp_proxy import clock
from mcp_proxy.downstream.settings import BODY_TIMEOUT_FACTOR, KEEPALIVE_S, LINGER_S
from tests.unit.doorway import CHUNKED, Door, ScriptedHandler, chunked, post, served_once, silent_door
from tests.unit.fakes import FakeTransport, settle

HEAD_S = 10.0
BODY_S = HEAD_S * BODY_TIMEOUT_FACTOR
SOON = 0.5
"""Slack around a deadline, far above what a test takes."""


def sweep_in(door: Door, seconds: float) -> None:
    door.process.sweep(clock.now() + seconds)


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


def drained_for_long(door: Door) -> None:
    door.protocol.shutdown()
    door.expire()


async def test_a_request_that_arrives_at_the_moment_of_the_idle_close_is_not_run() -> None:
    """TLS transports may still deliver what they had decrypted. Nobody would see the answer."""
    closings: list[Callable[[Door], None]] = [idle_for_long, drained_for_long]
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
