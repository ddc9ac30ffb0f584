"""Reading requests: bytes of one connection in, heads and bodies out.

Rules of this file: no I/O. llhttp (httptools) decides what is valid; this file cuts the stream
into messages. A parser lives for one message and never sees a byte beyond it. Hence nothing
can be parsed as a new request that was sent as a body (``Upgrade``, RFC 9110 section 7.8), and
trailer fields are checked by the parser and read by nobody. Every size has a limit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import httptools

from mcp_proxy.chunked import ChunkedFeeder
from mcp_proxy.headers import VALUE_LIMIT, parse_line
from mcp_proxy.wire import Headers, Rejection, Request

TARGET_LIMIT: Final = 8 * 1024
"""Request target. nginx and most CDNs stop there."""

CHUNK_OVERHEAD: Final = 16 * 1024
"""Chunked framing may take as much as the body plus this: extensions and one-byte chunks
are a way to spend our time (CVE-2023-39326)."""


PIECES_LIMIT: Final = 1024
"""Pieces of a body kept apart. Each costs 40 bytes beside its own, which adds up to twenty times
the body if a client sends it two bytes at a time."""


class Refused(Exception):
    """The request is answered here and now, and the connection closes. ``request``: if its
    head could be read."""

    def __init__(self, rejection: Rejection, request: Request | None = None) -> None:
        super().__init__(rejection.reason)
        self.rejection = rejection
        self.request = request


class Head(NamedTuple):
    """A complete and valid head."""

    raw: bytes
    method: bytes
    target: bytes
    """Origin-form."""
    headers: Headers
    length: int
    """Content-Length, 0 if absent."""
    is_chunked: bool
    expects: bool
    """``100-continue`` (RFC 9110 section 10.1.1)."""
    is_http10: bool
    keep_alive: bool

    @property
    def has_body(self) -> bool:
        return self.length > 0 or self.is_chunked


class RequestReader:
    """Reads one request after the other. Every method raises Refused or HttpParserError for
    what must not be served; the reader is of no use any more then."""

    __slots__ = (
        "_body_bytes", "_body_limit", "_bulk", "_feeder", "_fields_limit", "_head_limit", "_headers_done",
        "_keep_alive", "_left", "_parser", "_parts", "_raw", "_seen", "_wire_bytes", "is_complete", "on_body",
    )  # fmt: skip

    def __init__(self, *, head_limit: int, fields_limit: int, body_limit: int) -> None:
        self._head_limit = head_limit
        self._fields_limit = fields_limit
        self._body_limit = body_limit
        self._parser: httptools.HttpRequestParser | None = None
        # head
        self._raw = b""
        self._headers_done = False
        self._keep_alive = False
        # body
        self.is_complete = False
        """The request is whole."""
        self._feeder: ChunkedFeeder | None = None
        self._left = 0
        self._parts: list[bytes] = []
        self.on_body: Callable[[bytes], None] = self._parts.append
        """Called by the parser; a bound C method spares a Python frame per chunk."""
        self._bulk = bytearray()
        """Pieces that came before those in ``_parts``."""
        self._seen = 0
        self._wire_bytes = 0
        self._body_bytes = 0

    @property
    def is_empty(self) -> bool:
        """Between two requests: not a byte of the next one has come."""
        return not self._raw

    def clear(self) -> None:
        """Let go of a request that will not be served."""
        self._raw = b""
        self._parser = self._feeder = None
        self._parts.clear()
        self._bulk = bytearray()

    # --- head ------------------------------------------------------------------------

    def read_head(self, data: bytes) -> tuple[Head | None, bytes]:
        """Take a head from ``data``: the head, if it is complete, and what follows it."""
        known = len(self._raw)
        if not known and data[0] in b"\r\n":
            return None, data.lstrip(b"\r\n")  # RFC 9112 section 2.2: empty lines before a request
        raw = self._raw + data if known else data
        end = raw.find(b"\r\n\r\n", known - 3 if known > 3 else 0) + 4
        limit = self._head_limit
        if end > limit or (end == 3 and len(raw) > limit):
            reason = "head_too_large" if b"\r\n" in raw[: TARGET_LIMIT + 32] else "uri_too_long"
            raise Refused(Rejection(reason, f"the limit is {limit} bytes"))
        if end == 3:
            self._feed_head(data, raw)  # refuses garbage now instead of at the deadline
            if self._headers_done:
                raise Refused(Rejection("bad_request", "the head has bare line ends"))
            self._raw = raw
            return None, b""
        self._raw = b""
        head = raw[:end]
        self._feed_head(raw[known:end] if known else head, head)
        if not self._headers_done:
            raise Refused(Rejection("bad_request", "the head is not complete"))
        return self._open(head), raw[end:]

    def _feed_head(self, new: bytes, head: bytes) -> None:
        """Feed the ``new`` bytes of ``head``, which is all of it so far."""
        parser = self._parser
        if parser is None:
            self._parser = parser = httptools.HttpRequestParser(self)
            self._headers_done = self.is_complete = False
        try:
            parser.feed_data(new)
        except httptools.HttpParserUpgrade:
            if head.startswith(b"CONNECT "):
                rejection = Rejection("method_not_allowed", "this is not a forward proxy")
                raise Refused(rejection) from None
            # The parser would stop here and leave the body to be read as another request.
            # The upgrade is declined (RFC 9110 section 7.8 lets a server ignore it) by
            # parsing the head again without it. Java clients send ``Upgrade: h2c`` always.
            self._parser = parser = httptools.HttpRequestParser(self)
            self._headers_done = self.is_complete = False
            parser.feed_data(_without_upgrade(head))

    def _open(self, raw: bytes) -> Head:
        """Read a valid head and get ready for its body."""
        lines = raw[:-4].split(b"\r\n")
        request_line = lines[0].split(b" ")
        if len(request_line) != 3:
            raise Refused(Rejection("bad_request", "the request line must be method, target and version"))
        method, target, version = request_line
        if version != b"HTTP/1.1" and version != b"HTTP/1.0":
            raise Refused(Rejection("http_version", "use HTTP/1.1"))
        is_http10 = version == b"HTTP/1.0"
        if len(lines) - 1 > self._fields_limit:
            raise Refused(Rejection("head_too_large", f"the limit is {self._fields_limit} header fields"))
        headers, length, is_chunked, expects = _read_fields(lines[1:], is_http10)
        if len(raw) > VALUE_LIMIT:
            _check_values(headers)
        if target[:1] != b"/":
            target = _origin_form(target, headers)
        if len(target) > TARGET_LIMIT:
            raise Refused(Rejection("uri_too_long", f"the limit is {TARGET_LIMIT} bytes"))
        self._left = length
        self._wire_bytes = self._body_bytes = self._seen = 0
        if is_chunked and self._parser is not None:
            self._feeder = ChunkedFeeder(self._parser, self)
        else:
            self._parser = None
            self.is_complete = length == 0
        return Head(
            raw,
            method,
            target,
            headers,
            length,
            is_chunked,
            expects,
            is_http10,
            self._keep_alive and not is_http10,
        )

    # --- body ------------------------------------------------------------------------

    def read_body(self, data: bytes) -> bytes:
        """Take body bytes from ``data``; returns what is behind the request."""
        if self._feeder is not None:
            return self._read_chunked(self._feeder, data)
        left = self._left
        rest = b""
        if len(data) >= left:
            data, rest = data[:left], data[left:]
            self.is_complete = True
        self._left = left - len(data)
        self._parts.append(data)
        if len(self._parts) > PIECES_LIMIT:
            self._gather()
        return rest

    def _gather(self) -> None:
        for part in self._parts:
            self._bulk += part
        self._parts.clear()
        self._seen = 0

    def _read_chunked(self, feeder: ChunkedFeeder, data: bytes) -> bytes:
        rest = feeder.feed(data)
        parts = self._parts
        self._body_bytes += sum(map(len, parts[self._seen :]))
        self._seen = len(parts)
        if len(parts) > PIECES_LIMIT:
            self._gather()
        self._wire_bytes += len(data) - len(rest)
        if self._body_bytes > self._body_limit:
            raise Refused(Rejection("body_too_large", f"the limit is {self._body_limit} bytes"))
        if self._wire_bytes > 2 * self._body_bytes + CHUNK_OVERHEAD:
            raise Refused(Rejection("bad_request", "the chunked framing is larger than the body"))
        return rest

    def take_body(self) -> bytes:
        """The body of a request that is complete; the next request may be read then."""
        self._parser = self._feeder = None
        self.is_complete = False
        parts = self._parts
        if self._bulk:
            self._gather()
            body, self._bulk = bytes(self._bulk), bytearray()
        else:
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
        return body

    # --- httptools callbacks ---------------------------------------------------------

    def on_headers_complete(self) -> None:
        self._headers_done = True
        assert self._parser is not None
        self._keep_alive = self._parser.should_keep_alive()

    def on_message_complete(self) -> None:
        self.is_complete = True


_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding", b"expect"))


def _read_fields(lines: list[bytes], is_http10: bool) -> tuple[Headers, int, bool, bool]:
    """Fields, Content-Length, whether the body is chunked, whether 100-continue is expected."""
    headers: Headers = []
    length = 0
    is_chunked = expects = False
    for line in lines:
        pair = parse_line(line)
        headers.append(pair)
        name, value = pair
        if name in _FRAMING:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                # RFC 9112 section 6.1: a coding that is not understood is 501; HTTP/1.0 has none
                if is_http10 or is_chunked or value.lower() != b"chunked":
                    raise Refused(
                        Rejection("not_implemented", "only the transfer coding chunked is understood")
                    )
                is_chunked = True
            elif value.lower() == b"100-continue":
                expects = True
            else:
                raise Refused(Rejection("expectation_failed", "only 100-continue is understood"))
    return headers, length, is_chunked, expects


def _check_values(headers: Headers) -> None:
    if any(len(value) > VALUE_LIMIT for _, value in headers):
        raise Refused(Rejection("head_too_large", f"a header value is longer than {VALUE_LIMIT} bytes"))


def _origin_form(target: bytes, headers: Headers) -> bytes:
    """Absolute-form (RFC 9112 section 3.2.2) is accepted if it names the very Host."""
    scheme, mark, rest = target.partition(b"://")
    if mark and scheme.lower() in (b"http", b"https"):
        authority, slash, path = rest.partition(b"/")
        hosts = [value for name, value in headers if name == b"host"]
        if slash and hosts == [authority]:
            return b"/" + path
    raise Refused(Rejection("bad_request", "the request target must be a path on this host"))


_UPGRADE_FIELDS: Final = frozenset((b"upgrade", b"http2-settings"))


def _without_upgrade(head: bytes) -> bytes:
    """The head with Upgrade, HTTP2-Settings and Connection removed; ``close`` is kept."""
    lines = head[:-4].split(b"\r\n")
    kept = lines[:1]
    closes = False
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name == b"connection":
            closes = closes or b"close" in {token.strip() for token in value.lower().split(b",")}
        elif name not in _UPGRADE_FIELDS:
            kept.append(line)
    if closes:
        kept.append(b"connection: close")
    return b"\r\n".join(kept) + b"\r\n\r\n"
