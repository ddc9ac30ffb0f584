"""One connection to a backend: what it writes, and how it reads each answer there is.

Everything is run in one segment, byte by byte and cut in two anywhere; the order of the calls
is checked by the receiver itself.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.upstream import Outgoing
from mcp_proxy.upstream.connection import HEAD_LIMIT, INTERIM_LIMIT
from mcp_proxy.wire import Fields
from tests.tools.http1 import chunk
from tests.tools.receiver import RecordingReceiver
from tests.unit.backline import REQUEST, REQUEST_BYTES, Line, essence, ok
from tests.unit.fakes import settle

LENGTH = b"Content-Length: 5"
CHUNKED = b"Transfer-Encoding: chunked"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"

Case = tuple[bytes, int, bytes, int | None, bool]
"""Wire, status, body, length, and whether the connection may be used again."""

GOOD: dict[str, Case] = {
    "length": (ok(LENGTH), 200, b"hello", 5, True),
    "length zero": (ok(b"Content-Length: 0", body=b""), 200, b"", 0, True),
    "length with leading zeros": (ok(b"Content-Length: 0005"), 200, b"hello", 5, True),
    "chunked": (ok(CHUNKED, body=b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), 200, b"hello", None, True),
    "chunked, empty": (ok(CHUNKED, body=b"0\r\n\r\n"), 200, b"", None, True),
    "chunked with trailers": (
        ok(CHUNKED, body=b"5\r\nhello\r\n0\r\nX-Evil: y\r\nMcp-Session-Id: z\r\n\r\n"),
        200,
        b"hello",
        None,
        True,
    ),
    "chunked with extensions": (ok(CHUNKED, body=b"5;a=b\r\nhello\r\n0;c\r\n\r\n"), 200, b"hello", None, True),
    "chunks that look like an end": (
        ok(CHUNKED, body=chunk(b"0\r\n\r\n" + EVIL) + b"0\r\n\r\n"),
        200,
        b"0\r\n\r\n" + EVIL,
        None,
        True,
    ),
    "Chunked in capitals": (ok(b"TRANSFER-ENCODING: CHUNKED", body=HELLO), 200, b"hello", None, True),
    "body that looks like a response": (
        ok(b"Content-Length: %d" % len(EVIL), body=EVIL),
        200,
        EVIL,
        len(EVIL),
        True,
    ),
    "connection close": (ok(LENGTH, b"Connection: close"), 200, b"hello", 5, False),
    "chunked, connection close": (ok(CHUNKED, b"Connection: close", body=HELLO), 200, b"hello", None, False),
    "HTTP/1.0": (ok(LENGTH).replace(b"1.1", b"1.0"), 200, b"hello", 5, False),
    "HTTP/1.0 that stays": (
        ok(LENGTH, b"Connection: keep-alive").replace(b"1.1", b"1.0"),
        200,
        b"hello",
        5,
        True,
    ),
    "204": (ok(body=b"", status=b"204 No Content"), 204, b"", 0, True),
    "204 with length zero": (ok(b"Content-Length: 0", body=b"", status=b"204 No"), 204, b"", 0, True),
    "204 with a length": (ok(LENGTH, body=b"", status=b"204 No"), 204, b"", 0, False),
    "204 with a coding": (ok(CHUNKED, body=b"", status=b"204 No"), 204, b"", 0, False),
    "304": (ok(body=b"", status=b"304 Not Modified"), 304, b"", 0, True),
    "304 with a length": (ok(LENGTH, body=b"", status=b"304 Not Modified"), 304, b"", 0, False),
    "no reason phrase": (b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", 5, True),
    "an interim answer": (EARLY + ok(LENGTH), 200, b"hello", 5, True),
    "interim answers of all kinds": (
        b"HTTP/1.1 100 Continue\r\n\r\n" + EARLY + b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 199 X\r\n\r\n" + ok(LENGTH),
        200,
        b"hello",
        5,
        True,
    ),
    "as many interim answers as allowed": (EARLY * INTERIM_LIMIT + ok(CHUNKED, body=HELLO), 200, b"hello", None, True),
    "an interim answer before a 204": (EARLY + ok(body=b"", status=b"204 No"), 204, b"", 0, True),
    "highest status": (ok(LENGTH, status=b"599 X"), 599, b"hello", 5, True),
}


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


@pytest.mark.parametrize("case", [case for case in GOOD.values() if case[4]], ids=[k for k, c in GOOD.items() if c[4]])
@pytest.mark.parametrize("first", ["length", "chunked", "204", "an interim answer", "length zero"])
async def test_an_answer_on_a_used_connection_is_the_same(
    first: str, case: Case
) -> None:
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
    for cuts in ([], range(len(wire))):
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


BAD = {
    "length and coding": ok(LENGTH, CHUNKED, body=HELLO),
    "coding and length": ok(CHUNKED, LENGTH, body=HELLO),
    "two lengths": ok(LENGTH, LENGTH),
    "two different lengths": ok(LENGTH, b"Content-Length: 6"),
    "list of lengths": ok(b"Content-Length: 5, 5"),
    "signed length": ok(b"Content-Length: +5"),
    "negative length": ok(b"Content-Length: -5"),
    "length with underscore": ok(b"Content-Length: 0_5"),
    "empty length": ok(b"Content-Length:"),
    "length beyond 64 bits": ok(b"Content-Length: " + b"9" * 30),
    "length beyond all bits": ok(b"Content-Length: " + b"9" * 5000),
    "two lengths of a 204": ok(LENGTH, LENGTH, body=b"", status=b"204 No"),
    "two codings": ok(CHUNKED, CHUNKED, body=HELLO),
    "chunked, gzip": ok(b"Transfer-Encoding: chunked, gzip", body=HELLO),
    "gzip, chunked": ok(b"Transfer-Encoding: gzip, chunked", body=HELLO),
    "identity": ok(b"Transfer-Encoding: identity"),
    "xchunked": ok(b"Transfer-Encoding: xchunked", body=HELLO),
    "empty coding": ok(b"Transfer-Encoding:", body=HELLO),
    "chunked in HTTP/1.0": ok(CHUNKED, body=HELLO).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "line feeds": ok(LENGTH).replace(b"\r\n", b"\n"),
    "one line feed": ok(LENGTH + b"\nX: y"),
    "carriage return in a value": ok(LENGTH, b"X: a\rb"),
    "NUL in a value": ok(LENGTH, b"X: a\0b"),
    "folded": ok(LENGTH, b"X: a\r\n b"),
    "space before the colon": ok(LENGTH, b"X : a"),
    "no name": ok(LENGTH, b": a"),
    "HTTP/2.0": ok(LENGTH).replace(b"HTTP/1.1", b"HTTP/2.0"),
    "HTTP/0.9": ok(LENGTH).replace(b"HTTP/1.1", b"HTTP/0.9"),
    "HTTP/1.2": ok(LENGTH).replace(b"HTTP/1.1", b"HTTP/1.2"),
    "status 99": ok(LENGTH, status=b"099 X"),
    "status 600": ok(LENGTH, status=b"600 X"),
    "status 700": ok(LENGTH, status=b"700 X"),
    "status 2000": ok(LENGTH, status=b"2000 X"),
    "status 20": ok(LENGTH, status=b"20 X"),
    "101": ok(b"Connection: Upgrade", b"Upgrade: x", status=b"101 Switching"),
    "101 without Upgrade": ok(status=b"101 Switching"),
    "101 behind an interim answer": EARLY + ok(b"Connection: Upgrade", b"Upgrade: x", status=b"101 Switching"),
    "too many interim answers": EARLY * (INTERIM_LIMIT + 1) + ok(LENGTH),
    "a request": REQUEST_BYTES,
    "another protocol": b"SSH-2.0-OpenSSH_9\r\n\r\n",
    "an endless head": ok(b"X: " + b"x" * HEAD_LIMIT)[:-9],
    "a head beyond its limit": ok(LENGTH, b"X: " + b"x" * HEAD_LIMIT),
    "empty lines and nothing": b"\r\n" * 10 + b"x",
}
BAD_BODY = {
    "chunk size not a number": b"xyz\r\nhello\r\n0\r\n\r\n",
    "chunk longer than its size": b"4\r\nhello\r\n0\r\n\r\n",
    "chunk size beyond 64 bits": b"f" * 17 + b"\r\nhello",
    "negative chunk size": b"-5\r\nhello\r\n0\r\n\r\n",
    "line feeds": b"5\nhello\n0\n\n",
    "a length as trailer": b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n",
    "folded trailer": b"5\r\nhello\r\n0\r\nX: y\r\n z\r\n\r\n",
}


@pytest.mark.parametrize("wire", BAD.values(), ids=BAD.keys())
async def test_a_bad_head_is_an_error_however_it_is_cut_and_nothing_of_it_is_delivered(wire: bytes) -> None:
    every = range(len(wire)) if len(wire) < 1000 else range(0, len(wire), 997)
    for cuts in ([], every, [1], [len(wire) - 1]):
        line = Line()
        receiver = line.ask()
        line.feed_cut(wire, cuts)
        assert receiver.head is None
        assert receiver.verdict == ("HEAD", "invalid", True, False)
        assert line.transport.fate == "aborted"
        await settle()
        assert (line.owner.gone_count, line.owner.released_count) == (1, 0)


@pytest.mark.parametrize("body", BAD_BODY.values(), ids=BAD_BODY.keys())
async def test_a_bad_body_is_an_error_however_it_is_cut(body: bytes) -> None:
    wire = ok(CHUNKED, body=body)
    for cuts in ([], range(len(wire)), [len(wire) - len(body)]):
        line = Line()
        receiver = line.ask()
        line.feed_cut(wire, cuts)
        assert receiver.verdict == ("BODY", "invalid", True, False)
        assert receiver.body in (b"", b"hello", b"hell", b"h", b"he", b"hel")
        assert line.transport.fate == "aborted"


@pytest.mark.parametrize("wire", [*BAD.values(), *(ok(CHUNKED, body=body) for body in BAD_BODY.values())])
async def test_a_bad_answer_on_a_used_connection_is_not_stale(wire: bytes) -> None:
    line = Line()
    line.ask()
    line.feed(ok(LENGTH))
    receiver = line.ask()
    line.feed(wire)
    assert receiver.verdict is not None
    assert receiver.verdict[1:] == ("invalid", True, False)


# -- broken off --------------------------------------------------------------------------------

CUT_SHORT = {
    "half a body": ok(b"Content-Length: 9"),
    "half a chunk": ok(CHUNKED, body=b"9\r\nhello"),
    "no last chunk": ok(CHUNKED, body=b"5\r\nhello\r\n"),
    "half a last chunk": ok(CHUNKED, body=b"5\r\nhello\r\n0\r\n"),
    "half a trailer": ok(CHUNKED, body=b"5\r\nhello\r\n0\r\nX: y\r\n"),
}


@pytest.mark.parametrize("wire", CUT_SHORT.values(), ids=CUT_SHORT.keys())
@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("is_used", [False, True])
async def test_an_answer_that_breaks_off_is_an_error(wire: bytes, how: str, is_used: bool) -> None:
    line = Line()
    if is_used:
        line.ask()
        line.feed(ok(LENGTH))
    receiver = line.ask()
    line.feed(wire)
    line.transport.peer_finishes() if how == "fin" else line.transport.peer_resets()
    await settle()
    assert (receiver.body, receiver.verdict) == (b"hello", ("BODY", "lost", True, False))
    assert line.owner.gone_count == 1


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_only_a_used_connection_without_any_byte_is_stale(how: str) -> None:
    async def verdict_of(*before: bytes, start: bytes = b"") -> Any:
        line = Line()
        for wire in before:
            line.ask()
            line.feed(wire)
        receiver = line.ask()
        line.feed(*([start] if start else []))
        line.transport.peer_finishes() if how == "fin" else line.transport.peer_resets()
        await settle()
        return receiver.verdict

    assert await verdict_of() == ("HEAD", "lost", True, False)
    assert await verdict_of(ok(LENGTH)) == ("HEAD", "lost", True, True)
    assert await verdict_of(ok(LENGTH), ok(CHUNKED, body=HELLO)) == ("HEAD", "lost", True, True)
    # An interim answer says that the request has arrived.
    assert await verdict_of(ok(LENGTH), start=EARLY) == ("HEAD", "lost", True, False)
    assert await verdict_of(EARLY + ok(LENGTH)) == ("HEAD", "lost", True, True)
    for start in (b"H", b"HTTP/1.1 200 OK\r\nX", EARLY + b"HTTP"):
        assert (await verdict_of(ok(LENGTH), start=start))[3] is False


# -- what is sent ------------------------------------------------------------------------------


async def test_a_request_is_one_write_with_rebuilt_framing() -> None:
    line = Line()
    line.ask()
    assert bytes(line.transport.sent) == REQUEST_BYTES


@pytest.mark.parametrize(
    ("method", "body", "framing"),
    [(b"GET", b"", b""), (b"DELETE", b"", b""), (b"POST", b"", b"content-length: 0\r\n")],
)
async def test_a_length_is_sent_with_every_post_and_every_body(method: bytes, body: bytes, framing: bytes) -> None:
    line = Line()
    line.ask(Outgoing(method, b"/", Fields(), body))
    assert bytes(line.transport.sent) == method + b" / HTTP/1.1\r\nhost: backend.example:80\r\n" + framing + b"\r\n"


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
    data=st.data(),
    watched=st.booleans(),
)
async def test_any_answers_in_any_segments(names: list[str], data: st.DataObject, watched: bool) -> None:
    line = Line(watched=watched)
    for number, name in enumerate(names):
        wire = GOOD[name][0]
        receiver = line.ask(REQUEST)
        line.feed_cut(wire, sorted(data.draw(st.sets(st.integers(1, len(wire)), max_size=6))))
        _, status, body, length, _ = GOOD[name]
        assert essence(receiver)[1:] == (body, True, None)
        assert receiver.head is not None
        assert (receiver.head[0], receiver.head[2]) == (status, length)
        assert line.owner.released_count == number + 1


@settings(max_examples=300, deadline=None)
@given(noise=st.binary(max_size=60), name=st.sampled_from(list(GOOD)), data=st.data())
async def test_damaged_answers_never_hang_crash_or_deliver_more_than_their_framing(
    noise: bytes, name: str, data: st.DataObject
) -> None:
    """The receiver itself checks the order of calls."""
    wire = GOOD[name][0]
    start = data.draw(st.integers(0, len(wire)))
    end = data.draw(st.integers(start, len(wire)))
    damaged = wire[:start] + noise + wire[end:]
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(damaged))), max_size=4)))
    line = Line()
    receiver = line.ask()
    line.feed_cut(damaged, cuts)
    if receiver.head is not None and receiver.head[2] is not None:
        assert len(receiver.body) <= receiver.head[2]
    line.transport.peer_finishes()
    await settle()
    assert receiver.is_over, "at the end of the connection the request is over, too"
    assert line.owner.gone_count == 1
