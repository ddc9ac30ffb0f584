"""The strict reader of the test tools: what it refuses, no proxy may write."""

from __future__ import annotations

import pytest

from tests.tools.http1 import (
    CHUNKED,
    LAST_CHUNK,
    UNTIL_CLOSE,
    Body,
    Malformed,
    chunk,
    parse_head,
    request_length,
    response_length,
)

HOST = b"Host: a\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"GET  / HTTP/1.1\r\n",
        b"GET / HTTP/2.0\r\n",
        b"get / HTTP/1.1\r\n",
        b"HTTP/1.1 700 X\r\n",
        b"HTTP/1.1 20 X\r\n",
        b"GET / HTTP/1.1\r\nname: a\nb\r\n",
        b"GET / HTTP/1.1\r\nname: a\rb\r\n",
        b"GET / HTTP/1.1\r\nname: a\0b\r\n",
        b"GET / HTTP/1.1\r\nname: a\r\n folded\r\n",
        b"GET / HTTP/1.1\r\nname : a\r\n",
        b"GET / HTTP/1.1\r\n: a\r\n",
        b"GET / HTTP/1.1\r\nna(me: a\r\n",
    ],
)
def test_a_head_that_rfc_9112_forbids_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        parse_head(raw + b"\r\n")


def test_a_head_keeps_the_order_case_and_duplicates_of_its_fields() -> None:
    head = parse_head(b"POST /mcp?a=%20 HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-a: \t2 \r\n\r\n")

    assert head.start == (b"POST", b"/mcp?a=%20", b"HTTP/1.1")
    assert head.headers == [(b"Host", b"a"), (b"X-A", b"1"), (b"x-a", b"2")]
    assert head.all("x-A") == [b"1", b"2"]


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        HOST + HOST,
        HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n",
        HOST + b"Content-Length: +1\r\n",
        HOST + b"Content-Length: 1, 1\r\n",
        HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        HOST + b"Transfer-Encoding: gzip, chunked\r\n",
    ],
)
def test_a_request_with_ambiguous_framing_is_malformed(fields: bytes) -> None:
    with pytest.raises(Malformed):
        request_length(parse_head(b"POST / HTTP/1.1\r\n" + fields + b"\r\n"))


@pytest.mark.parametrize(
    ("status", "fields", "method", "expected"),
    [
        (200, b"Content-Length: 5\r\n", b"POST", 5),
        (200, b"Transfer-Encoding: Chunked\r\n", b"POST", CHUNKED),
        (200, b"", b"POST", UNTIL_CLOSE),
        (200, b"Content-Length: 5\r\n", b"HEAD", 0),
        (304, b"Content-Length: 5\r\n", b"GET", 0),
        (204, b"", b"GET", 0),
    ],
)
def test_the_length_of_a_response_follows_rfc_9112_section_6_3(
    status: int, fields: bytes, method: bytes, expected: int
) -> None:
    head = parse_head(b"HTTP/1.1 %d X\r\n%b\r\n" % (status, fields))

    assert response_length(head, method) == expected


@pytest.mark.parametrize("fields", [b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_204_with_framing_fields_is_malformed(fields: bytes) -> None:
    with pytest.raises(Malformed):
        response_length(parse_head(b"HTTP/1.1 204 X\r\n" + fields + b"\r\n"), b"POST")


CHUNKED_BODY = chunk(b"hello") + b"3;name=value\r\n\r\n!\r\n" + LAST_CHUNK


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("length", "wire", "content"),
    [(CHUNKED, CHUNKED_BODY, b"hello\r\n!"), (8, b"hello\r\n!", b"hello\r\n!")],
)
def test_a_body_reads_the_same_however_it_is_cut(length: int, wire: bytes, content: bytes, step: int) -> None:
    body = Body(length)
    data = wire + b"next"

    for start in range(0, len(data), step):
        body.feed(data[start : start + step])

    assert (bytes(body.content), body.surplus, body.done) == (content, b"next", True)


def test_a_chunk_shows_its_bytes_before_it_is_complete() -> None:
    body = Body(CHUNKED)

    body.feed(b"a\r\nhel")

    assert body.content == b"hel"


@pytest.mark.parametrize(
    "wire", [b"0x5\r\n", b"5\n", b"-5\r\n", b"fffffffffffff\r\n", b"1\r\naXX", b" 5\r\n"]
)
def test_a_bad_chunk_is_malformed(wire: bytes) -> None:
    with pytest.raises(Malformed):
        Body(CHUNKED).feed(wire + b"\r\n")


def test_trailers_are_kept_apart_from_the_body() -> None:
    body = Body(CHUNKED)

    body.feed(chunk(b"x") + b"0\r\nAuthorization: y\r\n\r\n")

    assert (bytes(body.content), body.trailers, body.done) == (b"x", [b"Authorization: y"], True)


def test_a_body_until_close_is_never_done() -> None:
    body = Body(UNTIL_CLOSE)

    body.feed(b"abc")
    body.feed(b"def")

    assert (bytes(body.content), body.done) == (b"abcdef", False)
