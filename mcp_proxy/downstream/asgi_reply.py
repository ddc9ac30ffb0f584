"""The answer of the portable door: what the gateway pushes, handed to an ASGI server.

Rules of this file: pushing is synchronous and only collects; the app's coroutine sends, and
everything pushed in one iteration of the loop leaves as one piece. A broken answer is never
ended: an exception leaves the app, and the server cuts the connection.

An ended exchange is kept until it is recorded, with many others, and it keeps its reply. So a
reply has nothing of the server's request: ``receive`` and ``send`` live in the app's coroutine,
the rest is let go when that ends. With them, and the cycle of exchange and reply, a call costs
a quarter more CPU, all of it for memory: new for every request, and freed by the collector.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Final

from mcp_proxy.clock import Ticker
from mcp_proxy.tasks import Tasks
from mcp_proxy.wire import Conversation, Headers, fields_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

HIGH_WATER: Final = 64 * 1024
"""Bytes waiting for a slow client before the backend is paused; asyncio's own default."""

LOW_WATER: Final = 16 * 1024
"""Bytes left when it is resumed: far enough below, so that it is not paused by the next chunk."""

_BODYLESS: Final = frozenset((204, 304))

_CLOSE: Final = (b"connection", b"close")


class BrokenAnswer(Exception):
    """Leaves the app when the backend broke off. Not an error of the app: it is the only way in
    ASGI to let the client see a truncation (RFC 9112 section 8)."""


class Watchers:
    """Waits, for each answer in progress, for the client to leave.

    A watcher is a task, and most answers come before it would pay for itself: it starts with
    the first piece of an answer that goes on, or one to two ticks (0.1 s) after the request.
    """

    __slots__ = ("_new", "_old", "_tasks", "_ticker")

    def __init__(self) -> None:
        self._new: dict[AsgiReply, Receive] = {}
        self._old: dict[AsgiReply, Receive] = {}
        self._tasks = Tasks()
        self._ticker = Ticker()
        self._ticker.add(self._sweep)

    def start(self) -> None:
        self._ticker.start()

    def expect(self, reply: AsgiReply, receive: Receive) -> None:
        self._new[reply] = receive

    def forget(self, reply: AsgiReply) -> None:
        if self._new.pop(reply, None) is None:
            self._old.pop(reply, None)

    def spawn(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._tasks.spawn(coro)

    async def aclose(self) -> None:
        self._ticker.stop()
        await self._tasks.aclose()

    def _sweep(self, _at_s: float) -> None:
        old, self._old, self._new = self._old, self._new, {}
        for reply, receive in old.items():
            reply.start_watching(receive)


class AsgiReply:
    """Implements Reply for one request."""

    __slots__ = (
        "_bytes", "_conversation", "_is_broken", "_is_gone", "_is_paused", "_parts", "_start", "_wake",
        "_watcher", "_watchers", "closes", "is_over", "own",
    )  # fmt: skip

    def __init__(self, watchers: Watchers) -> None:
        self.own = b""
        self.closes = True
        """The connection must not be used again."""
        self.is_over = False
        """The gateway will push no more."""
        self._watchers = watchers
        self._conversation: Conversation | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None
        """What the app's coroutine waits for."""
        self._start: Message | None = None
        self._parts: list[bytes] = []
        self._bytes = 0
        """Pushed and not yet taken by the server."""
        self._is_broken = False
        self._is_paused = False
        self._is_gone = False

    # --- Reply -----------------------------------------------------------------------

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        if status not in _BODYLESS:
            self._parts.append(body)
        self.is_over = True
        self.start(status, headers, len(body))

    def start(self, status: int, headers: Headers, length: int | None) -> None:
        # Every server writes a Date of its own, and uvicorn a second one beside ours.
        fields = [pair for pair in headers if pair[0] != b"date"]
        fields += fields_of(self.own)
        if length is not None and status not in _BODYLESS:
            fields.append((b"content-length", b"%d" % length))
        if self.closes:
            fields.append(_CLOSE)
        self._start = {"type": "http.response.start", "status": status, "headers": fields}
        self._poke()

    def write(self, chunk: bytes) -> None:
        self._parts.append(chunk)
        self._bytes += len(chunk)
        if self._bytes > HIGH_WATER:
            self._pause()
        self._poke()

    def end(self) -> None:
        self.is_over = True
        self._poke()

    def abort(self) -> None:
        self._is_broken = True
        self.end()

    # --- the app's side --------------------------------------------------------------

    async def run(self, conversation: Conversation, receive: Receive, send: Send) -> None:
        """Send until the answer has ended or the client is gone. Raises BrokenAnswer."""
        self._conversation = conversation
        watchers = self._watchers
        watchers.expect(self, receive)
        is_complete = False
        try:
            while not is_complete and not self._is_gone:
                if self._start is None and not self._parts and not self.is_over:
                    self._wake = asyncio.get_running_loop().create_future()
                    await self._wake
                    self._wake = None
                else:
                    if not self.is_over:
                        self.start_watching(receive)
                    is_complete = await self.flush(send)
        except OSError:
            pass  # ASGI 2.4: the client is gone, and ``send`` says so
        except asyncio.CancelledError:
            # The patience of a server that shuts down is over; nothing told us before. What is not in
            # the middle of ``send`` can still be ended properly.
            if self._wake is not None:
                conversation.expire()
                with contextlib.suppress(Exception):
                    is_complete = await self.flush(send)
            raise
        finally:
            watchers.forget(self)
            if self._watcher is not None:
                self._watcher.cancel()
            if not is_complete:
                conversation.disconnect()
            self._conversation = self._watcher = None

    async def flush(self, send: Send) -> bool:
        """Hand to the server what has been pushed; whether that was the end of the answer."""
        is_over = self.is_over
        start, self._start = self._start, None
        parts, self._parts = self._parts, []
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if start is not None:
            await send(start)
        if body or not self._is_broken:
            # An empty piece, too: a server may keep the head until it has seen one.
            more = not is_over or self._is_broken
            await send({"type": "http.response.body", "body": body, "more_body": more})
        if is_over and self._is_broken:
            raise BrokenAnswer("the backend broke off")
        self._bytes -= len(body)
        if self._is_paused and self._bytes <= LOW_WATER:
            self._is_paused = False
            assert self._conversation is not None
            self._conversation.resume()
        return is_over

    def start_watching(self, receive: Receive) -> None:
        if self._watcher is None:
            self._watchers.forget(self)
            self._watcher = self._watchers.spawn(self._watch(receive))

    async def _watch(self, receive: Receive) -> None:
        with contextlib.suppress(Exception):  # a server that cannot tell has lost the client
            while (await receive())["type"] != "http.disconnect":
                pass
        self._is_gone = True
        if self._conversation is not None:
            self._conversation.disconnect()
        self._poke()

    def _pause(self) -> None:
        if self._conversation is not None and not self._is_paused:
            self._is_paused = True
            self._conversation.pause()

    def _poke(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
