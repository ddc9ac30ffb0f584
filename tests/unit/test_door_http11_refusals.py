"""What the door refuses, how it says so, and its limits: exactly at, and one above."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from mcp_proxy.downstream.settings import LINGER_LIMIT
from mcp_proxy.wire import Rejection
from tests.unit.doorway import BODY_LIMIT, CHUNKED, Door, ScriptedHandler, chunked, get, post, settings
from tests.unit.fakes import FakeTransport, read_responses, settle

HOST = b"Host: door.example\r\n"
BAD = {
    "length and coding": (post(b"abc", CHUNKED), 400),
    "coding and length": (post(b"abc", framing=CHUNKED + b"\r\nContent-Length: 3"), 400),
    "two codings": (post(b"", framing=CHUNKED + b"\r\n" + CHUNKED), (400, 501)),
    "unknown coding": (post(b"", framing=b"Transfer-Encoding: xchunked"), (400, 501)),
    "identity": (post(b"", framing=b"Transfer-Encoding: identity"), (400, 501)),
    "gzip, chunked": (post(b"", framing=b"Transfer-Encoding: gzip, chunked"), (400, 501)),
    "chunked, gzip": (post(b"", framing=b"Transfer-Encoding: chunked, gzip"), (400, 501)),
    "chunked in HTTP/1.0": (b"POST /mcp HTTP/1.0\r\n" + HOST + CHUNKED + b"\r\n\r\n", (400, 501)),
    "two lengths": (post(b"abc", b"Content-Length: 3"), 400),
    "a list of lengths": (post(b"", framing=b"Content-Length: 3, 3"), 400),
    "signed length": (post(b"", framing=b"Content-Length: +3"), 400),
    "negative length": (post(b"", framing=b"Content-Length: -3"), 400),
    "hexadecimal length": (post(b"", framing=b"Content-Length: 0x3"), 400),
    "no length in the field": (post(b"", framing=b"Content-Length:"), 400),
    "length beyond 64 bits": (post(b"", framing=b"Content-Length: " + b"9" * 5000), 400),
    "length with underscores": (post(b"", framing=b"Content-Length: 1_0"), 400),
    "line feed alone": (b"GET /mcp HTTP/1.1\nHost: x\n\n", 400),
    "line feed at the end alone": (b"GET /mcp HTTP/1.1\r\n" + HOST + b"X: y\n\r\n", 400),
    "carriage return alone": (b"GET /mcp HTTP/1.1\r\n" + HOST + b"X: y\rz\r\n\r\n", 400),
    "NUL in a value": (get(b"X: a\0b"), 400),
    "folded value": (get(b"X: a\r\n b"), 400),
    "space before the colon": (get(b"X : a"), 400),
    "no name": (get(b": a"), 400),
    "space in front of the first field": (b"GET /mcp HTTP/1.1\r\n X: a\r\n" + HOST + b"\r\n", 400),
    "HTTP/2.0": (get(version=b"HTTP/2.0"), (400, 505)),
    "HTTP/0.9": (b"GET /mcp\r\n\r\n", (400, 505)),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 505)),
    "CONNECT": (get(method=b"CONNECT", target=b"door.example:443"), 405),
    "CONNECT with a body": (
        b"CONNECT x:1 HTTP/1.1\r\n" + HOST + b"Content-Length: 30\r\n\r\n" + get(target=b"/forged"),
        405,
    ),
    "an asterisk": (get(target=b"*"), 400),
    "another host in the target": (get(target=b"http://evil.example/mcp"), 400),
    "user information in the target": (get(target=b"http://a@door.example/mcp"), 400),
    "another scheme in the target": (get(target=b"ftp://door.example/mcp"), 400),
    "an authority without a path": (get(target=b"http://door.example"), 400),
    "a space in the target": (get(target=b"/mcp x"), 400),
    "bytes outside ASCII in the target": (get(target=b"/\xff"), 400),
    "GET with a body": (get(b"Content-Length: 1") + b"x", 400),
    "DELETE with a chunked body": (get(CHUNKED, method=b"DELETE") + chunked(b"x"), 400),
    "an unknown expectation": (post(b"", b"Expect: 200-ok"), 417),
    "chunk size not a number": (post(b"x\r\n", framing=CHUNKED), 400),
    "chunk size with a prefix": (post(b"0x5\r\nhello\r\n0\r\n\r\n", framing=CHUNKED), 400),
    "negative chunk size": (post(b"-5\r\nhello\r\n0\r\n\r\n", framing=CHUNKED), 400),
    "chunk size beyond 64 bits": (post(b"f" * 17 + b"\r\n", framing=CHUNKED), 400),
    "a chunk longer than its size": (post(b"4\r\nhello\r\n0\r\n\r\n", framing=CHUNKED), 400),
    "line feeds in chunked framing": (post(b"5\nhello\n0\n\n", framing=CHUNKED), 400),
    "line feed in a chunk extension": (post(b"5;a\nb\r\nhello\r\n0\r\n\r\n", framing=CHUNKED), 400),
    "a length among the trailers": (
        post(chunked(b"a", trailers=b"Content-Length: 5\r\n"), framing=CHUNKED),
        400,
    ),
}


@pytest.mark.parametrize(("wire", "status"), BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("is_cut", [False, True], ids=["whole", "per byte"])
async def test_a_bad_request_is_answered_once_and_served_never(
    wire: bytes, status: int | tuple[int, ...], is_cut: bool
) -> None:
    door = Door()
    door.feed_cut(wire, range(len(wire)) if is_cut else [])
    answers = [answer for answer in door.responses() if answer.status != 100]
    assert len(answers) == 1
    assert answers[0].status in (status if isinstance(status, tuple) else (status,))
    assert answers[0].closes
    assert door.served == []
    assert len(door.handler.refused) == 1
    assert door.transport.has_sent_eof, "the answer must be readable before the close"
    door.feed(post(b"x"))
    assert door.served == []


@pytest.mark.parametrize("before", [post(b"a"), get(), post(chunked(b"a"), framing=CHUNKED)])
async def test_a_bad_request_behind_a_good_one_changes_nothing_for_that(before: bytes) -> None:
    for name, (wire, _) in BAD.items():
        door = Door()
        door.feed(before + wire)
        await door.settled()
        assert (len(door.served), len(door.handler.refused)) == (1, 1), name


@pytest.mark.parametrize("target", [b"http://door.example/mcp?q=1", b"HTTP://door.example/mcp?q=1"])
async def test_an_absolute_target_on_this_host_is_its_path(target: bytes) -> None:
    door = Door()
    door.feed(get(target=target))
    assert door.handler.essences == [(b"GET", b"/mcp?q=1", b"")]


async def test_an_absolute_target_without_a_host_is_refused() -> None:
    door = Door()
    door.feed(b"GET http://door.example/mcp HTTP/1.1\r\n\r\n")
    assert (door.served, door.response().status) == ([], 400)


# -- expectations ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"100-continue", b"100-Continue"])
async def test_the_client_is_told_to_continue_once_the_head_is_admitted(value: bytes) -> None:
    door = Door()
    wire = post(b"hello", b"Expect: " + value)
    door.feed(wire[:-5])
    assert door.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    door.feed(wire[-5:])
    assert [answer.status for answer in door.responses()] == [100, 200]
    door.feed(wire[:-5])
    assert [answer.status for answer in door.responses()] == [100, 200, 100]


@pytest.mark.parametrize(
    "wire",
    [
        post(b"", b"Expect: 100-continue"),
        get(b"Expect: 100-continue"),
        post(b"hello", b"Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
    ids=["no body", "GET", "HTTP/1.0"],
)
async def test_nobody_is_told_to_continue_in_vain(wire: bytes) -> None:
    door = Door()
    door.feed(wire)
    assert [answer.status for answer in door.responses(wire[:4].strip())] == [200]


async def test_a_refused_head_is_not_told_to_continue() -> None:
    handler = ScriptedHandler()
    handler.judge = lambda request: Rejection("unsupported_media_type")
    door = Door(handler)
    door.feed(post(b"hello", b"Expect: 100-continue")[:-5])
    assert (door.response().status, door.response().closes) == (415, True)


# -- early answers -----------------------------------------------------------------------------


async def test_an_early_answer_is_sent_before_the_body_and_the_rest_is_dropped() -> None:
    handler = ScriptedHandler()
    handler.judge = lambda request: Rejection("not_found")
    door = Door(handler)
    door.feed(post(b"x" * 50_000)[:200])
    assert (door.response().status, door.response().closes) == (404, True)
    assert door.transport.has_sent_eof
    assert not door.transport.is_closing(), "a close with unread bytes would reset the connection"
    door.feed(b"x" * (LINGER_LIMIT // 2))
    assert door.transport.fate == ""
    door.transport.peer_finishes()
    await settle()
    assert door.transport.lost == [None]
    assert door.process.connections == 0


async def test_the_lingering_has_a_limit_in_bytes_and_in_time() -> None:
    for flood, fate in ((LINGER_LIMIT, ""), (LINGER_LIMIT + 1, "aborted")):
        door = Door()
        door.feed(b"garbage\r\n\r\n")
        door.feed(b"x" * flood)
        assert door.transport.fate == fate
    door = Door()
    door.feed(b"garbage\r\n\r\n")
    door.expire()
    assert door.transport.fate == "aborted"


async def test_a_trusted_proxy_may_send_all_of_a_body_that_it_has_accepted() -> None:
    """nginx reads no answer before that, and tells its client 502."""
    for flood, fate in ((BODY_LIMIT + LINGER_LIMIT, ""), (BODY_LIMIT + LINGER_LIMIT + 1, "aborted")):
        door = Door(trusted_proxies=[ip_network("192.0.2.0/24")])
        door.feed(b"garbage\r\n\r\n")
        door.feed(b"x" * flood)
        assert door.transport.fate == fate


async def test_an_early_answer_over_tls_is_not_destroyed_by_a_close_with_unread_bytes() -> None:
    door = Door(transport=FakeTransport(tls=True))
    door.feed(post(b"x" * (BODY_LIMIT + 1))[:200])
    assert door.response().status == 413
    assert not door.transport.is_closing()
    door.expire()
    assert door.transport.is_closing()


async def test_refusals_name_the_request_when_its_head_could_be_read() -> None:
    for wire in (
        post(b"zz\r\n", framing=CHUNKED),
        post(chunked(b"x" * (BODY_LIMIT + 1)), framing=CHUNKED),
        post(b"abc")[:-1],
    ):
        door = Door()
        door.feed(wire)
        door.expire()
        ((request, _),) = door.handler.refused
        assert request is not None
        assert request.target == b"/mcp"


# -- connections -------------------------------------------------------------------------------


async def test_connections_above_the_limit_are_told_so_and_the_others_are_served() -> None:
    handler = ScriptedHandler()
    process = settings(handler, connections_limit=2)
    first, second, third = (Door(handler, process=process) for _ in range(3))
    third.feed(post(b"3"))
    assert (third.response().status, third.response().reason) == (503, "overloaded")
    first.feed(post(b"1"))
    second.feed(post(b"2"))
    assert [first.response().status, second.response().status] == [200, 200]


async def test_a_flood_of_connections_is_cut_off_and_counted_back() -> None:
    handler = ScriptedHandler()
    process = settings(handler, connections_limit=1)
    doors = [Door(handler, process=process) for _ in range(100)]
    await settle()
    cut_off = [door for door in doors if door.transport.fate == "aborted"]
    assert 0 < len(cut_off) < 99
    assert process.connections == 100 - len(cut_off)
    for door in doors:
        door.transport.peer_resets()
    await settle()
    assert process.connections == 0
    assert not any(door.connections for door in doors)
    door = Door(handler, process=process)
    door.feed(post(b"x"))
    assert [answer.status for answer in read_responses(door.sent)] == [200]
