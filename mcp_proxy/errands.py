"""Requests that the proxy sends to a backend on its own account.

Rules of this file: every errand has a deadline and a bound on what it reads, and its connection is
closed when either is reached.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final, NamedTuple

from mcp_proxy.backends import Backend
from mcp_proxy.clock import patience
from mcp_proxy.errors import Phase, UpstreamError
from mcp_proxy.pools import Pool
from mcp_proxy.upstream import Outgoing, Transport
from mcp_proxy.wire import Fields, Headers

PATIENCE_S: Final = 5.0
"""A backend that has not answered by then is not asked again."""

ANSWER_LIMIT: Final = 256 * 1024
"""Body of an answer. That of ``initialize`` may hold instructions for a model, a few KiB long."""


class Answer(NamedTuple):
    status: int
    headers: Fields
    body: bytes


async def ask(transport: Transport, outgoing: Outgoing, seconds: float) -> Answer:
    """Send a request and collect the whole answer. Raises UpstreamError, also when it takes longer
    than ``seconds``; ``error.sent`` is False only if the backend certainly saw nothing."""
    errand = _Errand()
    call = transport.send(outgoing, errand)
    try:
        async with patience(seconds):
            return await errand.answer
    except TimeoutError:
        raise UpstreamError(Phase.HEAD, "timeout", f"no answer within {seconds:g} s", sent=True) from None
    finally:
        if not errand.is_over:
            call.cancel()


def own_headers(headers: Headers) -> Headers:
    """For a POST of the proxy's own: ``headers`` of a client's request towards backends, without what
    belongs to that one request."""
    kept = [pair for pair in headers if pair[0] not in _OF_ONE_REQUEST and pair[0][:10] != b"mcp-param-"]
    return [
        *kept,
        (b"content-type", b"application/json"),
        (b"accept", b"application/json, text/event-stream"),
    ]


async def say_goodbye(pool: Pool, backend: Backend, session_id: bytes, headers: Headers) -> None:
    """End, at its backend, a session that no client knows. Best effort: backends reap idle sessions
    themselves, but only after half an hour or so. ``headers``: of a request towards backends."""
    if pool.find(backend.id) is None:
        return  # it left before anybody could know that this is in vain
    kept = [pair for pair in headers if pair[0] not in _OF_THE_BODY]
    outgoing = Outgoing(b"DELETE", backend.path, Fields([*kept, (b"mcp-session-id", session_id)]), b"")
    with suppress(UpstreamError):
        await ask(pool.transport(backend), outgoing, PATIENCE_S)


_OF_THE_BODY: Final = frozenset((b"content-type", b"accept", b"mcp-session-id"))

_OF_ONE_REQUEST: Final = _OF_THE_BODY | {
    b"accept-encoding", b"last-event-id", b"mcp-method", b"mcp-name", b"mcp-protocol-version",
    b"traceparent", b"tracestate",
}  # fmt: skip


class _Errand:
    """Implements Receiver."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.is_over = False
        """The call has ended by itself and must not be touched any more."""
        self._status = 0
        self._headers = Fields()
        self._parts: list[bytes] = []
        self._size = 0

    def on_whole(self, status: int, headers: Fields, body: bytes) -> None:
        self.is_over = True
        self._settle(Answer(status, headers, body))

    def on_head(self, status: int, headers: Fields, length: int | None) -> None:
        self._status, self._headers = status, headers

    def on_body(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size <= ANSWER_LIMIT:
            self._parts.append(chunk)
        elif not self.answer.done():
            error = UpstreamError(Phase.BODY, "invalid", f"an answer of over {ANSWER_LIMIT} bytes", sent=True)
            self.answer.set_exception(error)

    def on_end(self) -> None:
        self.is_over = True
        self._settle(Answer(self._status, self._headers, b"".join(self._parts)))

    def on_error(self, error: UpstreamError) -> None:
        self.is_over = True
        if not self.answer.done():
            self.answer.set_exception(error)

    def _settle(self, answer: Answer) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)
