"""One call of the ``httpx`` transport: a task that pumps the answer to its Receiver.

Rules of this file: every exception of httpx2, h2 and ssl becomes an UpstreamError here and
nowhere else. What h11 and h2 let pass and RFC 9112 does not is refused here; what happens
inside of the library is read in ``httpx_trace.py``. The bytes are those of the wire: nothing is
decoded, nothing is normalised.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any, Final, Protocol

import httpx2

from mcp_proxy.clock import Deadlines
from mcp_proxy.errors import Phase, UpstreamError
from mcp_proxy.headers import HeaderError, check_fields, read_response
from mcp_proxy.upstream import Outgoing, Receiver
from mcp_proxy.upstream.httpx_trace import Trace
from mcp_proxy.wire import Fields, fields_of

CLOSE_S: Final = 1.0
"""How long giving a connection back may take; only a peer that does not read needs any time."""

_VERSIONS: Final = (b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2")

_BODYLESS: Final = frozenset((204, 304))

_UNSENT: Final = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
)
"""Raised only before the first byte of the request could leave."""

_LOST: Final = ("Server disconnected", "peer closed connection", "<StreamReset", "<ConnectionTerminated")
"""How messages of RemoteProtocolError begin when the peer left; all others say what it sent."""


class Lane:
    """A pool of connections and the number of calls that it carries."""

    __slots__ = ("inflight", "transport")

    def __init__(self, transport: httpx2.AsyncHTTPTransport) -> None:
        self.transport = transport
        self.inflight = 0

    @property
    def open_connections(self) -> int:
        return len(self.transport._pool.connections)


class Owner(Protocol):
    """The transport, as its calls see it."""

    url: httpx2.URL
    authority: bytes
    server_name: str | None
    connect_timeout_s: float | None
    head_due: Deadlines[HttpxCall]
    body_due: Deadlines[HttpxCall]
    is_closed: bool

    def forget(self, call: HttpxCall) -> None:
        """The call has ended and its task with it. Called exactly once."""

    def is_spare(self, lane: Lane) -> bool:
        """Whether the lane goes with the call that now ends."""


class HttpxCall:
    """Implements Call."""

    __slots__ = (
        "_gate", "_is_over", "_outgoing", "_owner", "_phase", "_receiver", "_trace", "lane", "task",
    )  # fmt: skip

    def __init__(self, owner: Owner, lane: Lane, outgoing: Outgoing, receiver: Receiver) -> None:
        self.lane = lane
        self.task: asyncio.Task[None]
        self._owner = owner
        self._outgoing = outgoing
        self._receiver = receiver
        self._trace = Trace(lane.transport, self._sending)
        self._phase = Phase.HEAD
        self._is_over = False
        """Nothing may be delivered any more."""
        self._gate: asyncio.Event | None = None
        """Exists while paused."""

    # --- Call ------------------------------------------------------------------------

    def pause(self) -> None:
        if self._gate is None:
            self._gate = asyncio.Event()

    def resume(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.set()

    def cancel(self) -> None:
        self._is_over = True
        self._stop()

    # --- the transport's side --------------------------------------------------------

    def fail(self, kind: str, detail: str) -> None:
        """End the call from outside of its task."""
        if not self._is_over:
            self._is_over = True
            self._receiver.on_error(UpstreamError(self._phase, kind, detail, sent=not self._trace.is_unsent))
            self._stop()

    def expire_head(self) -> None:
        self.fail("timeout", f"no response head within {self._owner.head_due.delay_s:g} s")

    def expire_body(self) -> None:
        if self._gate is not None:
            self._owner.body_due.arm(self)  # the client is slow, not the backend
        else:
            self.fail("timeout", f"no bytes for {self._owner.body_due.delay_s:g} s")

    def forget(self, _task: asyncio.Task[None]) -> None:
        # A callback of the task, because one cancelled before its first step runs no `finally`.
        self._owner.forget(self)

    async def run(self) -> None:
        try:
            # With an eager task factory this runs inside of `send`, which must return first.
            await asyncio.sleep(0)
            await self._relay()
        except UpstreamError as error:
            if not self._is_over:
                self._is_over = True
                self._receiver.on_error(error)
        except asyncio.CancelledError:
            self.fail("lost", "the proxy is closing")  # unless it was `cancel` or `fail`
            raise
        finally:
            await self._release()

    def _stop(self) -> None:
        # Called by its own Receiver, the pump ends by itself: it looks after every delivery.
        if asyncio.current_task() is not self.task:
            self.task.cancel()

    # --- request ---------------------------------------------------------------------

    async def _relay(self) -> None:
        if self._owner.is_closed:
            raise UpstreamError(Phase.CONNECT, "lost", "the proxy is closing", sent=False)
        response = await self._open()
        try:
            status, headers, length = self._read_head(response)
            self._phase = Phase.BODY
            self._owner.head_due.disarm(self)
            self._receiver.on_head(status, headers, length)
            if await self._pump(response):
                self._trace.completed()
        finally:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CLOSE_S):
                    await response.aclose()
        # The connection is free before the Receiver can ask for the next one.
        if not self._is_over:
            self._is_over = True
            self._receiver.on_end()

    async def _open(self) -> httpx2.Response:
        outgoing, owner = self._outgoing, self._owner
        headers = [(b"host", owner.authority), *outgoing.headers, *fields_of(outgoing.own)]
        if outgoing.body or outgoing.method == b"POST":
            headers.append((b"content-length", b"%d" % len(outgoing.body)))
        extensions: dict[str, Any] = {
            "target": outgoing.target,  # the bytes as they are; a URL would be normalised
            "timeout": {"connect": owner.connect_timeout_s, "pool": owner.connect_timeout_s},
            "trace": self._trace,
        }
        if owner.server_name is not None:
            extensions["sni_hostname"] = owner.server_name
        request = httpx2.Request(
            outgoing.method.decode("ascii"),
            owner.url,
            headers=headers,
            stream=httpx2.ByteStream(outgoing.body),
            extensions=extensions,
        )
        with self._mapped():
            return await self.lane.transport.handle_async_request(request)

    def _sending(self) -> None:
        """The request leaves."""
        self._owner.head_due.arm(self)

    # --- response --------------------------------------------------------------------

    def _read_head(self, response: httpx2.Response) -> tuple[int, Fields, int | None]:
        """What the Receiver gets, or UpstreamError."""
        status, version = response.status_code, response.extensions.get("http_version", b"HTTP/1.1")
        pairs = [(name.lower(), value) for name, value in response.headers.raw]
        try:
            # h2 lets CR, LF and NUL in values pass: they would split the answer on our side.
            check_fields(pairs)
            headers, length = read_response(pairs)
        except HeaderError as error:
            raise _invalid(error.detail) from None
        if not 200 <= status <= 599:
            raise _invalid("the response has no final status")  # an unsolicited 101, or 600 and up
        if version not in _VERSIONS:
            raise _invalid("the response is of an unknown HTTP version")
        # RFC 9112 section 6.1: a coding in HTTP/1.0; section 6.3 item 3: a coding and a length.
        # h11 takes both, and has refused any coding but `chunked`.
        is_coded = any(name == b"transfer-encoding" for name, _ in pairs)
        if is_coded and (version != b"HTTP/1.1" or length is not None):
            raise _invalid("the response has contradictory framing")
        if status in _BODYLESS or self._outgoing.method == b"HEAD":
            length = 0
        return status, headers, length

    async def _pump(self, response: httpx2.Response) -> bool:
        """Deliver the body; whether it has been read to its end."""
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        chunks = response.stream.__aiter__()
        idle = self._owner.body_due
        while not self._is_over:
            idle.arm(self)
            with self._mapped():
                chunk = await anext(chunks, None)
            while self._gate is not None:
                await self._gate.wait()
            if chunk is None:
                return True
            if chunk:  # h2 delivers empty frames
                self._receiver.on_body(chunk)
        return False

    async def _release(self) -> None:
        self._owner.head_due.disarm(self)
        self._owner.body_due.disarm(self)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_S):
                await self._trace.release()
                if self._owner.is_spare(self.lane):
                    await self.lane.transport.aclose()

    # --- errors ----------------------------------------------------------------------

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise self._map(error) from error

    def _map(self, error: Exception) -> UpstreamError:
        kind, detail = _judge(error)
        if isinstance(error, _UNSENT) or self._trace.is_unsent:
            return UpstreamError(Phase.CONNECT, kind, detail, sent=False)
        is_stale = kind == "lost" and self._phase is Phase.HEAD and self._trace.is_stale()
        return UpstreamError(self._phase, kind, detail, sent=True, stale=is_stale)


def _invalid(detail: str) -> UpstreamError:
    return UpstreamError(Phase.HEAD, "invalid", detail, sent=True)


def _judge(error: Exception) -> tuple[str, str]:
    """Kind and detail. Only connect errors are quoted: others may hold bytes of the message."""
    name = type(error).__name__
    if isinstance(error, httpx2.TimeoutException):
        return "timeout", f"{name} at the backend"
    if isinstance(error, httpx2.ConnectError) and _is_exhausted():
        return "exhausted", "no file descriptors left"
    if isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
        return "refused", f"cannot connect: {error}"
    if isinstance(error, httpx2.RemoteProtocolError) and str(error).startswith(_LOST):
        return "lost", "the backend closed the connection too early"
    if isinstance(error, httpx2.NetworkError | OSError):
        return "lost", f"the connection broke ({name})"
    return "invalid", f"the exchange broke the protocol ({name})"


def _is_exhausted() -> bool:
    """Whether this process is out of file descriptors. Asked of the system: what is left of the
    cause in the library's exceptions depends on how many addresses a name has."""
    try:
        socket.socket().close()
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return False
