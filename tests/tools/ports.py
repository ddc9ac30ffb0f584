"""Ports for servers that a test starts as processes.

Rules of this file: a port stays free between the moment in which it is found and that in which its server
binds it. So it is none that the kernel gives to anybody who asks for port 0 or connects, and processes of a
test run walk through the rest from different ends.
"""

from __future__ import annotations

import itertools
import os
import socket
from typing import Final

FIRST: Final = 10_000
COUNT: Final = 10_000
"""Below 32768, where the ephemeral ports of Linux begin, and so are the ports 10,000 above, which nodes of a
Redis Cluster take as well."""

_STRIDE: Final = 7919
"""A prime: processes with numbers that are near begin far from each other."""

_numbers = itertools.count(os.getpid() * _STRIDE)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, each given once."""
    found: list[int] = []
    while len(found) < count:
        port = FIRST + next(_numbers) % COUNT
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found
