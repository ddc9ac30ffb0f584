"""Answers of backends, good and bad, as bytes."""

from __future__ import annotations

from mcp_proxy.upstream.connection import HEAD_LIMIT, INTERIM_LIMIT
from tests.tools.http1 import chunk
from tests.unit.backline import REQUEST_BYTES, ok

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
    "chunked with extensions": (
        ok(CHUNKED, body=b"5;a=b\r\nhello\r\n0;c\r\n\r\n"),
        200,
        b"hello",
        None,
        True,
    ),
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
        b"HTTP/1.1 100 Continue\r\n\r\n"
        + EARLY
        + b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 199 X\r\n\r\n"
        + ok(LENGTH),
        200,
        b"hello",
        5,
        True,
    ),
    "as many interim answers as allowed": (
        EARLY * INTERIM_LIMIT + ok(CHUNKED, body=HELLO),
        200,
        b"hello",
        None,
        True,
    ),
    "an interim answer before a 204": (EARLY + ok(body=b"", status=b"204 No"), 204, b"", 0, True),
    "highest status": (ok(LENGTH, status=b"599 X"), 599, b"hello", 5, True),
}


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
    "101 behind an interim answer": EARLY
    + ok(b"Connection: Upgrade", b"Upgrade: x", status=b"101 Switching"),
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
