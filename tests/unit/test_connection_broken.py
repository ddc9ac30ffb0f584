"""How a connection to a backend reads answers that are wrong, damaged or broken off."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.backline import Line, ok
from tests.unit.fakes import places, settle
from tests.unit.responses import BAD, BAD_BODY, CHUNKED, EARLY, GOOD, HELLO, LENGTH


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


@settings(max_examples=300, deadline=None)
@given(
    noise=st.binary(max_size=60),
    name=st.sampled_from(list(GOOD)),
    edges=st.tuples(st.integers(0, 1000), st.integers(0, 1000)),
    cuts=st.lists(st.integers(1, 1000), max_size=4),
)
async def test_damaged_answers_never_hang_crash_or_deliver_more_than_their_framing(
    noise: bytes, name: str, edges: tuple[int, int], cuts: list[int]
) -> None:
    """The receiver itself checks the order of calls."""
    wire = GOOD[name][0]
    start, end = sorted(edge % (len(wire) + 1) for edge in edges)
    damaged = wire[:start] + noise + wire[end:]
    line = Line()
    receiver = line.ask()
    line.feed_cut(damaged, places(cuts, len(damaged)))
    if receiver.head is not None and receiver.head[2] is not None:
        assert len(receiver.body) <= receiver.head[2]
    line.transport.peer_finishes()
    await settle()
    assert receiver.is_over, "at the end of the connection the request is over, too"
    assert line.owner.gone_count == 1
