"""HTTP/1.1 over one socket, with the moment at which each byte came.

Rules of this file: what the kernel has is taken at once, in whatever portion it comes; nothing waits for a
size, a line or the end. HTTP client libraries do (geventhttpclient reads until a buffer is full), and then
the first event of a stream seems to come with its last. It is ordinary blocking code: under gevent's patched
sockets it yields, in a test it simply blocks. A request that was sent is never sent again here.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, Literal

import httptools

from mcp_proxy.load import Target

CONNECT_S: Final = 5.0
_READ_BYTES: Final = 65536
_SEND_BYTES: Final = 256 * 1024
"""One piece of a large body: between two, an early answer is seen."""
_LOOK_S: Final = 0.05
"""So often, too, if the other side does not take the next piece."""
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024

Phase = Literal["connect", "send", "head", "body"]


class Broken(Exception):
    """No answer, or no whole answer. ``phase`` says how far it came."""

    def __init__(self, phase: Phase, reason: str) -> None:
        super().__init__(reason)
        self.phase = phase
        self.reason = reason


class Reply:
    """One answer in progress. Made by ``Connection.ask``; its head is here, its body comes."""

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        """By lower-case name; of several lines the last."""
        self.head_at = 0.0
        self.arrived_at = 0.0
        """When the bytes came that were returned last (``time.perf_counter``)."""
        self.is_whole = False
        self._connection = connection
        self._pieces: list[bytes] = []
        self._has_head = False
        self._is_framed = False
        self._has_surplus = False
        self._is_early = False

    # Called by the parser

    def on_message_begin(self) -> None:
        self._has_surplus = self.is_whole

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._has_surplus:
            return
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._has_surplus:
            return
        self.status = self._connection.parser_status()
        if self.status >= 200:
            self._has_head = True
            coded = "chunked" in self.headers.get("transfer-encoding", "").lower()
            self._is_framed = coded or "content-length" in self.headers or self.status in (204, 304)

    def on_body(self, data: bytes) -> None:
        if not self._has_surplus:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._has_head:
            self.is_whole = True
        else:  # 1xx
            self.headers.clear()

    # Called by whoever asked

    @property
    def has_head(self) -> bool:
        return self._has_head

    def note_early(self) -> None:
        """It came before the request was sent, whose rest nobody will send."""
        self._is_early = True

    @property
    def may_stay(self) -> bool:
        """Whether the connection may be used again after this answer. Not if there was more than it, or if
        the request is not whole."""
        return (
            self._is_framed
            and not self._has_surplus
            and not self._is_early
            and "close" not in self.headers.get("connection", "").lower()
        )

    def some(self, timeout_s: float) -> bytes:
        """The next bytes of the body as soon as there are any; ``b""`` when it has ended properly.

        Raises TimeoutError if none come (the reply can be read on), Broken if none will."""
        until = time.perf_counter() + timeout_s
        while not self._pieces and not self.is_whole:
            self._connection.receive(self, "body", until - time.perf_counter())
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data

    def whole(self, timeout_s: float) -> bytes:
        """All of the body. Raises like ``some``."""
        until = time.perf_counter() + timeout_s
        parts: list[bytes] = []
        size = 0
        while data := self.some(until - time.perf_counter()):
            parts.append(data)
            size += len(data)
            if size > MAX_ANSWER_BYTES:
                raise Broken("body", f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        return b"".join(parts)

    def ended_by_close(self) -> bool:
        """The connection has ended: is that the end of this body (RFC 9112 section 6.3, rule 8)?"""
        if self._has_head and not self._is_framed:
            self.is_whole = True
        return self.is_whole


class Connection:
    """One connection; one request at a time. The owner closes it."""

    def __init__(self, target: Target, *, verify: bool = True, timeout_s: float = CONNECT_S) -> None:
        """Raises Broken("connect")."""
        self._target = target
        self._parser: httptools.HttpResponseParser | None = None
        self._reply: Reply | None = None
        self.requests = 0
        try:
            self._sock = _connected(target, verify, timeout_s)
        except (OSError, UnicodeError) as error:  # UnicodeError: names that DNS cannot have
            raise Broken("connect", f"cannot connect: {_words(error)}") from error

    def ask(
        self,
        method: str,
        headers: Iterable[tuple[str, str]],
        body: bytes | None,
        timeout_s: float,
        *,
        path: str | None = None,
        host: str | None = None,
    ) -> Reply:
        """Send a request; returns when the head of its answer is here. Raises Broken, TimeoutError."""
        reply = self._reply = Reply(self)
        self._parser = httptools.HttpResponseParser(reply)
        lines = [f"{method} {path or self._target.path} HTTP/1.1", f"Host: {host or self._target.authority}"]
        lines += [f"{name}: {value}" for name, value in headers]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join([*lines, "\r\n"]).encode("latin-1")
        until = time.perf_counter() + timeout_s
        self.requests += 1
        self._send(reply, head + (body or b""), until)
        while not reply.has_head:
            self.receive(reply, "head", until - time.perf_counter())
        reply.head_at = reply.arrived_at
        return reply

    def _send(self, reply: Reply, data: bytes, until: float) -> None:
        """A server may answer and stop reading: what it said is worth more than that it did."""
        left = memoryview(data)
        try:
            while left and not reply.has_head:
                left = left[self._send_some(left, until) :]
                if left:
                    self._look(reply)
        except TimeoutError:
            raise
        except Broken as broken:
            raise Broken("send", broken.reason) from broken
        except OSError as error:
            try:
                while not reply.has_head:
                    self.receive(reply, "head", 1.0)
            except (Broken, TimeoutError):
                raise Broken("send", f"connection lost while sending: {_words(error)}") from error
        if left:
            reply.note_early()

    def _send_some(self, data: memoryview, until: float) -> int:
        """How many bytes went; 0 if none did for a while. Raises OSError, TimeoutError at the deadline."""
        left_s = until - time.perf_counter()
        if left_s <= 0:
            raise TimeoutError
        self._sock.settimeout(min(left_s, _LOOK_S))
        try:
            return self._sock.send(data[:_SEND_BYTES])
        except TimeoutError:
            return 0

    def _look(self, reply: Reply) -> None:
        """Take what has come, without waiting. Raises Broken."""
        with contextlib.suppress(TimeoutError):
            self._take(reply, "head", 0.0)

    def receive(self, reply: Reply, phase: Phase, timeout_s: float) -> None:
        """One read from the socket, whatever it holds. Raises Broken, TimeoutError."""
        if timeout_s <= 0:
            raise TimeoutError
        self._take(reply, phase, timeout_s)

    def _take(self, reply: Reply, phase: Phase, timeout_s: float) -> None:
        try:
            self._sock.settimeout(timeout_s)
            data = self._sock.recv(_READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            raise TimeoutError from None
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:  # ValueError: TLS that was shut down by ``stop``
            raise Broken(phase, f"connection lost: {_words(error)}") from error
        reply.arrived_at = time.perf_counter()
        if not data:
            if reply.ended_by_close():
                return
            where = "before the answer" if phase == "head" else "inside the answer"
            raise Broken(phase, f"connection closed {where}")
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise Broken(phase, "not HTTP") from error

    def parser_status(self) -> int:
        assert self._parser is not None
        return int(self._parser.get_status_code())

    def is_usable(self) -> bool:
        """Nothing has come since the last answer ended, not even an end. What looks usable may still end
        in the moment in which it is used."""
        if self._reply is not None and not (self._reply.is_whole and self._reply.may_stay):
            return False
        self._sock.settimeout(0)
        try:
            self._sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def stop(self) -> None:
        """Whoever reads, in another thread, gets an end. ``close`` alone would leave him waiting."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Idempotent."""
        self._sock.close()


def _connected(target: Target, verify: bool, timeout_s: float) -> socket.socket:
    sock = socket.create_connection((target.host, target.port), timeout_s)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target.scheme == "https":
            return _tls(verify).wrap_socket(sock, server_hostname=target.host)
    except BaseException:
        sock.close()
        raise
    return sock


@lru_cache
def _tls(verify: bool) -> ssl.SSLContext:
    """Made once: it reads every certificate that the system trusts. ``SSL_CERT_FILE`` names others."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _words(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {error.verify_message}"
    words = error.strerror if isinstance(error, OSError) else None
    return (words or str(error) or type(error).__name__).lower()
