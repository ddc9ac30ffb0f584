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

from mcp_proxy.downstream.asgi_head import Admissions, Head, Scope
from mcp_proxy.downstream.asgi_reply import AsgiReply, Receive, Send, Watchers
from mcp_proxy.downstream.settings import DoorSettings
from mcp_proxy.wire import Handler, Rejection, Request


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
        head = Head(scope)
        reply = AsgiReply(self._watchers)
        handler = self._handler
        if scope["http_version"] == "1.0":
            # ASGI cannot frame a streamed answer for it: uvicorn would write chunks.
            await _refuse(handler, head.request, Rejection("http_version", "use HTTP/1.1"), reply, send)
            return
        reply.closes = head.can_close
        admission = self._admissions.admit(head)
        if isinstance(admission, Rejection):
            await _refuse(handler, head.request, admission, reply, send)
            return
        try:
            body = await _read_body(receive, head.length, handler.body_limit)
        except _Refused as refused:
            await _refuse(handler, head.request, refused.rejection, reply, send)
            return
        if body is None:
            return  # the client left before it had said what it wants
        reply.closes = head.can_close and head.has_upgrade
        if body and scope["method"] != "POST":
            rejection = Rejection("bad_request", "only POST has a body here")
            await _refuse(handler, head.request, rejection, reply, send)
            return
        conversation = handler.handle(admission, body, reply)
        if reply.is_over:
            await reply.flush(send)
        else:
            await reply.run(conversation, receive, send)


async def _refuse(
    handler: Handler, request: Request, rejection: Rejection, reply: AsgiReply, send: Send
) -> None:
    handler.refuse(request, rejection, reply)
    await reply.flush(send)


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
