"""The portable door: the proxy as a raw ASGI application, for any server or inside another app.

Rules of this file: it trusts its server for HTTP and adds what ASGI leaves open. The body is
read up to a limit and must be as long as announced. ``receive`` is watched from the moment the
request is whole until the answer has ended, because nothing else tells that the client left.
An answer to a request that was not read whole closes the connection. What only a server of our
own can do (limits of heads and of time, trailers, pipelines) is left to ``http11.py``.

One task per exchange watches; the app's own coroutine sends. Stepping ``receive`` or ``send``
by hand instead was measured: 2 to 4 microseconds of 30 less, and not every middleware lives
through it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import quote

from mcp_proxy.downstream.asgi_reply import AsgiReply, Receive, Send, Watchers
from mcp_proxy.downstream.settings import DoorSettings
from mcp_proxy.wire import Handler, Headers, Rejection, Request

Scope = MutableMapping[str, Any]

_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding", b"expect"))

_PATH_SAFE: Final = "/:@!$&'()*+,;=-._~"
"""What RFC 3986 section 3.3 lets stand in a path as it is."""


class AsgiDoor:
    """An ASGI 3 application. ``on_startup`` is called by the lifespan, or by the first request
    where there is none (mounted apps); ``on_shutdown`` by the lifespan only.

    Mounted under ``/x``, or behind a server with a root path, the request target begins behind
    that path: a route ``/mcp`` is reached as ``/x/mcp``. Middleware around it must pass events
    as they come and exceptions as they are; Starlette's BaseHTTPMiddleware ends the body of an
    app that raises, so a client does not see that an event stream broke off.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        on_startup: Callable[[], Awaitable[None]],
        on_shutdown: Callable[[], Awaitable[None]],
    ) -> None:
        self.http11: DoorSettings | None = None
        """For the hardened door, which uvicorn can only reach through its application."""
        self._handler = handler
        self._is_started = False
        self._on_startup = on_startup
        self._on_shutdown = on_shutdown
        self._watchers = Watchers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            if not self._is_started:
                await self._start_up()
            await self._serve(scope, receive, send)
        elif kind == "lifespan":
            await self._live(receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})  # before accept: the server says 403
        else:
            raise NotImplementedError(f"no door for the ASGI scope {kind!r}")

    async def _live(self, receive: Receive, send: Send) -> None:
        for event, callback in (("startup", self._start_up), ("shutdown", self._shut_down)):
            await receive()
            try:
                await callback()
            except Exception as error:
                await send({"type": f"lifespan.{event}.failed", "message": str(error)})
                return
            await send({"type": f"lifespan.{event}.complete"})

    async def _start_up(self) -> None:
        await self._on_startup()
        self._watchers.start()
        self._is_started = True

    async def _shut_down(self) -> None:
        await self._on_shutdown()
        await self._watchers.aclose()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = _Head(scope)
        request = head.request
        reply = AsgiReply(receive, send, self._watchers)
        handler = self._handler
        if scope["http_version"] == "1.0":
            # ASGI cannot frame a streamed answer for it: uvicorn would write chunks.
            await _refuse(handler, request, Rejection("http_version", "use HTTP/1.1"), reply)
            return
        reply.closes = head.can_close
        admission = handler.admit(request)
        if isinstance(admission, Rejection):
            await _refuse(handler, request, admission, reply)
            return
        try:
            body = await _read_body(receive, head.length, handler.body_limit)
        except _Refused as refused:
            await _refuse(handler, request, refused.rejection, reply)
            return
        if body is None:
            return  # the client left before it had said what it wants
        reply.closes = head.can_close and head.has_upgrade
        if body and request.method != b"POST":
            rejection = Rejection("bad_request", "only POST has a body here")
            await _refuse(handler, request, rejection, reply)
            return
        conversation = handler.handle(admission, body, reply)
        if reply.is_over:
            await reply.flush()
        else:
            await reply.run(conversation)


async def _refuse(handler: Handler, request: Request, rejection: Rejection, reply: AsgiReply) -> None:
    handler.refuse(request, rejection, reply)
    await reply.flush()


# --- request -----------------------------------------------------------------------------


class _Refused(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.rejection = Rejection(reason, detail)


class _Head:
    """What the scope says, sorted."""

    __slots__ = ("can_close", "has_upgrade", "length", "request")

    def __init__(self, scope: Scope) -> None:
        self.length: int | None = None
        """Announced length of the body; None if it is not announced, -1 if it is nonsense."""
        self.has_upgrade = False
        """uvicorn with httptools loses the body of such a request and takes what follows for
        another one (Kludex/uvicorn#2722). Closing after the answer ends that."""
        headers: Headers = []
        is_chunked = False
        # A copy: uvicorn goes on appending trailer fields to the scope's own list.
        for name, value in scope["headers"]:
            if name not in _FRAMING:
                headers.append((name, value))
                if name == b"upgrade":
                    self.has_upgrade = True
            elif name == b"content-length":
                self.length = int(value) if value.isdigit() and self.length is None else -1
            elif name == b"transfer-encoding":
                is_chunked = True
        if self.length is None and scope["http_version"] == "1.1" and not is_chunked:
            self.length = 0  # RFC 9112 section 6.3 item 7
        self.can_close = scope["http_version"] == "1.1" and (self.length != 0 or self.has_upgrade)
        """Whether ``Connection: close`` has a sense: there may be a body that nobody read."""
        client = scope.get("client")
        peer = client[0] if client else ""
        method = scope["method"].encode("latin-1")
        self.request = Request(method, _target(scope), headers, peer, scope.get("scheme", "http"))


def _target(scope: Scope) -> bytes:
    """Origin-form target behind the root path, the bytes of the wire if the server kept them.

    The root path is a prefix of ``path`` and ``raw_path`` (ASGI 2.4; where a server leaves it
    out, nothing is cut). In other than its plain spelling (``/%78/mcp``) it is not recognised,
    so that no route is ever found by decoding.
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


async def _read_body(receive: Receive, length: int | None, limit: int) -> bytes | None:
    """The whole body, None if the client left. Raises _Refused."""
    if length is not None and length > limit:
        raise _Refused("body_too_large", f"the limit is {limit} bytes")
    message = await receive()
    if message["type"] == "http.disconnect":
        return None
    body: bytes = message.get("body", b"")
    if message.get("more_body", False):
        parts, size = [body], len(body)
        while message.get("more_body", False) and size <= limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
        body = b"".join(parts)
    if len(body) > limit:
        raise _Refused("body_too_large", f"the limit is {limit} bytes")
    if length is not None and len(body) != length:
        raise _Refused("bad_request", "the body is not as long as Content-Length says")
    return body
