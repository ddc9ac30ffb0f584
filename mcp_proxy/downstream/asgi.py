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

from collections.abc import Awaitable, Callable

from mcp_proxy.downstream.asgi_head import Admissions, Head, Judged, Scope
from mcp_proxy.downstream.asgi_reply import AsgiReply, Receive, Send, Watchers
from mcp_proxy.downstream.settings import DoorSettings
from mcp_proxy.wire import Conversation, Handler, Rejection


class AsgiDoor:
    """An ASGI 3 application. ``on_startup`` is called by the lifespan, or by the first request
    where there is none (mounted apps); ``on_shutdown`` by the lifespan only.

    Mounted under ``/x``, or behind a server with a root path, the request target begins behind
    that path: a route ``/mcp`` is reached as ``/x/mcp``. Middleware around it must pass events
    as they come and exceptions as they are; Starlette's BaseHTTPMiddleware ends the body of an
    app that raises, so a client does not see that an event stream broke off.

    An application is not told that its server shuts down before every answer has ended, so a server
    needs a bound for that (uvicorn: ``--timeout-graceful-shutdown``) or streams hold it for ever. When it
    cancels what is left, listening streams still end cleanly.
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
        self._admissions = Admissions(handler)
        self._is_started = False
        self._on_startup = on_startup
        self._on_shutdown = on_shutdown
        self._watchers = Watchers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            if not self._is_started:
                await self._start_up()
            reply = AsgiReply(self._watchers)
            conversation = await self._begin(scope, receive, reply)
            if reply.is_over:
                await reply.flush(send)
            elif conversation is not None:
                await reply.run(conversation, receive, send)
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

    async def _begin(self, scope: Scope, receive: Receive, reply: AsgiReply) -> Conversation | None:
        """Read a request and hand it to the gateway. None if it was refused, or if the client
        left before it had said what it wants."""
        handler = self._handler
        judged = self._admissions.recall(scope) or self._judge(scope, reply)
        if judged is None:
            return None
        admission, length, can_close, has_upgrade = judged
        reply.closes = can_close
        try:
            body = await _read_body(receive, length, handler.body_limit)
            if body is None:
                return None
            reply.closes = can_close and has_upgrade
            if body and scope["method"] != "POST":
                raise _Refused("bad_request", "only POST has a body here")
        except _Refused as refused:
            handler.refuse(admission.request, refused.rejection, reply)
            return None
        return handler.handle(admission, body, reply)

    def _judge(self, scope: Scope, reply: AsgiReply) -> Judged | None:
        """Ask the gateway about a head that it may not know. None if it was refused."""
        head = Head(scope)
        if scope["http_version"] == "1.0":
            # ASGI cannot frame a streamed answer for it: uvicorn would write chunks.
            verdict: Judged | Rejection = Rejection("http_version", "use HTTP/1.1")
        else:
            reply.closes = head.can_close
            verdict = self._admissions.admit(scope, head)
        if isinstance(verdict, Rejection):
            self._handler.refuse(head.request, verdict, reply)
            return None
        return verdict


# --- request -----------------------------------------------------------------------------


class _Refused(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.rejection = Rejection(reason, detail)


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
