"""The two sides of an exchange, in the test's hands: a client's Reply and a backend's Transport.

Rules of this file: each checks the order of calls that its Protocol demands, on both sides, so
that every test with them is a test of the order, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from mcp_proxy.errors import Phase, UpstreamError
from mcp_proxy.upstream import Outgoing, Receiver
from mcp_proxy.wire import Conversation, Fields, Headers


class StrictReply:
    """A client. ``leave`` is its disconnect; no call may follow."""

    def __init__(self) -> None:
        self.own = b""
        self.status = 0
        self.headers: Headers = []
        self.length: int | None = None
        self.body = b""
        self.chunks: list[bytes] = []
        self.outcome = ""
        """``answer``, ``end`` or ``abort``."""
        self.has_started = False
        self.is_gone = False

    def _check(self) -> None:
        assert not self.is_gone, "the client is gone"
        assert not self.outcome, f"already {self.outcome}"

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        self._check()
        assert not self.has_started
        self.status, self.headers, self.body, self.outcome = status, list(headers), body, "answer"

    def start(self, status: int, headers: Headers, length: int | None) -> None:
        self._check()
        assert not self.has_started
        self.has_started = True
        self.status, self.headers, self.length = status, list(headers), length

    def write(self, chunk: bytes) -> None:
        self._check()
        assert self.has_started
        assert chunk
        self.body += chunk
        self.chunks.append(chunk)
        assert self.length is None or len(self.body) <= self.length

    def end(self) -> None:
        self._check()
        assert self.has_started
        assert self.length is None or len(self.body) == self.length, "a clean end of a short body"
        self.outcome = "end"

    def abort(self) -> None:
        self._check()
        self.outcome = "abort"

    def leave(self, conversation: Conversation) -> None:
        """Disconnect, unless the answer is complete (then the door has no conversation any more)."""
        if not self.outcome:
            self.is_gone = True
            conversation.disconnect()

    @property
    def reason(self) -> str:
        return (self.one(b"mcp-proxy-reason") or b"").decode()

    def one(self, name: bytes) -> bytes | None:
        values = [value for key, value in self.headers if key == name]
        assert len(values) < 2, f"{name!r} more than once"
        return values[0] if values else None


class Attempt:
    """One request at a backend; implements Call. The test plays the backend."""

    def __init__(self, outgoing: Outgoing, receiver: Receiver, fresh: bool, backend: str) -> None:
        self.outgoing = outgoing
        self.fresh = fresh
        self.backend = backend
        self.is_over = False
        self.is_cancelled = False
        self.is_paused = False
        self.has_head = False
        self._receiver: Receiver | None = receiver

    # -- Call

    def _check(self) -> None:
        assert not self.is_over, "a Call must be dropped when it is over"

    def pause(self) -> None:
        self._check()
        self.is_paused = True

    def resume(self) -> None:
        self._check()
        self.is_paused = False

    def cancel(self) -> None:
        self._check()
        self.is_over = self.is_cancelled = True
        self._receiver = None

    # -- the backend

    def _told(self) -> Receiver:
        assert self._receiver is not None, "the call is over"
        return self._receiver

    def head(
        self, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = (), length: int | None = None
    ) -> None:
        assert not self.has_head
        self.has_head = True
        self._told().on_head(status, Fields(headers), length)

    def body(self, *chunks: bytes) -> None:
        assert self.has_head
        for chunk in chunks:
            if self._receiver is not None:
                self._receiver.on_body(chunk)

    def end(self) -> None:
        assert self.has_head
        receiver, self._receiver = self._told(), None
        self.is_over = True
        receiver.on_end()

    def whole(
        self, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b"{}"
    ) -> None:
        """An answer that arrives in one piece."""
        assert not self.has_head
        receiver, self._receiver = self._told(), None
        self.is_over = self.has_head = True
        # A block is handed over as it is, with what was read from it, as transports do.
        receiver.on_whole(status, headers if isinstance(headers, Fields) else Fields(headers), body)

    def answer(self, status: int = 200, body: bytes = b"{}", *headers: tuple[bytes, bytes]) -> None:
        """A whole JSON answer, piece by piece."""
        self.head(status, [(b"content-type", b"application/json"), *headers], len(body))
        if body and not self.is_over:
            self.body(body)
        if not self.is_over:
            self.end()

    def fail(self, kind: str = "lost", *, stale: bool = False) -> None:
        """``refused unresolved exhausted`` and ``unreached`` (a timeout) are failures to connect."""
        receiver, self._receiver = self._told(), None
        self.is_over = True
        is_connect = kind in ("refused", "unresolved", "exhausted", "unreached")
        phase = Phase.CONNECT if is_connect else Phase.BODY if self.has_head else Phase.HEAD
        word = "timeout" if kind == "unreached" else kind
        receiver.on_error(UpstreamError(phase, word, "scripted", sent=not is_connect, stale=stale))


class ScriptedTransport:
    """Implements Transport; every request waits in ``attempts`` for the test."""

    def __init__(self, backend: str, log: list[Attempt]) -> None:
        self.attempts = log
        self.is_closed = False
        self.is_up: bool | None = True
        """What a probe finds, once ``gate`` lets it."""
        self.gate: asyncio.Event | None = None
        self.probes = 0
        self._backend = backend

    def send(self, outgoing: Outgoing, receiver: Receiver, *, fresh: bool = False) -> Attempt:
        attempt = Attempt(outgoing, receiver, fresh, self._backend)
        self.attempts.append(attempt)
        return attempt

    async def probe(self) -> bool | None:
        self.probes += 1
        if self.gate is not None:
            await self.gate.wait()
        return self.is_up

    @property
    def open_connections(self) -> int:
        return sum(not attempt.is_over for attempt in self.attempts if attempt.backend == self._backend)

    @property
    def is_idle(self) -> bool:
        return self.open_connections == 0

    def sweep(self, at_s: float) -> None:
        """No timeouts here."""

    async def aclose(self) -> None:
        self.is_closed = True


class Spawned:
    """Implements Spawner."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []

    def spawn(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coro)
        self.tasks.append(task)
        return task
