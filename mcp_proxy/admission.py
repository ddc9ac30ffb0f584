"""The first phase: may this request come in, judged by its head alone.

Rules of this file: no I/O, no state but the route table. What is refused here is refused
before its body is read and before any backend is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from mcp_proxy.correlation import NAME, given
from mcp_proxy.forwarding import Forwarder
from mcp_proxy.headers import HeaderError, RequestHead, is_session_id, read_request, renamed
from mcp_proxy.policy import Identify, anonymous
from mcp_proxy.policy.origin import OriginGuard, cors_headers, preflight_headers
from mcp_proxy.routing import ALLOW_ALL
from mcp_proxy.sessions import SessionKey
from mcp_proxy.wire import Fields, Headers, Rejection, Request, with_values


class Admitted(msgspec.Struct):
    """Implements Admission. A door may use it again for a request with the same head."""

    request: Request
    head: RequestHead
    route: str
    pool: str
    query: bytes
    """With its question mark, or empty; passed on as received."""
    client: str
    """Address of the client, as far as trusted proxies vouch for it."""
    key: SessionKey | None
    """Of the session that the head names; None without one, or if the id cannot be one."""
    principal: str = ""
    """``Principal.digest`` of who asks; empty for nobody in particular."""
    own: bytes = b""
    """Line with the request's id, if a trusted proxy gave it one."""
    context: tuple[bytes | None, bytes | None] | None = None
    """``traceparent`` and ``tracestate``, once somebody has asked."""
    forward: Fields | None = None
    """What the backend gets, once it has been built."""
    renamed: tuple[bytes, Fields] | None = None
    porter: Porter | None = None
    """Who has judged; another one, after a reload, judges anew."""
    latest: Admitted | None = None
    """What another one has said."""

    def forward_as(self, session_id: bytes) -> Fields:
        """What the backend gets that calls the session so; ``forward`` has been built."""
        if self.renamed is None or self.renamed[0] != session_id:
            assert self.forward is not None
            self.renamed = (session_id, renamed(self.forward, session_id))
        return self.renamed[1]

    def vary(self, values: Headers) -> Admitted:
        """For a head that differs in these values only, as ``Handler.vary`` has it. What has been built for
        this one serves that one, too."""
        old, head, forward, renamed, context = (
            self.request, self.head, self.forward, self.renamed, self.context,
        )  # fmt: skip
        request = Request(old.method, old.target, with_values(old.headers, values), old.peer, old.scheme)
        sent = [pair for pair in values if pair[0] != NAME]
        if sent:
            head = msgspec.structs.replace(head, forward=with_values(head.forward, sent))
            forward = None if forward is None else forward.with_values(sent)
            renamed = None if renamed is None else (renamed[0], renamed[1].with_values(sent))
            context = None
        own = self.own and given(values)
        return Admitted(
            request, head, self.route, self.pool, self.query, self.client, self.key, self.principal, own,
            context, forward, renamed, self.porter,
        )  # fmt: skip

    def slim(self) -> Admitted:
        """What the record of an open stream will need, without the head."""
        request = self.request
        light = Request(request.method, b"", [], request.peer, request.scheme)
        return Admitted(light, _NO_HEAD, self.route, self.pool, b"", self.client, None, self.principal)


_NO_HEAD: Final = read_request([])


_METHODS: Final = frozenset((b"GET", b"POST", b"DELETE", b"OPTIONS"))


class Porter:
    """Judges heads. ``routes``: path to pool name, matched byte for byte, so that nothing
    depends on how anybody decodes or normalises a path."""

    def __init__(
        self,
        routes: Mapping[bytes, str],
        guard: OriginGuard,
        forwarder: Forwarder,
        identify: Identify = anonymous,
    ) -> None:
        self._routes = {path: (path.decode("ascii"), pool) for path, pool in routes.items()}
        self._guard = guard
        self._forwarder = forwarder
        self._identify = identify

    def admit(self, request: Request) -> Admitted | Rejection:
        path, mark, query = request.target.partition(b"?")
        route = self._routes.get(path)
        if route is None:
            return Rejection("not_found")
        try:
            head = read_request(request.headers)
        except HeaderError as error:
            return Rejection(error.reason, error.detail)
        refusal = self._judge(request, head)
        if refusal is not None:
            return refusal
        client = self._forwarder.client(request, head)
        key = None
        if head.session_id is not None and is_session_id(head.session_id):
            key = SessionKey(route[0], head.session_id)
        principal = self._identify(request)
        digest = "" if principal is None else principal.digest
        own = self.named(request)
        return Admitted(
            request, head, route[0], route[1], mark + query, client, key, digest, own, porter=self
        )

    def named(self, request: Request) -> bytes:
        """Line with the id that a trusted proxy gave the request; empty if none did."""
        return given(request.headers) if self._forwarder.trusts(request) else b""

    def again(self, admitted: Admitted) -> Admitted | Rejection:
        """What another porter has admitted, before a reload. Doors remember what they were told."""
        latest = admitted.latest
        if latest is None or latest.porter is not self:
            judged = self.admit(admitted.request)
            if isinstance(judged, Rejection):
                return judged
            admitted.latest = latest = judged
        return latest

    def route(self, request: Request) -> str:
        """Path of the route that the request names, ``""`` if there is none."""
        return self._routes.get(request.target.partition(b"?")[0], ("", ""))[0]

    def cors(self, request: Request) -> Headers:
        """Headers that let the page of an allowed Origin read a refusal."""
        for name, value in request.headers:
            if name == b"origin" and self._guard.allows_origin(value):
                return cors_headers(value)
        return []

    def _judge(self, request: Request, head: RequestHead) -> Rejection | None:
        if head.host is None:
            return Rejection("bad_request", "the Host header is missing")
        reason = self._guard.judge_host(head.host)
        if reason is not None:
            return Rejection(reason, _HOST_DETAIL[reason])
        if head.origin is not None and not self._guard.allows_origin(head.origin):
            return Rejection(
                "forbidden_origin", "set external_url to the URL under which browsers see this proxy"
            )
        if head.via and self._forwarder.is_loop(head):
            return Rejection("loop_detected", "a backend of this proxy is the proxy itself")
        if request.method == b"POST":
            return _judge_media(head)
        if request.method not in _METHODS:
            return Rejection("method_not_allowed", extra=ALLOW_ALL)
        return None


_HOST_DETAIL: Final = {
    "bad_request": "the Host header is not a valid authority",
    "misdirected": "a loopback listener serves loopback Hosts and the host of external_url only",
}


def _judge_media(head: RequestHead) -> Rejection | None:
    content_type = head.content_type
    if content_type != b"application/json":
        media, _, parameters = (content_type or b"").lower().partition(b";")
        if media.strip() != b"application/json":
            # text/plain would be a "simple request", which any web page may send (CSRF)
            return Rejection("unsupported_media_type")
        for parameter in parameters.split(b";"):
            name, _, value = parameter.partition(b"=")
            if name.strip() == b"charset" and value.strip().strip(b'"') != b"utf-8":
                # Backends that honour it would read other JSON from the same bytes (RFC 8259 section 8.1).
                return Rejection("unsupported_media_type", "JSON is UTF-8; leave the charset out")
    if head.content_encoding is not None and head.content_encoding.lower() != b"identity":
        return Rejection(
            "unsupported_media_type", "a compressed body cannot be checked; send it uncompressed"
        )
    return None


def preflight(request: Request, head: RequestHead) -> tuple[int, Headers]:
    """Status and headers of the answer to OPTIONS."""
    if head.origin is None:
        return 204, ALLOW_ALL
    requested = b", ".join(
        value for name, value in request.headers if name == b"access-control-request-headers"
    )
    return 204, preflight_headers(head.origin, requested)
