"""One connection to a backend: what it writes, and how it reads each good answer there is.

Everything is run in one segment, byte by byte and cut in two anywhere; the order of the calls
is checked by the receiver itself.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.upstream import Outgoing
from mcp_proxy.wire import Fields
from tests.tools.receiver import RecordingReceiver
from tests.unit.backline import REQUEST, REQUEST_BYTES, Line, essence, ok
from tests.unit.fakes import places, settle
from tests.unit.responses import CHUNKED, EARLY, EVIL, GOOD, HELLO, Case


def check_answer(receiver: RecordingReceiver, case: Case) -> None:
    _, status, body, length, _ = case
    assert receiver.error is None
    assert receiver.ended
    assert receiver.head is not None
    assert (receiver.head[0], receiver.head[2], receiver.body) == (status, length, body)
    assert not any(b"evil" in name for name, _ in receiver.head[1])


def check_good(receiver: RecordingReceiver, line: Line, case: Case) -> None:
    check_answer(receiver, case)
    is_reusable = case[4]
    assert line.is_reusable is is_reusable
    assert line.owner.released_count == is_reusable
    assert line.transport.is_closing() is not is_reusable


@pytest.mark.parametrize("case", GOOD.values(), ids=GOOD.keys())
async def test_an_answer_is_read_however_it_is_cut(case: Case) -> None:
    wire = case[0]
    for cuts in ([], range(len(wire)), *([cut] for cut in range(1, len(wire)))):
        line = Line()
        receiver = line.ask()
        line.feed_cut(wire, cuts)
        check_good(receiver, line, case)


@pytest.mark.parametrize(
    "case", [case for case in GOOD.values() if case[4]], ids=[k for k, c in GOOD.items() if c[4]]
)
@pytest.mark.parametrize("first", ["length", "chunked", "204", "an interim answer", "length zero"])
async def test_an_answer_on_a_used_connection_is_the_same(first: str, case: Case) -> None:
    for cut in (0, 1, len(case[0]) // 2, len(case[0]) - 1):
        line = Line()
        one = line.ask()
        line.feed(GOOD[first][0])
        two = line.ask()
        line.feed_cut(case[0], [cut])
        three = line.ask()
        line.feed(GOOD[first][0])
        assert (one.ended, three.ended) == (True, True)
        assert essence(three) == essence(one)
        alone = Line()
        expected = alone.ask()
        alone.feed(case[0])
        assert essence(two) == essence(expected)


@pytest.mark.parametrize("case", GOOD.values(), ids=GOOD.keys())
@pytest.mark.parametrize("surplus", [EVIL, b"H", b"\0", b"garbage\r\n\r\n", HELLO])
async def test_bytes_behind_an_answer_are_never_delivered_and_end_the_connection(
    case: Case, surplus: bytes
) -> None:
    wire = case[0]
    for cuts in ([], [len(wire)], [len(wire) - 1], [len(wire) // 2], range(len(wire) + len(surplus))):
        line = Line()
        receiver = line.ask()
        line.feed_cut(wire + surplus, cuts)
        check_answer(receiver, case)
        assert not line.is_reusable
        await settle()
        assert line.owner.gone_count == 1


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
async def test_line_ends_behind_a_chunked_answer_end_the_connection(end: bytes) -> None:
    """llhttp skips empty lines between messages without a word. RFC 9112 section 2.2 allows them
    in front of requests only."""
    line = Line()
    receiver = line.ask()
    line.feed(ok(CHUNKED, body=HELLO) + end)
    assert receiver.ended
    assert not line.is_reusable


async def test_a_close_delimited_answer_ends_with_the_connection() -> None:
    wire = ok(b"Content-Type: text/event-stream", body=b"data: x\n\n")
    for cuts in (range(0), range(len(wire))):
        for start in (b"", EARLY):
            line = Line()
            receiver = line.ask()
            line.feed(*([start] if start else []))
            line.feed_cut(wire, cuts)
            assert (receiver.body, receiver.ended) == (b"data: x\n\n", False)
            line.transport.peer_finishes()
            await settle()
            assert essence(receiver)[1:] == (b"data: x\n\n", True, None)
            assert (line.owner.gone_count, line.owner.released_count) == (1, 0)


async def test_a_close_delimited_answer_that_is_reset_is_broken() -> None:
    line = Line()
    receiver = line.ask()
    line.feed(ok(body=b"half"))
    line.transport.peer_resets()
    await settle()
    assert receiver.verdict == ("BODY", "lost", True, False)


# -- what is sent ------------------------------------------------------------------------------


async def test_a_request_is_one_write_with_rebuilt_framing() -> None:
    line = Line()
    line.ask()
    assert bytes(line.transport.sent) == REQUEST_BYTES


@pytest.mark.parametrize(
    ("method", "body", "framing"),
    [(b"GET", b"", b""), (b"DELETE", b"", b""), (b"POST", b"", b"content-length: 0\r\n")],
)
async def test_a_length_is_sent_with_every_post_and_every_body(
    method: bytes, body: bytes, framing: bytes
) -> None:
    line = Line()
    line.ask(Outgoing(method, b"/", Fields(), body))
    assert (
        bytes(line.transport.sent)
        == method + b" / HTTP/1.1\r\nhost: backend.example:80\r\n" + framing + b"\r\n"
    )


@pytest.mark.parametrize("size", [64 * 1024, 64 * 1024 + 1, 4 * 1024 * 1024])
async def test_a_large_body_arrives_whole(size: int) -> None:
    line = Line()
    line.ask(Outgoing(b"POST", b"/", Fields([(b"a", b"b")]), b"x" * size))
    head, _, body = bytes(line.transport.sent).partition(b"\r\n\r\n")
    assert head.endswith(b"content-length: %d" % size)
    assert body == b"x" * size


# -- any answers in any segments ---------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    names=st.lists(st.sampled_from([k for k, case in GOOD.items() if case[4]]), min_size=1, max_size=5),
    cuts=st.lists(st.integers(1, 1000), max_size=6),
    watched=st.booleans(),
)
async def test_any_answers_in_any_segments(names: list[str], cuts: list[int], watched: bool) -> None:
    line = Line(watched=watched)
    for number, name in enumerate(names, 1):
        wire = GOOD[name][0]
        receiver = line.ask(REQUEST)
        line.feed_cut(wire, places([number * cut for cut in cuts], len(wire)))
        _, status, body, length, _ = GOOD[name]
        assert essence(receiver)[1:] == (body, True, None)
        assert receiver.head is not None
        assert (receiver.head[0], receiver.head[2]) == (status, length)
        assert line.owner.released_count == number


async def test_a_known_answer_behind_half_a_head_is_the_rest_of_that_head() -> None:
    line = Line()
    line.ask()
    known = ok(b"Content-Length: 5")
    line.feed(known)
    receiver = line.ask()
    line.feed(b"HTTP/1.1 200 OK\r\nX: ", known)
    assert receiver.ended
    assert receiver.head is not None
    assert list(receiver.head[1]) == [(b"x", b"HTTP/1.1 200 OK")]


@pytest.mark.parametrize("length", [b"+5", b"-5", b"0x5", b"5 5", b"5_", b"", b"9" * 30])
async def test_a_known_head_with_a_bad_length_is_an_error(length: bytes) -> None:
    line = Line()
    line.ask()
    line.feed(ok(b"Content-Length: 5"))
    receiver = line.ask()
    line.feed(ok(b"Content-Length: " + length))
    assert receiver.verdict == ("HEAD", "invalid", True, False)


async def test_a_known_head_with_more_or_less_than_its_body_is_read_the_long_way() -> None:
    for wire, is_over, is_reusable in (
        (ok(b"Content-Length: 5", body=b"hell"), False, False),
        (ok(b"Content-Length: 5", body=b"hello!"), True, False),
        (ok(b"Content-Length: 6", body=b"hello!"), True, True),
    ):
        line = Line()
        line.ask()
        line.feed(ok(b"Content-Length: 5"))
        receiver = line.ask()
        line.feed(wire)
        assert (receiver.ended, line.is_reusable) == (is_over, is_reusable)
        assert receiver.body == wire.partition(b"\r\n\r\n")[2][: (receiver.head or (0, 0, 0))[2]]
