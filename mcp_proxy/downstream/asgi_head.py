"""The head of a request as an ASGI server reports it, and what the gateway said of it before.

Rules of this file: the bytes of the wire, as far as the server kept them; no route is ever found
by decoding. A head that was admitted once is admitted again if it has the same bytes: clients
repeat their heads, but for framing, and judging one costs more than the rest of this door. ASGI
does not name connections. The address and port of the client do almost always; behind a proxy
or a Unix socket many clients have the same, and then all admitted heads are searched.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Final
from urllib.parse import quote

from mcp_proxy.wire import Admission, Handler, Header, Rejection, Request

Scope = MutableMapping[str, Any]

Judged = tuple[Admission, int | None, bool, bool]
"""An admission, then ``length``, ``can_close`` and ``has_upgrade`` of the head."""

KNOWN_LIMIT: Final = 2048
"""Heads remembered, by what they say and by client; about as many sessions can be busy at once
without being judged anew."""

KNOWN_BYTES: Final = 4096
"""Size of a head that is remembered: ASGI servers bound neither size nor number of headers."""

_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding", b"expect"))

LENGTH_DIGITS: Final = 18
"""More than any body has; int() itself refuses thousands."""

_PATH_SAFE: Final = "/:@!$&'()*+,;=-._~"
"""What RFC 3986 section 3.3 lets stand in a path as it is."""


class Head:
    """``key`` is everything that a Request says: method, target, peer, scheme and the fields."""

    __slots__ = ("can_close", "can_repeat", "has_upgrade", "key", "length")

    def __init__(self, scope: Scope) -> None:
        length: int | None = None
        has_upgrade = is_chunked = expects = False
        # A copy: uvicorn goes on appending trailer fields to the scope's own list.
        fields: list[Header] = []
        for name, value in scope["headers"]:
            if name not in _FRAMING:
                fields.append((name, value))
                if name == b"upgrade":
                    has_upgrade = True
            elif name == b"content-length":
                is_valid = value.isdigit() and len(value) <= LENGTH_DIGITS and length is None
                length = int(value) if is_valid else -1
            elif name == b"transfer-encoding":
                is_chunked = True
            else:
                expects = True
        is_http11 = scope["http_version"] == "1.1"
        is_plain = length is not None and length >= 0 and not (is_chunked or expects or has_upgrade)
        self.can_repeat = is_plain and is_http11 and type(scope["headers"]) is list
        """Whether a RepeatedHead can be made of it: no framing but one Content-Length. Other
        framing fields are not in the key, so nothing bounds their size. (ASGI allows headers to
        be any iterable.)"""
        if length is None and is_http11 and not is_chunked:
            length = 0  # RFC 9112 section 6.3 item 7
        self.length = length
        """Announced length of the body; None if it is not announced, -1 if it is nonsense."""
        self.has_upgrade = has_upgrade
        """uvicorn with httptools loses the body of such a request and takes what follows for
        another one (Kludex/uvicorn#2722). Closing after the answer ends that."""
        self.can_close = is_http11 and (length != 0 or has_upgrade)
        """Whether ``Connection: close`` has a sense: there may be a body that nobody read."""
        client = scope.get("client")
        peer: str = client[0] if client else ""
        scheme: str = scope.get("scheme", "http")
        method: str = scope["method"]
        self.key = (method, _target(scope), peer, scheme, tuple(fields))

    @property
    def request(self) -> Request:
        method, target, peer, scheme, fields = self.key
        return Request(method.encode("latin-1"), target, list(fields), peer, scheme)


class RepeatedHead:
    """A head that was admitted, cut at its Content-Length, which differs from call to call.

    Comparing lists hashes nothing: 1 to 2 microseconds of 55 less than to look up a Head.
    """

    __slots__ = ("_admission", "_after", "_at", "_before", "_line")

    def __init__(self, scope: Scope, admission: Admission) -> None:
        headers: list[Header] = scope["headers"]
        self._at = at = [name for name, _ in headers].index(b"content-length")
        self._before = headers[:at]
        self._after = headers[at + 1 :]
        self._line = _line(scope)
        self._admission = admission

    def match(self, scope: Scope) -> Judged | None:
        """What was said of this head, if ``scope`` has the same one."""
        headers, at = scope["headers"], self._at
        if (
            type(headers) is not list
            or len(headers) <= at
            or headers[:at] != self._before
            or headers[at + 1 :] != self._after
            or _line(scope) != self._line
        ):
            return None
        name, value = headers[at]
        if name != b"content-length" or not value.isdigit() or len(value) > LENGTH_DIGITS:
            return None
        length = int(value)
        return self._admission, length, length != 0, False


class Admissions:
    """Asks the gateway about heads, about each only once."""

    __slots__ = ("_by_client", "_handler", "_known")

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._known: dict[Any, Admission] = {}
        self._by_client: dict[Any, RepeatedHead] = {}
        """What each client sent last."""

    def recall(self, scope: Scope) -> Judged | None:
        """The quick way: the client has sent the same head before."""
        repeated = self._by_client.get(_client(scope))
        return None if repeated is None else repeated.match(scope)

    def admit(self, scope: Scope, head: Head) -> Judged | Rejection:
        admission = self._known.get(head.key)
        if admission is None:
            fresh = self._handler.admit(head.request)
            if isinstance(fresh, Rejection):
                return fresh
            admission = fresh
            if _size(head) <= KNOWN_BYTES:
                _keep(self._known, head.key, admission)
        elif head.can_repeat:
            # It came before, so it is small, and may come again.
            _keep(self._by_client, _client(scope), RepeatedHead(scope, admission))
        return admission, head.length, head.can_close, head.has_upgrade


def _keep(memory: dict[Any, Any], key: object, value: object) -> None:
    if len(memory) >= KNOWN_LIMIT and key not in memory:
        del memory[next(iter(memory))]  # the oldest; a busy one comes back at once
    memory[key] = value


def _client(scope: Scope) -> object:
    client = scope.get("client")
    return tuple(client) if client else None


def _line(scope: Scope) -> object:
    """Everything that decides beside client and headers."""
    get = scope.get
    return (
        scope["method"],
        scope["http_version"],
        scope["path"],
        get("raw_path"),
        get("root_path"),
        get("query_string"),
        get("scheme"),
    )


def _size(head: Head) -> int:
    return len(head.key[1]) + sum(len(name) + len(value) for name, value in head.key[4])


def _target(scope: Scope) -> bytes:
    """Origin-form target behind the root path.

    The root path is a prefix of ``path`` and ``raw_path`` (ASGI 2.4; where a server leaves it
    out, nothing is cut). In other than its plain spelling (``/%78/mcp``) it is not recognised.
    """
    raw: bytes | None = scope.get("raw_path")
    path = quote(scope["path"], safe=_PATH_SAFE).encode("ascii") if raw is None else raw
    root: str = scope.get("root_path", "")
    if root:
        prefix = quote(root.rstrip("/"), safe=_PATH_SAFE).encode("ascii")
        if path.startswith(prefix + b"/"):
            path = path[len(prefix) :]
    query: bytes = scope.get("query_string", b"")
    return path + b"?" + query if query else path
