"""HTTP/1.1 messages read as strictly as RFC 9112 allows, for both ends of the tests.

Rules of this file: pure, no tolerance. A sender may be judged by it: what it refuses, no proxy
should have written. Unlike the parsers of the proxy it remembers the raw bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_REQUEST = re.compile(rb"([A-Z]+) ([\x21-\x7e]+) (HTTP/1\.[01])")
_RESPONSE = re.compile(rb"(HTTP/1\.[01]) ([1-5][0-9]{2}) ([\t\x20-\x7e\x80-\xff]*)")
_SIZE = re.compile(rb"([0-9a-fA-F]{1,12})(;[\t\x20-\x7e]*)?")
UNTIL_CLOSE = -1
CHUNKED = -2


class Malformed(Exception):
    """The sender broke RFC 9112."""


@dataclass(frozen=True)
class Head:
    """A request or response head."""

    raw: bytes
    start: tuple[bytes, bytes, bytes]
    headers: list[tuple[bytes, bytes]]

    def all(self, name: str) -> list[bytes]:
        """Values of every field line of this name, in order."""
        wanted = name.lower().encode()
        return [value for key, value in self.headers if key.lower() == wanted]

    def one(self, name: str) -> bytes | None:
        """The only value of this name, None if there is none."""
        values = self.all(name)
        if len(values) > 1:
            raise Malformed(f"{len(values)} fields of name {name}")
        return values[0] if values else None

    @property
    def status(self) -> int:
        return int(self.start[1])


def parse_head(raw: bytes) -> Head:
    """``raw`` ends with the empty line. Raises Malformed."""
    first, *lines = raw[:-4].split(b"\r\n")
    start = _REQUEST.fullmatch(first) or _RESPONSE.fullmatch(first)
    if start is None:
        raise Malformed(f"start line {first!r}")
    headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        value = value.strip(b" \t")
        if not colon or not TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise Malformed(f"field line {line!r}")
        headers.append((name, value))
    return Head(raw, (start[1], start[2], start[3]), headers)


def _length(head: Head) -> int | None:
    if head.all("transfer-encoding") and head.all("content-length"):
        raise Malformed("Transfer-Encoding beside Content-Length")
    coding = head.one("transfer-encoding")
    if coding is not None:
        if coding.lower() != b"chunked" or b"HTTP/1.0" in head.start:
            raise Malformed(f"Transfer-Encoding {coding!r}")
        return CHUNKED
    text = head.one("content-length")
    if text is None:
        return None
    if not text.isdigit():
        raise Malformed(f"Content-Length {text!r}")
    return int(text)


def request_length(head: Head) -> int:
    """Bytes of the body, or CHUNKED."""
    if len(head.all("host")) != 1:
        raise Malformed("a request has exactly one Host")
    length = _length(head)
    return 0 if length is None else length


def response_length(head: Head, method: bytes) -> int:
    """Bytes of the body, CHUNKED or UNTIL_CLOSE (RFC 9112 section 6.3)."""
    length = _length(head)
    if head.status < 200 or head.status == 204:
        if length is not None:
            raise Malformed(f"framing fields in a {head.status}")
        return 0
    if method == b"HEAD" or head.status == 304:
        return 0
    return UNTIL_CLOSE if length is None else length


class Body:
    """Decodes one body; ``surplus`` is what came after its end."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.content = bytearray()
        self.trailers: list[bytes] = []
        self.surplus = b""
        self.done = length == 0
        self._buffer = b""
        self._missing = 0 if length in (CHUNKED, UNTIL_CLOSE) else length
        self._read = self._size if length == CHUNKED else self._data

    def feed(self, data: bytes) -> None:
        """Raises Malformed."""
        self._buffer += data
        while not self.done and self._read():
            pass
        if self.done:
            self.surplus += self._buffer
            self._buffer = b""

    def _data(self) -> bool:
        if self.length == UNTIL_CLOSE:
            self._missing = len(self._buffer)
        piece, self._buffer = self._buffer[: self._missing], self._buffer[self._missing :]
        self.content += piece
        self._missing -= len(piece)
        if self._missing == 0:
            self.done = self.length >= 0
            self._read = self._data if self.length == UNTIL_CLOSE else self._end_of_chunk
        return bool(self._buffer)

    def _end_of_chunk(self) -> bool:
        if not b"\r\n".startswith(self._buffer[:2]):
            raise Malformed("a chunk is longer than its size")
        if len(self._buffer) < 2:
            return False
        self._buffer = self._buffer[2:]
        self._read = self._size
        return True

    def _line(self) -> bytes | None:
        line, end, rest = self._buffer.partition(b"\r\n")
        if not end:
            return None
        self._buffer = rest
        return line

    def _size(self) -> bool:
        line = self._line()
        if line is None:
            return False
        size = _SIZE.fullmatch(line)
        if size is None:
            raise Malformed(f"chunk size {line[:40]!r}")
        self._missing = int(size[1], 16)
        self._read = self._data if self._missing else self._trailer
        return True

    def _trailer(self) -> bool:
        line = self._line()
        if line is None:
            return False
        self.done = not line
        if line:
            self.trailers.append(line)
        return True


def chunk(data: bytes) -> bytes:
    """``data`` as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
