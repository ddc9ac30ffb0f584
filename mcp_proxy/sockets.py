"""Socket options that both ends of the proxy share."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from typing import Final

KEEPALIVE_IDLE_S: Final = 60
KEEPALIVE_INTERVAL_S: Final = 15
KEEPALIVE_PROBES: Final = 4
"""A peer that vanished is noticed after two minutes; NAT tables keep idle flows for longer."""


def keep_alive(sock: socket.socket) -> None:
    """Let the kernel probe an idle connection (RFC 9293 section 3.8.4)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
    ):
        option = getattr(socket, name, None)  # not on every system
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def unsent_bytes(transport: asyncio.Transport) -> int:
    """What the peer has not acknowledged yet: the transport's buffer and the kernel's.

    The buffer of the transport alone does not tell whether a peer reads: the kernel takes more
    only when a good part of its own, megabytes with a fast peer, has been acknowledged.
    """
    unsent = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is not None:
        try:
            queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:
            return unsent
        unsent += struct.unpack("i", queued)[0]
    return unsent
