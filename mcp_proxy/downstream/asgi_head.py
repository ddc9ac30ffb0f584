"""The head of a request as an ASGI server reports it, and what the gateway said of it before.

Rules of this file: the bytes of the wire, as far as the server kept them; no route is ever found
by decoding. A head that was admitted once is admitted again if it has the same bytes: clients
repeat their heads, but for framing, and judging one costs more than the rest of this door.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Final
from urllib.parse import quote

from mcp_proxy.wire import Admission, Handler, Header, Rejection, Request

Scope = MutableMapping[str, Any]

KNOWN_LIMIT: Final = 2048
"""Heads remembered; about as many sessions can be busy at once without being judged anew."""

KNOWN_BYTES: Final = 4096
"""Size of a head that is remembered: ASGI servers bound neither size nor number of headers."""

_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding", b"expect"))

_PATH_SAFE: Final = "/:@!$&'()*+,;=-._~"
"""What RFC 3986 section 3.3 lets stand in a path as it is."""


class Head:
    """``key`` is everything that a Request says: method, target, peer, scheme and the fields."""

    __slots__ = ("can_close", "has_upgrade", "key", "length")

    def __init__(self, scope: Scope) -> None:
        length: int | None = None
        has_upgrade = is_chunked = False
        # A copy: uvicorn goes on appending trailer fields to the scope's own list.
        fields: list[Header] = []
        for name, value in scope["headers"]:
            if name not in _FRAMING:
                fields.append((name, value))
                if name == b"upgrade":
                    has_upgrade = True
            elif name == b"content-length":
                length = int(value) if value.isdigit() and length is None else -1
            elif name == b"transfer-encoding":
                is_chunked = True
        is_http11 = scope["http_version"] == "1.1"
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


class Admissions:
    """Asks the gateway about heads, about each only once."""

    __slots__ = ("_handler", "_known")

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._known: dict[Any, Admission] = {}

    def admit(self, head: Head) -> Admission | Rejection:
        admission = self._known.get(head.key)
        if admission is not None:
            return admission
        fresh = self._handler.admit(head.request)
        if not isinstance(fresh, Rejection) and _size(head) <= KNOWN_BYTES:
            if len(self._known) >= KNOWN_LIMIT:
                del self._known[next(iter(self._known))]  # the oldest; a busy one comes back at once
            self._known[head.key] = fresh
        return fresh


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
