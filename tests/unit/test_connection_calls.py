"""Pausing, cancelling and losing a connection to a backend, at every moment of a request."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator

import pytest

from mcp_proxy.upstream import Outgoing
from mcp_proxy.wire import Fields
from tests.tools.receiver import RecordingReceiver
from tests.unit.backline import REQUEST, Line, essence, ok
from tests.unit.fakes import settle

LENGTH = b"Content-Length: 5"
CHUNKED = b"Transfer-Encoding: chunked"
WHOLE = ok(LENGTH)
MOMENTS = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nX: ",
    "an interim answer": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "a head": ok(LENGTH, body=b""),
    "half a body": ok(LENGTH, body=b"he"),
    "a chunked head": ok(CHUNKED, body=b""),
    "half a chunk": ok(CHUNKED, body=b"5\r\nhe"),
    "a chunk": ok(CHUNKED, body=b"5\r\nhello\r\n"),
    "a close-delimited body": ok(body=b"he"),
}


@pytest.mark.parametrize("start", MOMENTS.values(), ids=MOMENTS.keys())
@pytest.mark.parametrize("is_used", [False, True], ids=["fresh", "used"])
async def test_after_a_cancel_nothing_is_told_and_the_connection_is_reset(
    start: bytes, is_used: bool
) -> None:
    line = Line()
    if is_used:
        line.ask()
        line.feed(WHOLE)
    receiver = line.ask()
    line.feed(*([start] if start else []))
    before = essence(receiver)
    line.connection.cancel()
    assert line.transport.fate == "aborted"
    line.connection.cancel()
    line.connection.pause()
    line.connection.resume()
    line.connection.data_received(WHOLE)
    await settle()
    assert essence(receiver) == before
    assert (line.owner.gone_count, line.is_reusable) == (1, False)


@pytest.mark.parametrize("event", ["head", "body", "end"])
@pytest.mark.parametrize(
    "wire", [WHOLE + b"surplus", ok(CHUNKED, body=b"5\r\nhello\r\n0\r\n\r\n"), ok(body=b"hello")]
)
async def test_a_cancel_from_within_a_call_is_the_last_call(event: str, wire: bytes) -> None:
    line = Line()
    told: list[str] = []

    def react(what: str) -> None:
        told.append(what)
        if what == event:
            line.connection.cancel()

    line.ask(receiver=RecordingReceiver(react))
    line.feed(wire)
    line.transport.peer_finishes()
    await settle()
    expected = {"head": ["head"], "body": ["head", "body"], "end": ["head", "body", "end"]}[event]
    assert told == expected
    assert (line.owner.gone_count, line.owner.released_count) == (1, 0)


async def test_a_whole_answer_with_a_known_head_is_told_at_once_and_its_call_is_over() -> None:
    line = Line()
    line.ask()
    line.feed(WHOLE)
    seen: list[tuple[str, bool]] = []

    class Once(RecordingReceiver):
        def on_whole(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
            seen.append((f"whole {status} {body.decode()}", line.connection.is_usable))

    line.ask(receiver=Once())
    line.feed(WHOLE)
    assert seen == [("whole 200 hello", True)]
    assert line.owner.released_count == 2


@pytest.mark.parametrize("start", MOMENTS.values(), ids=MOMENTS.keys())
@pytest.mark.parametrize("kind", ["timeout", "lost"])
async def test_a_failure_is_told_once(start: bytes, kind: str) -> None:
    line = Line()
    receiver = line.ask()
    line.feed(*([start] if start else []))
    line.connection.fail(kind, "x")
    line.connection.fail(kind, "x")
    await settle()
    phase = "BODY" if receiver.head is not None else "HEAD"
    assert receiver.verdict == (phase, kind, True, False)
    assert (line.transport.fate, line.owner.gone_count) == ("aborted", 1)


@pytest.mark.parametrize("start", MOMENTS.values(), ids=MOMENTS.keys())
async def test_pause_stops_the_reading_and_resume_starts_it_again(start: bytes) -> None:
    line = Line()
    line.ask()
    line.feed(*([start] if start else []))
    line.connection.pause()
    line.connection.pause()
    assert (line.transport.is_reading_now, line.connection.is_paused) == (False, True)
    line.connection.resume()
    line.connection.resume()
    assert (line.transport.is_reading_now, line.connection.is_paused) == (True, False)


@pytest.mark.parametrize("event", ["head", "body"])
@pytest.mark.parametrize("coding", [LENGTH, CHUNKED])
async def test_a_connection_that_was_paused_in_its_answer_reads_the_next_one(
    event: str, coding: bytes
) -> None:
    line = Line()

    def react(what: str) -> None:
        if what == event:
            line.connection.pause()

    wire = ok(coding, body=b"hello" if coding == LENGTH else b"5\r\nhello\r\n0\r\n\r\n")
    for _ in range(3):
        receiver = line.ask(receiver=RecordingReceiver(react))
        for part in (wire[:10], wire[10:]):  # an answer in one piece is over when it is told
            line.feed(part)
        assert receiver.ended
        assert line.transport.is_reading_now
        assert not line.connection.is_paused
    assert line.owner.released_count == 3


async def test_a_late_pause_by_a_former_owner_is_its_own_fault_but_the_owner_is_told_when_it_is_over() -> (
    None
):
    """``on_end`` comes when the connection may already serve somebody else."""
    line = Line()
    second = RecordingReceiver()

    def react(what: str) -> None:
        if what == "end":
            line.connection.send(REQUEST, second)

    line.ask(receiver=RecordingReceiver(react))
    line.feed(WHOLE)
    assert line.owner.released_count == 0, "it is in use again"
    line.feed(WHOLE)
    assert second.ended
    assert line.owner.released_count == 1


# -- the request is not sent yet ---------------------------------------------------------------

LARGE = Outgoing(b"POST", b"/", Fields(), b"x" * 1_000_000)


async def test_an_early_answer_ends_the_connection_at_once_and_the_rest_of_the_body_is_not_sent() -> None:
    """``close`` would keep it open until a backend that has lost interest reads a megabyte."""
    line = Line()
    line.transport.is_stalled = True
    receiver = line.ask(LARGE)
    line.feed(ok(LENGTH, status=b"413 Too Large"))
    assert (receiver.ended, receiver.body) == (True, b"hello")
    assert line.transport.fate == "aborted"
    await settle()
    assert (line.owner.gone_count, line.owner.released_count) == (1, 0)


async def test_a_body_that_was_sent_after_all_leaves_the_connection_usable() -> None:
    line = Line()
    line.transport.is_stalled = True
    line.ask(LARGE)
    line.transport.is_stalled = False
    line.transport.peer_reads()
    line.feed(WHOLE)
    assert line.is_reusable


# -- idle --------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [b"x", b"\r\n", WHOLE, b"HTTP/1.1 408 Request Timeout\r\n\r\n"])
async def test_bytes_on_an_idle_connection_end_it(late: bytes) -> None:
    line = Line()
    line.ask()
    line.feed(WHOLE)
    line.feed(late)
    assert (line.is_reusable, line.transport.fate) == (False, "aborted")
    await settle()
    assert line.owner.gone_count == 1


async def test_bytes_before_any_request_end_the_connection() -> None:
    line = Line()
    line.feed(WHOLE)
    assert (line.is_reusable, line.transport.fate) == (False, "aborted")


@pytest.mark.parametrize("how", ["fin", "rst", "close"])
async def test_an_idle_connection_that_ends_is_not_usable(how: str) -> None:
    line = Line()
    line.ask()
    line.feed(WHOLE)
    assert line.owner.released_count == 1
    if how == "fin":
        line.transport.peer_finishes()
    elif how == "rst":
        line.transport.peer_resets()
    else:
        line.connection.close()
    assert not line.is_reusable
    await settle()
    assert line.owner.gone_count == 1


async def test_progress_is_told_when_it_is_watched_only() -> None:
    for watched in (False, True):
        line = Line(watched=watched)
        line.ask()
        for byte in ok(LENGTH, body=b"hell"):
            line.feed(bytes([byte]))
        assert line.owner.progress == (5 if watched else 0), "the head and each piece of the body"
        line.feed(b"o")
        assert line.owner.released_count == 1


# -- references --------------------------------------------------------------------------------


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "wire", [WHOLE, ok(CHUNKED, body=b"5\r\nhello\r\n0\r\n\r\n"), ok(body=b"", status=b"204 No")]
)
async def test_an_idle_connection_keeps_nothing_of_the_exchange(wire: bytes) -> None:
    line = Line()
    with no_collector():
        receiver = weakref.ref(line.ask())
        line.feed(wire)
        assert line.is_reusable
        assert receiver() is None


@pytest.mark.parametrize("start", [*MOMENTS.values(), WHOLE])
@pytest.mark.parametrize("how", ["rst", "cancel", "fail"])
async def test_nothing_keeps_a_connection_that_is_gone(start: bytes, how: str) -> None:
    line = Line()
    line.ask()
    line.feed(*([start] if start else []))
    connection = weakref.ref(line.connection)
    if how == "rst":
        line.transport.peer_resets()
    elif how == "cancel":
        line.connection.cancel()
    else:
        line.connection.fail("timeout", "x")
    await settle()
    with no_collector():
        del line
        assert connection() is None


async def test_the_repr_says_host_and_state() -> None:
    line = Line()
    assert repr(line.connection) == "<Connection to backend.example:80 idle>"
    line.ask()
    line.feed(WHOLE)
    line.ask()
    assert repr(line.connection) == "<Connection to backend.example:80 head reused>"
