"""A transport without a socket, and the strict reading of what was written to it.

Rules of this file: the fake does what uvloop's TCPTransport does, oddities included;
``test_fake_transport.py`` runs one contract against both. Nothing happens behind the test's
back: bytes arrive by ``feed``, the peer reads by ``peer_reads``, and what the real one does in
a later turn of the loop the fake does in a later turn, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.tools import PATIENCE_S
from tests.tools.http1 import UNTIL_CLOSE, Body, Head, parse_head, response_length

HIGH_WATER = 64 * 1024
LOW_WATER = 16 * 1024


async def settle(turns: int = 4) -> None:
    """Let everything run that is due now."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], turn_s: float = 0.0) -> None:
    """Wait for something that other tasks and callbacks bring about, for as long as tests wait.
    ``turn_s``: for what needs real time, as timers do."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(turn_s)


class FakeTransport(asyncio.Transport):
    """``sent`` has reached the peer; what a peer does not read waits in ``buffered``."""

    def __init__(self, *, peername: object = ("192.0.2.7", 50000), tls: bool = False) -> None:
        extra: dict[str, Any] = {"peername": peername}
        if tls:
            extra["sslcontext"] = object()
        super().__init__(extra)
        self.sent = bytearray()
        self.buffered = bytearray()
        self.is_stalled = False
        """The peer does not read."""
        self.is_reading_now = True
        self.has_sent_eof = False
        self.fate = ""
        """How this end finished: ``closed`` or ``aborted``; ``lost`` when the peer reset it."""
        self.lost: list[BaseException | None] = []
        """One entry per call of ``connection_lost``."""
        self._is_tls = tls
        self._is_closing = False
        self._is_gone = False
        self._is_write_paused = False
        self._eof = False
        self._protocol: asyncio.Protocol

    def attach(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        protocol.connection_made(self)

    # -- the peer's side -----------------------------------------------------------------------

    def feed(self, *segments: bytes) -> None:
        """Bytes arrive, each segment in a read of its own, unless nobody reads."""
        for segment in segments:
            if self.is_reading_now and not self._is_closing:
                self._protocol.data_received(segment)

    def feed_late(self, segment: bytes) -> None:
        """Bytes that were decrypted before ``close`` was called: only TLS transports deliver them."""
        assert self._is_tls
        if not self._is_gone:
            self._protocol.data_received(segment)

    def peer_reads(self, count: int | None = None) -> None:
        """The peer takes ``count`` bytes of what waits, or all of it."""
        if self._is_gone:
            return
        taken = self.buffered[:count]
        del self.buffered[: len(taken)]
        self.sent += taken
        if self._is_write_paused and len(self.buffered) <= LOW_WATER:
            self._is_write_paused = False
            self._protocol.resume_writing()
        self._flushed()

    def peer_finishes(self) -> None:
        """FIN."""
        if not self._is_closing and not self._protocol.eof_received():
            self.close()

    def peer_resets(self) -> None:
        """RST."""
        self._end("lost", ConnectionResetError(104, "Connection reset by peer"))

    # -- asyncio.Transport ---------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_gone:
            raise RuntimeError("the handler is closed")
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self.fate in ("aborted", "lost"):
            return
        if self.is_stalled or self.buffered:
            self.buffered += data
            if len(self.buffered) > HIGH_WATER and not self._is_write_paused:
                self._is_write_paused = True
                self._protocol.pause_writing()
        else:
            self.sent += data

    def write_eof(self) -> None:
        if self._is_gone:
            raise RuntimeError("the handler is closed")
        assert self.can_write_eof()
        self._eof = True
        self._flushed()

    def can_write_eof(self) -> bool:
        return not self._is_tls

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self.fate = "closed"
            if not self.buffered:
                asyncio.get_running_loop().call_soon(self._lose, None)

    def abort(self) -> None:
        self._end("aborted", None)

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self.is_reading_now = False

    def resume_reading(self) -> None:
        self.is_reading_now = True

    def is_reading(self) -> bool:
        return self.is_reading_now and not self._is_closing

    def get_write_buffer_size(self) -> int:
        return len(self.buffered)

    # -- internals -----------------------------------------------------------------------------

    def _flushed(self) -> None:
        if self.buffered:
            return
        if self._eof:
            self.has_sent_eof = True
        if self.fate == "closed" and not self.lost:
            asyncio.get_running_loop().call_soon(self._lose, None)

    def _end(self, fate: str, error: BaseException | None) -> None:
        if self.fate in ("aborted", "lost") or self._is_gone:
            return
        self.fate = fate
        self._is_closing = True
        self.buffered.clear()
        asyncio.get_running_loop().call_soon(self._lose, error)

    def _lose(self, error: BaseException | None) -> None:
        if not self._is_gone:
            self._is_gone = True
            self.lost.append(error)
            protocol = self._protocol
            del self._protocol  # so does the real one
            protocol.connection_lost(error)  # type: ignore[arg-type]


def places(numbers: list[int], length: int) -> list[int]:
    """``numbers``, drawn before the length was known, as sorted places within it.

    An asynchronous test must not draw while it runs: the exception with which hypothesis stops an
    example would end the task that all tests of the loop run in."""
    return sorted({number % length for number in numbers} if length else ())


@dataclass(frozen=True)
class Reading:
    """One response as a strict client reads it."""

    head: Head
    body: bytes
    framing: str
    """``whole``, ``broken`` (more was promised) or ``until-close``."""

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def reason(self) -> str:
        return (self.head.one("mcp-proxy-reason") or b"").decode()

    @property
    def closes(self) -> bool:
        return self.head.all("connection") == [b"close"]


def read_responses(raw: bytes, *methods: bytes) -> list[Reading]:
    """All responses in ``raw``, 1xx included. ``methods`` are those of the final ones, POST if not
    given. Raises Malformed."""
    readings: list[Reading] = []
    expected = list(methods)
    while raw:
        head_bytes, end, raw = raw.partition(b"\r\n\r\n")
        assert end, f"half a head: {head_bytes!r}"
        head = parse_head(head_bytes + end)
        method = expected.pop(0) if expected and head.status >= 200 else b"POST"
        body = Body(response_length(head, method))
        body.feed(raw)
        raw = body.surplus
        framing = "whole" if body.done else "until-close" if body.length == UNTIL_CLOSE else "broken"
        readings.append(Reading(head, bytes(body.content), framing))
    return readings


def read_response(raw: bytes, method: bytes = b"POST") -> Reading:
    """The only response in ``raw``."""
    (reading,) = read_responses(raw, method)
    return reading
