"""One end of a TCP connection with exact control over segments, FIN and RST.

Rules of this file: nothing is buffered above the kernel, and ``consumed`` returns only when the
peer's process has read what was sent. So two sends with ``consumed`` between them are two reads
for the peer, without any sleeping.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import socket
import struct
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from tests.tools import PATIENCE_S

_SOCK_DIAG, _BY_FAMILY, _NLM_REQUEST, _NLM_ERROR = 4, 20, 1, 2
_ANY_STATE = 0xFFFFFFFF
_SIOCOUTQNSD = 0x894B
_MESSAGE_HEAD = 16 + 4 + 48
"""nlmsghdr, then family/state/timer/retransmits, then the socket's identity (linux/inet_diag.h)."""


def unread_by_peer(sock: socket.socket) -> int | None:
    """Bytes in the receive queue of the other end of a loopback connection. None: it is closed.

    Asks the kernel for that one socket by its addresses, so the price does not depend on how
    many sockets the machine has.
    """
    try:
        (own_host, own_port), (peer_host, peer_port) = sock.getsockname()[:2], sock.getpeername()[:2]
    except OSError:  # ENOTCONN: it was reset
        return None
    identity = (
        struct.pack("!HH", peer_port, own_port)
        + socket.inet_aton(peer_host).ljust(16, b"\0")
        + socket.inet_aton(own_host).ljust(16, b"\0")
        + struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
    )
    query = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, _ANY_STATE) + identity
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as netlink:
        netlink.setblocking(False)  # the kernel answers within send
        netlink.send(struct.pack("=IHHII", 16 + len(query), _BY_FAMILY, _NLM_REQUEST, 1, 0) + query)
        message = netlink.recv(8192)
    if struct.unpack_from("=H", message, 4)[0] == _NLM_ERROR:
        error = -struct.unpack_from("=i", message, 16)[0]
        if error in (2, 111):  # ENOENT, ECONNREFUSED: no such socket
            return None
        raise OSError(error, os.strerror(error))
    return int(struct.unpack_from("=IIIII", message, _MESSAGE_HEAD)[1])


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Wire:
    """A connected socket. Owns it: close it with ``close``, ``reset`` or ``async with``."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._waiters: set[asyncio.Future[None]] = set()

    async def send(self, data: bytes) -> None:
        """All of ``data`` is in the kernel. Raises ConnectionError once the peer has gone."""
        view = memoryview(data)
        while view:
            self._check_open()
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await self._ready(loop.add_writer, loop.remove_writer)

    async def send_apart(self, pieces: Iterable[bytes]) -> None:
        """Each piece reaches the peer in a read of its own."""
        for piece in pieces:
            await self.send(piece)
            await self.consumed()

    async def consumed(self) -> None:
        """The peer's process has read everything sent so far, or has closed."""
        async with asyncio.timeout(PATIENCE_S):
            # The kernel has no event for "was read", so this asks at every turn of the loop.
            while not self.is_closed and (self.unsent() or unread_by_peer(self.sock)):  # noqa: ASYNC110
                await asyncio.sleep(0)

    def unsent(self) -> int:
        """Bytes that have not left for the peer. Not those without an ACK: it may be delayed by
        40 ms although the peer has long read them."""
        return int(struct.unpack("=i", fcntl.ioctl(self.sock, _SIOCOUTQNSD, b"\0" * 4))[0])

    async def receive(self, limit: int = 65536) -> bytes:
        """Next bytes; ``b""`` is FIN. Raises ConnectionResetError on RST, ConnectionAbortedError
        when this end is closed meanwhile."""
        while True:
            self._check_open()
            try:
                return self.sock.recv(limit)
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await self._ready(loop.add_reader, loop.remove_reader)

    def _check_open(self) -> None:
        if self.is_closed:
            raise ConnectionAbortedError("closed on this end")

    async def _ready(self, watch: Callable[..., None], unwatch: Callable[[int], object]) -> None:
        """Not ``loop.sock_recv``: that leaves a closed descriptor in the selector when ``close`` is
        called by somebody else, and the next socket of this number inherits it."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        watch(self.sock.fileno(), _wake, waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
            if not self.is_closed:
                unwatch(self.sock.fileno())

    def finish(self) -> None:
        """FIN, and keep reading. Nothing happens if the connection is over."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """RST. What the peer has not read yet may be lost: ``await consumed()`` before, to be exact."""
        if not self.is_closed:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close()

    def close(self) -> None:
        """FIN after what was sent (RST if something received was never read). Idempotent."""
        if self.is_closed:
            return
        for waiter in self._waiters:
            loop = waiter.get_loop()
            loop.remove_reader(self.sock.fileno())
            loop.remove_writer(self.sock.fileno())
            if not waiter.done():
                waiter.set_exception(ConnectionAbortedError("closed on this end"))
        self.sock.close()

    @property
    def is_closed(self) -> bool:
        """Whether this end was closed by ``close`` or ``reset``."""
        return self.sock.fileno() == -1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """``data`` cut at these offsets; empty pieces are left out."""
    edges = [0, *cuts, len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]
