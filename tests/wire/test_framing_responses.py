"""What backends send that could mean two things or nothing (F9, F10): the client gets a clean 502
or a clean answer, and never a byte of anybody else's."""

from __future__ import annotations

import pytest

from tests.tools.client import call, get, post
from tests.tools.mcp_backend import json_answer, raw_answer
from tests.tools.recording import Conn, Seen
from tests.wire.rig import Rig

JSON = b"Content-Type: application/json\r\n"
OK = b"HTTP/1.1 200 OK\r\n" + JSON
FORGED = OK + b'Content-Length: 14\r\n\r\n{"forged":true}'[:-1]


def ok(*fields: bytes, body: bytes = b"hello") -> bytes:
    return OK + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


CHUNKED = b"5\r\nhello\r\n0\r\n\r\n"
F9 = {
    "length and chunked": ok(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=CHUNKED),
    "chunked and length": ok(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=CHUNKED),
    "length twice the same": ok(b"Content-Length: 5", b"Content-Length: 5"),
    "length twice different": ok(b"Content-Length: 5", b"Content-Length: 6"),
    "length list": ok(b"Content-Length: 5, 5"),
    "length plus": ok(b"Content-Length: +5"),
    "length underscore": ok(b"Content-Length: 0_5"),
    "length empty": ok(b"Content-Length:"),
    "length beyond 64 bits": ok(b"Content-Length: 18446744073709551621"),
    "chunked before gzip": ok(b"Transfer-Encoding: chunked, gzip", body=CHUNKED),
    "gzip before chunked": ok(b"Transfer-Encoding: gzip, chunked", body=CHUNKED),
    "chunked twice": ok(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=CHUNKED),
    "xchunked": ok(b"Transfer-Encoding: xchunked", body=CHUNKED),
    "identity": ok(b"Transfer-Encoding: identity"),
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "CR in a value": ok(b"X: a\rb", b"Content-Length: 5"),
    "NUL in a value": ok(b"X: a\0b", b"Content-Length: 5"),
    "bare LF line ends": ok(b"Content-Length: 5").replace(b"\r\n", b"\n"),
    "bare LF behind a field": OK + b"X: y\nContent-Length: 5\r\n\r\nhello",
    "folded value": ok(b"X: a\r\n b", b"Content-Length: 5"),
    "space before the colon": ok(b"Content-Length : 5"),
    "name that is no token": ok(b"na(me: x", b"Content-Length: 5"),
    "status 700": b"HTTP/1.1 700 X\r\nContent-Length: 5\r\n\r\nhello",
    "status 099": b"HTTP/1.1 099 X\r\nContent-Length: 5\r\n\r\nhello",
    "status 20": b"HTTP/1.1 20 X\r\nContent-Length: 5\r\n\r\nhello",
    "unsolicited 101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nhello",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "garbage": b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
    "a request": post(call()),
    "endless head": OK + b"X: " + b"x" * 70_000,
    "head beyond 64 KiB": OK + b"X: " + b"x" * 70_000 + b"\r\nContent-Length: 5\r\n\r\nhello",
    "head of many fields beyond 64 KiB": ok(*[b"X-%d: 0123456789" % n for n in range(5000)]),
    "a hundred interim answers": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100 + ok(b"Content-Length: 5"),
    "chunk size not hexadecimal": ok(b"Transfer-Encoding: chunked", body=b"xyz\r\nhello\r\n0\r\n\r\n"),
    "chunk longer than its size": ok(b"Transfer-Encoding: chunked", body=b"4\r\nhello\r\n0\r\n\r\n"),
    "chunk size beyond 64 bits": ok(b"Transfer-Encoding: chunked", body=b"f" * 17 + b"\r\nhello"),
}


async def a_502_with_the_id_of_the_request(rig: Rig) -> None:
    """Ask with an id in an unusual spelling, then once more on the same connection."""
    client = await rig.client()
    body = b'{"jsonrpc":"2.0","id":"\\u0061-1","method":"tools/call","params":{"name":"x"}}'
    answer = await client.ask(post(body))
    seen = rig.backend.take_one()

    assert (answer.status, answer.framing) == (502, "clean")
    assert b'"id":"\\u0061-1"' in answer.body
    assert answer.json["error"]["code"] == -32603
    assert answer.json["error"]["data"]["reason"] == answer.reason
    assert answer.head.all("content-type") == [b"application/json"]
    await rig.backend.until(lambda: bool(seen.conn.closed_by) or seen.conn.is_closed)

    rig.script(json_answer())
    assert (await client.ask(post(call(2)))).json["id"] == 2
    assert rig.backend.take_one().conn is not seen.conn


@pytest.mark.parametrize("wire", F9.values(), ids=F9.keys())
async def test_an_answer_with_bad_framing_is_a_502(rig: Rig, wire: bytes) -> None:
    rig.script(raw_answer(wire))
    await a_502_with_the_id_of_the_request(rig)


CUT_SHORT = {
    "nothing": b"",
    "half a status line": b"HTTP/1.1 2",
    "half a head": OK + b"Content-Le",
    "half a body by length": ok(b"Content-Length: 10"),
    "half a chunk": ok(b"Transfer-Encoding: chunked", body=b"9\r\nhello"),
    "no last chunk": ok(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n"),
    "half a last chunk": ok(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n"),
    "interim answer only": b"HTTP/1.1 103 Early Hints\r\n\r\n",
}


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("wire", CUT_SHORT.values(), ids=CUT_SHORT.keys())
async def test_a_json_answer_that_breaks_off_is_a_502(rig: Rig, wire: bytes, how: str) -> None:
    rig.script(raw_answer(wire, then=how))
    await a_502_with_the_id_of_the_request(rig)


F10 = {
    "204 with chunked": (b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n", 204, b""),
    "204 with chunked and a body": (
        b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
        204,
        b"",
    ),
    "204 with a length": (b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", 204, b""),
    "204 with a length and a body": (b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello", 204, b""),
    "304 with a length": (b"HTTP/1.1 304 Not\r\nContent-Length: 5\r\n\r\n", 304, b""),
    "304 with a length and a body": (b"HTTP/1.1 304 Not\r\nContent-Length: 5\r\n\r\nhello", 304, b""),
    "304 with chunked": (b"HTTP/1.1 304 Not\r\nTransfer-Encoding: chunked\r\n\r\n", 304, b""),
    "surplus behind a length": (ok(b"Content-Length: 5") + FORGED, 200, b"hello"),
    "surplus behind the last chunk": (
        ok(b"Transfer-Encoding: chunked", body=CHUNKED) + FORGED,
        200,
        b"hello",
    ),
    "surplus behind no body": (ok(b"Content-Length: 0", body=b"") + FORGED, 200, b""),
    "garbage behind a length": (ok(b"Content-Length: 5") + b"\0\0\0", 200, b"hello"),
    "five interim answers": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 5 + ok(b"Content-Length: 5"),
        200,
        b"hello",
    ),
    "interim answers of three kinds": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 199 X\r\n\r\n"
        + ok(b"Content-Length: 5"),
        200,
        b"hello",
    ),
    "trailers": (
        ok(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\nX-Forged: y\r\n\r\n"),
        200,
        b"hello",
    ),
    "chunk extensions": (
        ok(b"Transfer-Encoding: chunked", body=b"5;a=b\r\nhello\r\n0;c\r\n\r\n"),
        200,
        b"hello",
    ),
    "HTTP/1.0 with a length": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello"),
    "connection: close": (ok(b"Content-Length: 5", b"Connection: close"), 200, b"hello"),
}


@pytest.mark.parametrize("pieces", ["one", "head apart", "last byte apart"])
@pytest.mark.parametrize(("wire", "status", "body"), F10.values(), ids=F10.keys())
async def test_an_odd_answer_is_delivered_clean_and_the_next_one_is_its_own(
    rig: Rig, wire: bytes, status: int, body: bytes, pieces: str
) -> None:
    cut = {"one": 0, "head apart": wire.index(b"\r\n\r\n") + 4, "last byte apart": len(wire) - 1}[pieces]
    rig.script(raw_answer(wire[:cut], wire[cut:]))
    client = await rig.client()
    answer = await client.ask(post(call(1)))
    await rig.backend.until(lambda: not rig.backend.busy)  # the surplus is in the proxy
    rig.script(json_answer())
    following = await client.ask(post(call(2)))

    assert (answer.status, answer.body, answer.framing) == (status, body, "clean")
    assert b"forged" not in answer.head.raw.lower()
    assert answer.interim == []
    assert (following.status, following.json["id"]) == (200, 2)
    assert [one.body for one in rig.taken()] == [call(1), call(2)]


@pytest.mark.parametrize("name", [name for name in F10 if name.startswith(("204", "304"))])
async def test_a_bodyless_answer_that_announces_a_body_is_the_last_of_its_connection(
    rig: Rig, name: str
) -> None:
    """Whoever writes such a head may write the body as well, and later, as the next answer."""
    wire, status, _ = F10[name]
    rig.script(raw_answer(wire[: wire.index(b"\r\n\r\n") + 4]))
    client = await rig.client()
    assert (await client.ask(post(call(1)))).status == status
    first = rig.backend.take_one().conn
    rig.script(json_answer())
    assert (await client.ask(post(call(2)))).json["id"] == 2

    assert rig.backend.take_one().conn is not first


@pytest.mark.parametrize("late", [FORGED, b"x", b"\r\n", b"HTTP/1.1 408 Request Timeout\r\n\r\n"])
async def test_bytes_on_an_idle_connection_end_it_and_answer_nobody(rig: Rig, late: bytes) -> None:
    client = await rig.client()
    await client.ask(post(call(1)))
    first = rig.backend.take_one().conn
    await first.send(late)
    await first.gone()
    following = await client.ask(post(call(2)))

    assert (following.status, following.json["id"]) == (200, 2)
    assert rig.backend.take_one().conn is not first


async def test_a_body_that_ends_with_the_connection_is_whole(rig: Rig) -> None:
    rig.script(raw_answer(OK + b"\r\nhel", b"lo", then="close"))
    client = await rig.client()
    answer = await client.ask(post(call(1)))
    rig.backend.take_one()

    assert (answer.status, answer.body, answer.framing) == (200, b"hello", "clean")


async def test_a_body_that_ends_with_a_reset_is_not_whole(rig: Rig) -> None:
    rig.script(raw_answer(OK + b"\r\nhello", then="reset"))
    await a_502_with_the_id_of_the_request(rig)


async def test_head_is_answered_without_a_body(rig: Rig) -> None:
    """The proxy's own 405 has a body for every other method."""
    client = await rig.client()
    answer = await client.ask(get("Connection: close", method="HEAD"), "HEAD")
    await client.closed()

    assert answer.status == 405
    assert int(answer.head.one("content-length") or 0) > 0
    assert rig.taken() == []


@pytest.mark.parametrize("status", [201, 202, 301, 307, 400, 401, 404, 418, 429, 500, 503, 599])
async def test_any_other_status_passes_with_its_body(rig: Rig, status: int) -> None:
    async def handle(request: Seen, conn: Conn) -> None:
        await request.whole()
        await conn.answer(status, [("Content-Type", "application/json"), ("X-Own", "yes")], b'{"a": 1}')

    rig.script(handle)
    client = await rig.client()
    answer = await client.ask(post(call(1)))
    rig.backend.take_one()

    assert (answer.status, answer.body, answer.reason) == (status, b'{"a": 1}', "")
    assert answer.head.all("x-own") == [b"yes"]
