"""Requests that could mean two things: they are refused, and no backend hears of them (F1-F4, F7).

Every body holds a whole second request, so that a proxy that disagrees with its own reading of the
length would deliver it.
"""

from __future__ import annotations

import pytest

from tests.tools.client import call, post
from tests.wire.rig import Rig

SMUGGLED = post(call(666))
INSIDE = b"0\r\n\r\n" + SMUGGLED


def framed(*fields: str, version: str = "HTTP/1.1", body: bytes = INSIDE) -> bytes:
    lines = [f"POST /mcp {version}", "Host: localhost", "Content-Type: application/json", *fields]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


F1 = {
    "length then chunked": framed("Content-Length: 5", "Transfer-Encoding: chunked"),
    "chunked then length": framed("Transfer-Encoding: chunked", "Content-Length: 5"),
    "chunked twice": framed("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "chunked twice in one field": framed("Transfer-Encoding: chunked, chunked"),
    "xchunked": framed("Transfer-Encoding: xchunked"),
    "identity": framed("Transfer-Encoding: identity"),
    "identity beside length": framed("Transfer-Encoding: identity", "Content-Length: 5"),
    "identity behind chunked": framed("Transfer-Encoding: chunked, identity"),
    "gzip before chunked": framed("Transfer-Encoding: gzip, chunked"),
    "gzip and chunked in two fields": framed("Transfer-Encoding: gzip", "Transfer-Encoding: chunked"),
    "empty coding": framed("Transfer-Encoding:"),
    "coding with a parameter": framed("Transfer-Encoding: chunked;q=1"),
    "vertical tab before chunked": framed("Transfer-Encoding: \x0bchunked"),
    "chunked in HTTP/1.0": framed("Transfer-Encoding: chunked", version="HTTP/1.0"),
}


@pytest.mark.parametrize("raw", F1.values(), ids=F1.keys())
async def test_a_transfer_coding_other_than_chunked_alone_is_refused(rig: Rig, raw: bytes) -> None:
    await rig.refused(raw, 400, 501)


F2 = {
    "twice the same": framed("Content-Length: 5", "Content-Length: 5"),
    "twice different": framed("Content-Length: 5", "Content-Length: 6"),
    "list": framed("Content-Length: 5, 5"),
    "plus": framed("Content-Length: +2"),
    "minus": framed("Content-Length: -1"),
    "empty": framed("Content-Length:"),
    "hexadecimal": framed("Content-Length: 0x2"),
    "beyond 64 bits": framed("Content-Length: 18446744073709551618"),
    "underscore": framed("Content-Length: 0_5"),
    "two numbers": framed("Content-Length: 5 5"),
    "not a digit of ASCII": framed("Content-Length: \xb2"),
}


@pytest.mark.parametrize("raw", F2.values(), ids=F2.keys())
async def test_a_content_length_other_than_one_plain_number_is_refused(rig: Rig, raw: bytes) -> None:
    await rig.refused(raw, 400)


def lined(line: bytes, *, end: bytes = b"\r\n", start: bytes = b"POST /mcp HTTP/1.1") -> bytes:
    """A request with one line of bytes among its fields, or with other line ends."""
    lines = [start, b"Host: localhost", line, b"Content-Type: application/json", b"Content-Length: 5"]
    return end.join(lines) + end + end + INSIDE


F3 = {
    "bare LF everywhere": lined(b"A: b", end=b"\n"),
    "bare LF behind a field": lined(b"A: b\nX: y"),
    "bare CR in a value": lined(b"A: b\rX: y"),
    "CR CR LF": lined(b"A: b\r"),
    "NUL in a value": lined(b"A: b\0c"),
    "NUL in a name": lined(b"A\0: b"),
    "control character in a value": lined(b"A: b\x01c"),
    "DEL in a value": lined(b"A: b\x7fc"),
    "folded value": lined(b"A: b\r\n c"),
    "space before the colon": lined(b"Content-Length : 5"),
    "tab before the colon": lined(b"A\t: b"),
    "empty name": lined(b": b"),
    "name that is no token": lined(b"na(me: b"),
    "no colon": lined(b"name"),
    "space before the first field": lined(b"A: b", start=b"POST /mcp HTTP/1.1\r\n Host: localhost"),
    "two spaces in the request line": lined(b"A: b", start=b"POST  /mcp HTTP/1.1"),
    "tab in the request line": lined(b"A: b", start=b"POST\t/mcp\tHTTP/1.1"),
    "no version": lined(b"A: b", start=b"POST /mcp"),
    "lower-case method": lined(b"A: b", start=b"post /mcp HTTP/1.1"),
    "space in the target": lined(b"A: b", start=b"POST /mcp HTTP/1.1 HTTP/1.1"),
    "byte beyond ASCII in the target": lined(b"A: b", start=b"POST /mcp?\xe9 HTTP/1.1"),
}


@pytest.mark.parametrize("raw", F3.values(), ids=F3.keys())
async def test_a_head_that_breaks_the_grammar_is_refused(rig: Rig, raw: bytes) -> None:
    await rig.refused(raw, 400, 405, 501, 505)


def chunks(body: bytes) -> bytes:
    return framed("Transfer-Encoding: chunked", body=body)


TEXT = call(5)
SIZE = b"%x" % len(TEXT)
LAST = b"0\r\n\r\n"

F4 = {
    "extension ended by LF": chunks(SIZE + b";a\n" + TEXT + b"\r\n" + LAST),
    "extension with CR": chunks(SIZE + b";a\rb\r\n" + TEXT + b"\r\n" + LAST),
    "size ended by LF": chunks(SIZE + b"\n" + TEXT + b"\r\n" + LAST),
    "0x before the size": chunks(b"0x" + SIZE + b"\r\n" + TEXT + b"\r\n" + LAST),
    "data longer than the size": chunks(SIZE + b"\r\n" + TEXT + b"XX\r\n" + LAST),
    "LF behind the data": chunks(SIZE + b"\r\n" + TEXT + b"\n" + LAST),
    "nothing behind the data": chunks(SIZE + b"\r\n" + TEXT + LAST),
    "size beyond 64 bits": chunks(b"f" * 17 + b"\r\n" + TEXT + b"\r\n" + LAST),
    "negative size": chunks(b"-" + SIZE + b"\r\n" + TEXT + b"\r\n" + LAST),
    "space before the size": chunks(b" " + SIZE + b"\r\n" + TEXT + b"\r\n" + LAST),
    "space inside the size": chunks(b"1 " + SIZE + b"\r\n" + TEXT + b"\r\n" + LAST),
    "no size": chunks(b"\r\n" + TEXT + b"\r\n" + LAST),
    "LF behind the last chunk": chunks(SIZE + b"\r\n" + TEXT + b"\r\n0\n\n"),
    "bad trailer": chunks(SIZE + b"\r\n" + TEXT + b"\r\n0\r\nA : b\r\n\r\n"),
    "Content-Length as trailer": chunks(SIZE + b"\r\n" + TEXT + b"\r\n0\r\nContent-Length: 9\r\n\r\n"),
    "Transfer-Encoding as trailer": chunks(SIZE + b"\r\n" + TEXT + b"\r\n0\r\nTransfer-Encoding: a\r\n\r\n"),
}


@pytest.mark.parametrize("raw", F4.values(), ids=F4.keys())
async def test_a_chunked_body_that_breaks_the_grammar_reaches_no_backend(rig: Rig, raw: bytes) -> None:
    await rig.refused(raw + SMUGGLED, 400)


def headed(start: str, *fields: str) -> bytes:
    body = call(7)
    lines = [start, *fields, "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


OWN = "Host: localhost"
F7 = {
    "no Host": (headed("POST /mcp HTTP/1.1"), "POST"),
    "two Hosts": (headed("POST /mcp HTTP/1.1", OWN, OWN), "POST"),
    "two different Hosts": (headed("POST /mcp HTTP/1.1", OWN, "Host: evil"), "POST"),
    "empty Host": (headed("POST /mcp HTTP/1.1", "Host:"), "POST"),
    "Host with userinfo": (headed("POST /mcp HTTP/1.1", "Host: a b@c/d"), "POST"),
    "Host with a port that is none": (headed("POST /mcp HTTP/1.1", "Host: localhost:evil"), "POST"),
    "Host as a list": (headed("POST /mcp HTTP/1.1", "Host: localhost, evil"), "POST"),
    "absolute target of another authority": (headed("POST http://evil/mcp HTTP/1.1", OWN), "POST"),
    "absolute target without a Host": (headed("POST http://localhost/mcp HTTP/1.1"), "POST"),
    "absolute target with userinfo": (headed("POST http://a@localhost/mcp HTTP/1.1", OWN), "POST"),
    "asterisk": (headed("GET * HTTP/1.1", OWN), "GET"),
    "asterisk with POST": (headed("POST * HTTP/1.1", OWN), "POST"),
    "CONNECT to the endpoint": (headed("CONNECT /mcp HTTP/1.1", OWN), "CONNECT"),
    "CONNECT to an authority": (headed("CONNECT localhost:80 HTTP/1.1", "Host: localhost:80"), "CONNECT"),
    "TRACE": (headed("TRACE /mcp HTTP/1.1", OWN), "TRACE"),
    "QUERY": (headed("QUERY /mcp HTTP/1.1", OWN), "QUERY"),
    "HTTP/2.0": (headed("POST /mcp HTTP/2.0", OWN), "POST"),
    "HTTP/1.2": (headed("POST /mcp HTTP/1.2", OWN), "POST"),
    "HTTP/0.9": (headed("POST /mcp HTTP/0.9", OWN), "POST"),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED, "POST"),
    "RTSP": (headed("DESCRIBE /mcp RTSP/1.0", OWN), "DESCRIBE"),
    "RTSP method": (headed("DESCRIBE /mcp HTTP/1.1", OWN), "DESCRIBE"),
    "fragment": (headed("POST /mcp#x HTTP/1.1", OWN), "POST"),
    "authority as path": (headed("POST //evil/mcp HTTP/1.1", OWN), "POST"),
    "TLS handshake": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + SMUGGLED, "POST"),
}


@pytest.mark.parametrize(("raw", "method"), F7.values(), ids=F7.keys())
async def test_a_target_host_method_or_version_that_is_not_ours_is_refused(
    rig: Rig, raw: bytes, method: str
) -> None:
    await rig.refused(raw, 400, 404, 405, 421, 501, 505, method=method)


@pytest.mark.parametrize(
    "target",
    ["/mcp/", "/Mcp", "/mcp/../mcp", "/./mcp", "/%6dcp", "/mcp%00", "/mcp;x", "/\\mcp", "/", "/mcp%2f"],
)
async def test_a_path_is_matched_byte_for_byte(rig: Rig, target: str) -> None:
    client = await rig.client()
    answer = await client.ask(post(call(), target=target))

    assert (answer.status, answer.reason) == (404, "not_found")
    assert rig.taken() == []


@pytest.mark.parametrize(
    ("start", "host"),
    [
        ("POST http://localhost/mcp HTTP/1.1", "localhost"),
        ("POST http://localhost:99/mcp HTTP/1.1", "localhost:99"),
        ("POST HTTP://LocalHost/mcp HTTP/1.1", "localhost"),
    ],
)
async def test_an_absolute_target_of_the_same_authority_is_served_or_refused_whole(
    rig: Rig, start: str, host: str
) -> None:
    client = await rig.client()
    answer = await client.ask(headed(start, f"Host: {host}"))
    seen = rig.taken()

    if answer.status == 200:
        assert [(one.target, one.body) for one in seen] == [(b"/mcp", call(7))]
    else:
        assert (answer.status, seen) == (400, [])


@pytest.mark.parametrize("coding", ["chunked", "Chunked", "CHUNKED"])
async def test_the_name_of_the_coding_has_no_case(rig: Rig, coding: str) -> None:
    client = await rig.client()
    body = b"%b\r\n%b\r\n%b" % (SIZE, TEXT, LAST)
    answer = await client.ask(framed(f"Transfer-Encoding: {coding}", body=body))

    assert (answer.status, rig.backend.take_one().body) == (200, TEXT)


@pytest.mark.parametrize("zeros", ["000%d", "%d"])
async def test_a_length_is_sent_on_as_a_number(rig: Rig, zeros: str) -> None:
    client = await rig.client()
    answer = await client.ask(framed("Content-Length: " + zeros % len(TEXT), body=TEXT))

    assert answer.status == 200
    assert rig.backend.take_one().head.all("content-length") == [b"%d" % len(TEXT)]
