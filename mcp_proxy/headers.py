"""Every header rule, in one place, for both directions.

Rules of this file: bytes in, values out, no I/O. Framing headers never pass (RFC 9112
section 6: framing is rebuilt, never copied), hop-by-hop headers never pass (RFC 9110
section 7.6.1), everything else that is end-to-end passes with value, order and duplicates
untouched. A header that decides something must not occur twice.
"""

from __future__ import annotations

import re
from collections.abc import Set
from functools import lru_cache
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

import msgspec

from mcp_proxy.wire import Fields, Header, Headers

HOP_BY_HOP: Final = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization",
        b"te", b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings",
    )
)  # fmt: skip
"""RFC 9110 section 7.6.1, RFC 7540 section 3.2.1 and the field's de facto additions."""

VALUE_LIMIT: Final = 8 * 1024
"""One header value. Tokens and trace baggage stay far below; nginx's own line limit."""

_KNOWN_NAMES_LIMIT: Final = 1024
"""Cache of name classifications; client-chosen names must not grow it for ever."""

# What to do with a request header: a slot number (the header decides something and is kept
# in RequestHead), or one of these.
_FORWARD, _DROP, _CONNECTION, _MCP, _REPEATABLE = -1, -2, -3, -4, -5

_SLOTS: Final = (
    b"host", b"origin", b"authorization", b"content-type", b"content-encoding", b"last-event-id",
    b"mcp-protocol-version", b"mcp-method", b"mcp-name", b"mcp-session-id",
)  # fmt: skip

_FORWARDED_FROM: Final = 2
"""Slots from here on are forwarded. Host is the backend's own authority and Origin is judged
here: SDK servers refuse foreign values of both with 421 and 403."""

_ASCII_FROM: Final = 6
"""Slots from here on are compared; bytes outside ASCII in them are an attack on comparisons.
(Last-Event-ID is whatever a server chose, in UTF-8.)"""

_COLLECTED: Final = (b"via", b"x-forwarded-for", b"x-forwarded-proto")
"""Lists (RFC 9110 section 5.3) that the proxy rewrites; all lines are joined."""

_NAMED: Final[dict[bytes, int]] = {
    **dict.fromkeys(HOP_BY_HOP, _DROP),
    **dict.fromkeys(
        (
            b"content-length", b"expect",  # framing: rebuilt
            b"forwarded", b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-connecting-ip",
            b"remote-user", b"x-remote-user", b"x-original-url", b"x-rewrite-url",  # claims: only ours
            b"cookie",  # belongs to the site in front, never to a backend
            b"x-request-id",  # each exchange has its own
        ),
        _DROP,
    ),
    **dict.fromkeys(_COLLECTED, _REPEATABLE),
    **{name: slot for slot, name in enumerate(_SLOTS)},
    b"connection": _CONNECTION,
}  # fmt: skip

_CLAIMS: Final = (b"x-forwarded-", b"x-auth-request-", b"x-ssl-client-", b"x-client-cert")
"""Prefixes of what a proxy in front says about the client; believed by backends, so only ours pass."""

_RULES: Final = dict(_NAMED)
"""``_NAMED`` and names that were seen before, up to a bound."""

_PROTECTED: Final = frozenset(_SLOTS) | frozenset(_COLLECTED) | {b"content-length", b"accept", b"expect"}
"""A ``Connection`` header must not be able to nominate these away (golang/go#50580)."""

_RESPONSE_DROP: Final = HOP_BY_HOP | {
    b"content-length",
    b"content-location",
    b"server",
    b"set-cookie",
    b"alt-svc",
    b"x-request-id",
}
"""Beside hop-by-hop: framing, what speaks for the backend's own origin, and what the proxy says itself."""

_RESPONSE_SINGLE: Final = frozenset((b"content-type", b"mcp-session-id", b"location"))


_LINES: Final[dict[bytes, Header]] = {}

_LINES_LIMIT: Final = 4096
"""Header lines remembered, some 400 bytes each. Peers repeat most of them, whatever else changes
in their heads; connections that hold the same header hold the same object."""

_LINE_LIMIT: Final = 256
"""Bytes of a line that is remembered. Longer ones (tokens, baggage) hardly ever recur."""


def parse_line(line: bytes) -> Header:
    """One header line of a head that llhttp has accepted, without its CR LF."""
    pair = _LINES.get(line)
    if pair is None:
        name, _, value = line.partition(b":")
        pair = name.lower(), value.strip()
        if len(line) <= _LINE_LIMIT:
            if len(_LINES) >= _LINES_LIMIT:
                _LINES.clear()
            _LINES[line] = pair
    return pair


class HeaderError(Exception):
    """A head that must not be forwarded. ``detail`` is one sentence without client bytes."""

    def __init__(self, detail: str, reason: str = "bad_request") -> None:
        super().__init__(detail)
        self.detail = detail
        self.reason = reason


class RequestHead(msgspec.Struct, frozen=True):
    """What the gateway decides by. Fields are values as received, None when absent."""

    forward: Headers
    """End-to-end headers in order, without Host, Origin and everything the proxy sets itself."""
    host: bytes | None
    origin: bytes | None
    authorization: bytes | None
    content_type: bytes | None
    content_encoding: bytes | None
    last_event_id: bytes | None
    version: bytes | None
    """``MCP-Protocol-Version``."""
    method: bytes | None
    """``Mcp-Method``."""
    name: bytes | None
    """``Mcp-Name``, still encoded."""
    session_id: bytes | None
    via: bytes
    """All Via lines joined, ``b""`` if none. Likewise the next two."""
    forwarded_for: bytes
    forwarded_proto: bytes


def read_request(headers: Headers) -> RequestHead:
    """Sort the headers of a request in one pass. Raises HeaderError."""
    slots: list[bytes | None] = [None] * len(_SLOTS)
    forward: Headers = []
    collected: list[Header] = []
    nominated: set[bytes] = set()
    rules = _RULES
    for pair in headers:
        name, value = pair
        rule = rules.get(name)
        if rule is None:
            rule = _classify(name)
        if rule == _FORWARD:
            forward.append(pair)
        elif rule >= 0:
            _fill(slots, rule, name, value)
            if rule >= _FORWARDED_FROM:
                forward.append(pair)
        elif rule == _CONNECTION:
            nominated |= _nominated(value)
        elif rule == _MCP:
            _require_ascii(value)
            forward.append(pair)
        elif rule == _REPEATABLE:
            collected.append(pair)
    if nominated:
        forward = [pair for pair in forward if pair[0] not in nominated]
    host, origin, authorization, content_type, content_encoding, last_event_id, *mcp = slots
    version, method, mcp_name, session_id = mcp
    return RequestHead(
        forward, host, origin, authorization, content_type, content_encoding, last_event_id,
        version, method, mcp_name, session_id, *_join(collected),
    )  # fmt: skip


def _fill(slots: list[bytes | None], slot: int, name: bytes, value: bytes) -> None:
    if slots[slot] is not None:
        raise HeaderError(f"the header {name.decode()} occurs more than once")
    if slot >= _ASCII_FROM:
        _require_ascii(value)
    slots[slot] = value


def _require_ascii(value: bytes) -> None:
    if not value.isascii():
        raise HeaderError("an Mcp-* header holds bytes outside ASCII")


_PLAIN_CONNECTION: Final = frozenset((b"keep-alive", b"close", b""))


_NOTHING: Final[frozenset[bytes]] = frozenset()


def _nominated(value: bytes) -> Set[bytes]:
    """Names that a Connection header declares hop-by-hop (RFC 9110 section 7.6.1)."""
    if value.lower() in _PLAIN_CONNECTION:
        return _NOTHING
    names = {token.strip().lower() for token in value.split(b",")}
    if not names.isdisjoint(_PROTECTED) or any(name.startswith(b"mcp-") for name in names):
        raise HeaderError("Connection nominates a header that must reach the backend")
    return names


def _join(pairs: list[Header]) -> tuple[bytes, bytes, bytes]:
    """The values of each list, in the order of ``_COLLECTED``."""
    if not pairs:
        return b"", b"", b""
    via, forwarded_for, forwarded_proto = (
        b", ".join(value for name, value in pairs if name == wanted) for wanted in _COLLECTED
    )
    return via, forwarded_for, forwarded_proto


def _classify(name: bytes) -> int:
    """The rule for a name that is not in the table; remembered, up to a bound."""
    rule = _FORWARD
    if b"_" in name:
        # ``mcp_session_id`` becomes the same variable as ``mcp-session-id`` in WSGI- and
        # CGI-like backends: an alias of a header that decides is never forwarded.
        alias = name.replace(b"_", b"-")
        if alias in _NAMED or alias.startswith((b"mcp-", *_CLAIMS)):
            rule = _DROP
    elif name.startswith(b"mcp-"):
        rule = _MCP
    elif name.startswith(_CLAIMS):
        rule = _DROP
    if len(_RULES) < _KNOWN_NAMES_LIMIT and len(name) <= 64:
        _RULES[name] = rule
    return rule


_UNSAFE_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")


def read_response(headers: Headers) -> tuple[Fields, int | None]:
    """End-to-end headers of a response and its validated Content-Length (None if absent).

    The caller has refused Transfer-Encoding other than ``chunked``. Raises HeaderError for a
    Content-Length that is not one plain number (RFC 9112 section 6.3: never guess).
    """
    length: int | None = None
    forward: Headers = []
    nominated: set[bytes] = set()
    seen: set[bytes] = set()
    for pair in headers:
        name, value = pair
        if name in _RESPONSE_SINGLE:
            if name in seen:
                raise HeaderError(f"the response has more than one {name.decode()}")
            seen.add(name)
        if name not in _RESPONSE_DROP:
            if not name.startswith(b"access-control-"):  # CORS is answered for this origin, not the backend's
                forward.append(pair)
        elif name == b"content-length":
            if length is not None or not value.isdigit() or len(value) > 18:
                raise HeaderError("the response has a bad or repeated Content-Length")
            length = int(value)
        elif name == b"connection" and value.lower() not in _PLAIN_CONNECTION:
            nominated |= {token.strip().lower() for token in value.split(b",")}
    if nominated:
        # A backend may not hide what the client needs for its session or its framing.
        nominated -= {b"mcp-session-id", b"content-type"}
        forward = [pair for pair in forward if pair[0] not in nominated]
    return Fields(forward), length


class Facts(msgspec.Struct):
    """What the head of a response says about it."""

    is_stream: bool
    """``text/event-stream``."""
    session_id: bytes | None
    location: bytes | None
    changed: Fields | None
    """The headers to pass on, if they are others than those that were read. (Not the same
    block: it keeps these facts, and would never be freed.)"""
    _named: tuple[bytes, Fields] | None = None

    def named(self, headers: Fields, session_id: bytes) -> Fields:
        """The headers under the client's own session id. The same block comes again within a session,
        so the last result is kept."""
        if self._named is None or self._named[0] != session_id:
            self._named = (session_id, renamed(headers, session_id))
        return self._named[1]


def renamed(headers: Headers, session_id: bytes) -> Fields:
    """The same headers with another session id, in the same place."""
    return Fields((name, session_id if name == b"mcp-session-id" else value) for name, value in headers)


def read_facts(headers: Fields) -> Facts:
    session_id = location = None
    is_stream = is_unbuffered = False
    for name, value in headers:
        if name == b"content-type":
            is_stream = value.partition(b";")[0].strip().lower() == b"text/event-stream"
        elif name == b"mcp-session-id":
            session_id = value
        elif name == b"location":
            location = value
        elif name == b"x-accel-buffering":
            is_unbuffered = True
    changed = None
    if is_stream and not is_unbuffered:
        # nginx in front of this proxy must not hold events back
        changed = Fields([*headers, (b"x-accel-buffering", b"no")])
    return Facts(is_stream, session_id, location, changed)


def check_fields(headers: Headers) -> None:
    """Raise HeaderError for names or values that could split a message (RFC 9112 section
    11.1). For transports whose parser does not guarantee it."""
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or _UNSAFE_VALUE.search(value):
            raise HeaderError("a header holds characters that no header may hold")


_HOST: Final = re.compile(
    rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_](?:[A-Za-z0-9_.\-]{0,252}[A-Za-z0-9_.])?)(?::([0-9]{1,5}))?"
)


@lru_cache(maxsize=1024)
def parse_authority(value: bytes) -> tuple[str, int | None] | None:
    """``host[:port]`` as (lower-case host without brackets and trailing dot, port), or None
    if it is not a valid Host (RFC 9110 section 7.2: no userinfo, no list)."""
    match = _HOST.fullmatch(value)
    if match is None:
        return None
    host = match[1].decode("ascii").lower().strip("[]").removesuffix(".")
    port = int(match[2]) if match[2] else None
    if not host or (port is not None and port > 65535):
        return None
    return host, port


_SESSION_ID: Final = re.compile(rb"[\x21-\x7e]{1,512}")


def is_session_id(value: bytes) -> bool:
    """Visible ASCII (MCP 2025-03-26 and later), bounded so that it can be a key."""
    return _SESSION_ID.fullmatch(value) is not None


def rewrite_location(value: bytes, backend: str, route: str) -> bytes | None:
    """A redirect of a backend (its full URL) to its own endpoint, as clients see it: the path
    of the route, with the query of the redirect. None for a redirect to anywhere else.

    Such a one must not be passed on: MCP clients refuse other origins, and other paths of the
    backend have no route here.
    """
    try:
        target = urlsplit(urljoin(backend, value.decode("ascii")))
        base = urlsplit(backend)
        same = _origin_of(target) == _origin_of(base) and target.path == base.path
    except ValueError:
        return None
    if not same or target.username is not None:
        return None
    return f"{route}?{target.query}".encode() if target.query else route.encode()


def _origin_of(url: SplitResult) -> tuple[str, str | None, int]:
    return url.scheme, url.hostname, url.port or (443 if url.scheme == "https" else 80)
