"""The door cuts a byte stream into requests, however the network cuts it into segments."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.doorway import BODY_LIMIT, CHUNKED, Door, ScriptedHandler, chunked, get, post
from tests.unit.fakes import places

FAKE_END = b"0\r\n\r\nPOST /forged HTTP/1.1\r\nHost: door.example\r\nContent-Length: 0\r\n\r\n"
"""The end of a chunked body and a request, as data."""

UPGRADE = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__")

GOLDEN: dict[str, tuple[bytes, list[tuple[bytes, bytes, bytes]]]] = {
    "body by length": (post(b'{"a":1}'), [(b"POST", b"/mcp", b'{"a":1}')]),
    "no body": (get(), [(b"GET", b"/mcp", b"")]),
    "length zero": (post(b""), [(b"POST", b"/mcp", b"")]),
    "body that looks like a request": (
        post(get(target=b"/forged") * 2),
        [(b"POST", b"/mcp", get(target=b"/forged") * 2)],
    ),
    "chunked": (post(chunked(b"hel", b"lo"), framing=CHUNKED), [(b"POST", b"/mcp", b"hello")]),
    "chunked, empty": (post(chunked(), framing=CHUNKED), [(b"POST", b"/mcp", b"")]),
    "chunked with trailers": (
        post(chunked(b"hello", trailers=b"Authorization: x\r\nHost: evil\r\n"), framing=CHUNKED),
        [(b"POST", b"/mcp", b"hello")],
    ),
    "chunked with extensions": (
        post(chunked(b"hello", b"!", extension=b";a=b"), framing=CHUNKED),
        [(b"POST", b"/mcp", b"hello!")],
    ),
    "chunks full of line ends": (
        post(chunked(b"\r\n\r\n", b"\r\n\r\n\r\n", b"\r", b"\n\r\n", FAKE_END), framing=CHUNKED),
        [(b"POST", b"/mcp", b"\r\n\r\n" + b"\r\n\r\n\r\n" + b"\r" + b"\n\r\n" + FAKE_END)],
    ),
    "upgrade with a body": (post(b"x" * 20, *UPGRADE), [(b"POST", b"/mcp", b"x" * 20)]),
    "upgrade with a request as body": (
        post(get(target=b"/forged"), *UPGRADE),
        [(b"POST", b"/mcp", get(target=b"/forged"))],
    ),
    "upgrade with a chunked body": (
        post(chunked(get(target=b"/forged"), b"y"), *UPGRADE, framing=CHUNKED),
        [(b"POST", b"/mcp", get(target=b"/forged") + b"y")],
    ),
    "upgrade without a body": (get(*UPGRADE), [(b"GET", b"/mcp", b"")]),
    "empty lines in front": (b"\r\n\r\n" + post(b"a"), [(b"POST", b"/mcp", b"a")]),
    "pipelined": (
        post(b"one") + get(target=b"/two") + post(chunked(b"three\r\n\r\n"), framing=CHUNKED) + post(b"four"),
        [
            (b"POST", b"/mcp", b"one"),
            (b"GET", b"/two", b""),
            (b"POST", b"/mcp", b"three\r\n\r\n"),
            (b"POST", b"/mcp", b"four"),
        ],
    ),
    "pipelined behind an upgrade": (
        post(b"one", *UPGRADE) + post(chunked(b"two"), *UPGRADE, framing=CHUNKED) + post(b"three"),
        [(b"POST", b"/mcp", b"one"), (b"POST", b"/mcp", b"two"), (b"POST", b"/mcp", b"three")],
    ),
    "repeated heads": (
        post(b"one") + post(b"seven..") + post(b"x" * 12) + post(b"four"),
        [(b"POST", b"/mcp", body) for body in (b"one", b"seven..", b"x" * 12, b"four")],
    ),
}


def check(door: Door, expected: list[tuple[bytes, bytes, bytes]]) -> None:
    assert door.handler.essences == expected
    assert door.handler.refused == []
    answers = door.responses(*(method for method, _, _ in expected))
    assert [(answer.status, answer.body, answer.framing) for answer in answers] == [
        (200, body, "whole") for _, _, body in expected
    ]
    assert not door.transport.is_closing()


@pytest.mark.parametrize(("wire", "expected"), GOLDEN.values(), ids=GOLDEN.keys())
async def test_one_segment(wire: bytes, expected: list[tuple[bytes, bytes, bytes]]) -> None:
    door = Door()
    door.feed(wire)
    check(await door.settled(), expected)


@pytest.mark.parametrize(("wire", "expected"), GOLDEN.values(), ids=GOLDEN.keys())
async def test_a_segment_per_byte(wire: bytes, expected: list[tuple[bytes, bytes, bytes]]) -> None:
    door = Door()
    door.feed_cut(wire, range(len(wire)))
    check(await door.settled(), expected)


@pytest.mark.parametrize(("wire", "expected"), GOLDEN.values(), ids=GOLDEN.keys())
async def test_two_segments_cut_anywhere(wire: bytes, expected: list[tuple[bytes, bytes, bytes]]) -> None:
    for cut in range(1, len(wire)):
        door = Door()
        door.feed_cut(wire, [cut])
        check(await door.settled(), expected)


@pytest.mark.parametrize(("wire", "expected"), GOLDEN.values(), ids=GOLDEN.keys())
async def test_the_same_bytes_again_on_the_same_connection(
    wire: bytes, expected: list[tuple[bytes, bytes, bytes]]
) -> None:
    door = Door()
    for cut in (0, len(wire) // 2, len(wire) - 1, 0):
        door.feed_cut(wire, [cut])
        await door.settled()
    check(door, expected * 4)


_bodies = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from([b"\r", b"\n", b"0", b"\r\n\r\n", b"a", FAKE_END]), max_size=12).map(b"".join),
)


@st.composite
def _requests(draw: st.DrawFn) -> tuple[bytes, tuple[bytes, bytes, bytes]]:
    fields = draw(st.sampled_from([(), UPGRADE, (b"X-One: 1",), (b"Connection: keep-alive",)]))
    target = draw(st.sampled_from([b"/mcp", b"/mcp?x=1"]))
    kind = draw(st.sampled_from(["get", "length", "length", "chunked"]))
    if kind == "get":
        return get(*fields, target=target), (b"GET", target, b"")
    if kind == "length":
        body = draw(_bodies)
        return post(body, *fields, target=target), (b"POST", target, body)
    chunks = draw(st.lists(_bodies.filter(bool), max_size=4))
    trailers = draw(st.sampled_from([b"", b"X-T: 1\r\n", b"Host: evil\r\nAuthorization: x\r\n"]))
    extension = draw(st.sampled_from([b"", b";a", b';a="b c"']))
    wire = post(
        chunked(*chunks, trailers=trailers, extension=extension), *fields, target=target, framing=CHUNKED
    )
    return wire, (b"POST", target, b"".join(chunks))


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(_requests(), min_size=1, max_size=5),
    cuts=st.lists(st.integers(1, 10_000), max_size=12),
    is_slow=st.booleans(),
)
async def test_any_requests_in_any_segments(
    requests: list[tuple[bytes, tuple[bytes, bytes, bytes]]], cuts: list[int], is_slow: bool
) -> None:
    """Whether the answers come at once or only when everything has arrived."""
    wire = b"".join(raw for raw, _ in requests)
    handler = ScriptedHandler()
    if is_slow:
        handler.respond = None
    door = Door(handler)
    door.feed_cut(wire, places(cuts, len(wire)))
    await door.settled()
    if is_slow:
        for number, _ in enumerate(requests):
            assert len(handler.served) == number + 1, "one request at a time"
            served = handler.served[number]
            served.reply.answer(200, [], served.body)
            await door.settled()
    check(door, [essence for _, essence in requests])


@pytest.mark.parametrize(
    "garbage", [b"\0", b"garbage\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"5\r\n"]
)
@pytest.mark.parametrize(
    "before", [post(b"a"), get(), post(chunked(b"a"), framing=CHUNKED)], ids=["length", "none", "chunked"]
)
async def test_garbage_behind_a_request_is_refused_after_its_answer(before: bytes, garbage: bytes) -> None:
    for cut in (0, len(before), len(before) + 1):
        door = Door()
        door.feed_cut(before + garbage, [cut])
        await door.settled()
        assert len(door.served) == 1
        first, second = door.responses(before[:4].strip())
        assert (first.status, second.status, second.closes) == (200, 400, True)
        assert door.transport.has_sent_eof


async def test_the_bytes_behind_a_slow_answer_are_not_looked_at_before_their_turn() -> None:
    handler = ScriptedHandler()
    handler.respond = None
    door = Door(handler)
    door.feed(post(b"one") + b"garbage\r\n\r\n")
    await door.settled()
    assert (len(door.served), door.sent) == (1, b"")
    door.served[0].reply.answer(200, [], b"ok")
    assert door.response().status == 200
    await door.settled()
    assert [answer.status for answer in door.responses()] == [200, 400]


async def test_headers_arrive_as_sent_with_lower_case_names_in_order_and_doubled() -> None:
    door = Door()
    door.feed(post(b"{}", b"X-B:  2 ", b"x-A:1", b"X-b: \t3"))
    assert [pair for pair in door.served[0].request.headers if pair[0].startswith(b"x-")] == [
        (b"x-b", b"2"),
        (b"x-a", b"1"),
        (b"x-b", b"3"),
    ]
    assert (door.served[0].request.peer, door.served[0].request.scheme) == ("192.0.2.7", "http")


async def test_trailers_reach_nobody() -> None:
    for is_cut in (False, True):
        cuts = range(500 if is_cut else 0)
        door = Door()
        door.feed_cut(
            post(chunked(b"a", trailers=b"Authorization: evil\r\nX-Evil: evil\r\n"), framing=CHUNKED), cuts
        )
        (served,) = door.served
        assert not any(b"evil" in value for _, value in served.request.headers)


async def test_a_head_that_is_repeated_is_judged_anew_by_everything_that_is_not_its_length() -> None:
    """Requests that differ from the one before in one byte, or in framing only, are themselves."""
    first = post(b"12345", b"X-One: 1")
    variants = [
        post(b"12345", b"X-One: 2"),
        post(b"12345", b"X-One: 1", target=b"/mcq"),
        post(b"12345", b"X-One: 1", b"X-Two: 2"),
        post(b"12345"),
        post(b"123456789" * 11, b"X-One: 1"),
        post(b"", b"X-One: 1"),
        post(chunked(b"12345"), b"X-One: 1", framing=CHUNKED),
        get(b"X-One: 1"),
    ]
    for order in itertools.permutations(variants, 2):
        door = Door()
        for wire in (first, order[0], first, order[1], first):
            door.feed(wire)
        alone = Door()
        seen = []
        for wire in (first, order[0], first, order[1], first):
            alone = Door()
            alone.feed(wire)
            seen.append((alone.served[0].essence, _telling(alone)))
        assert [(served.essence, _pairs(served.request.headers)) for served in door.served] == seen


def _telling(door: Door) -> list[tuple[bytes, bytes]]:
    return _pairs(door.served[0].request.headers)


def _pairs(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Content-Length is the door's own business."""
    return [pair for pair in headers if pair[0] != b"content-length"]


async def test_what_comes_behind_the_last_request_of_a_connection_is_not_looked_at() -> None:
    """In its segment, in a later one, and when the answer takes its time."""
    last = post(b"last", b"Connection: close")
    for segments in ([last + post(b"more")], [last, post(b"more")], [last + b"\0garbage"]):
        for is_slow in (False, True):
            handler = ScriptedHandler()
            if is_slow:
                handler.respond = None
            door = Door(handler)
            door.feed(*segments)
            if is_slow:
                door.served[0].reply.answer(200, [], b"last")
            await door.settled()
            assert [served.body for served in door.served] == [b"last"]
            assert (door.response().body, door.handler.refused) == (b"last", [])


async def test_bytes_that_arrive_just_before_the_turn_of_a_queued_request_are_its_rest() -> None:
    handler = ScriptedHandler()
    handler.respond = None
    door = Door(handler)
    second = post(b"second")
    door.feed(post(b"first") + second[:30])
    door.served[0].reply.answer(200, [], b"")
    door.feed(second[30:] + post(b"third"))
    await door.settled()
    assert [served.body for served in door.served] == [b"first", b"second"]
    door.served[1].reply.answer(200, [], b"")
    await door.settled()
    assert [served.body for served in door.served] == [b"first", b"second", b"third"]


@pytest.mark.parametrize(
    "field", [b"Connection: close, Upgrade", b"Connection: Upgrade\r\nConnection: Close"]
)
async def test_a_declined_upgrade_does_not_hide_that_the_client_closes(field: bytes) -> None:
    for wire in (post(b"body", field, b"Upgrade: h2c"), get(field, b"Upgrade: h2c")):
        door = Door()
        door.feed(wire + post(b"behind"))
        await door.settled()
        (answer,) = door.responses(wire[:4].strip())
        assert (answer.status, answer.closes, len(door.served)) == (200, True, 1)


REPEATED = post(b"12345")


@pytest.mark.parametrize(
    "length", [b"+5", b"-5", b"0x5", b"5 5", b"5, 5", b"5_", b"", b"\t", b"1e0", b"\xb2", b"9" * 30]
)
async def test_a_repeated_head_with_a_bad_length_is_as_bad_as_the_first_time(length: bytes) -> None:
    door = Door()
    door.feed(REPEATED)
    door.feed(REPEATED.replace(b"Content-Length: 5", b"Content-Length: " + length))
    first, second = door.responses()
    assert (first.status, second.status, second.closes, len(door.served)) == (200, 400, True, 1)


async def test_a_repeated_head_has_the_same_limit_of_its_body() -> None:
    for size, status in ((BODY_LIMIT, 200), (BODY_LIMIT + 1, 413)):
        door = Door()
        door.feed(REPEATED, post(b"x" * size))
        assert [answer.status for answer in door.responses()] == [200, status]


@pytest.mark.parametrize("length", [b"5", b"05", b"0005"])
async def test_a_repeated_head_with_another_spelling_of_its_length_is_served(length: bytes) -> None:
    door = Door()
    wire = REPEATED.replace(b"Content-Length: 5", b"Content-Length: " + length)
    door.feed(REPEATED, wire, wire + REPEATED)
    await door.settled()
    assert [served.body for served in door.served] == [b"12345"] * 4
