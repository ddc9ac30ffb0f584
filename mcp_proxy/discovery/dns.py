"""Backends at the addresses of a name, as of a headless Service.

Rules of this file: the resolver of the system is asked, so /etc/hosts, search domains and name service
switches are what they are everywhere else on the machine. It tells no TTL. It has its own timeout
(resolv.conf) and gets no other: a thread that waits for it cannot be called back, and one more for every
look would use up those that connects need.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from mcp_proxy.backends import Endpoint
from mcp_proxy.discovery import Answer, LookError, merged
from mcp_proxy.discovery.polled import Polled

Resolve = Callable[[str, int], Awaitable[Sequence[tuple[Any, ...]]]]
"""As ``socket.getaddrinfo``, of a host and a port."""

_NOTHING: Final = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, name)
)
"""The name does not exist, or has no addresses: an answer. All else is none."""


async def resolve(host: str, port: int) -> Sequence[tuple[Any, ...]]:
    """AI_ADDRCONFIG: no IPv6 addresses on a machine without IPv6, which could only fail."""
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)


class DnsSource(Polled):
    """Every A and AAAA record of ``name`` is a backend on ``port``."""

    def __init__(
        self,
        name: str,
        port: int,
        *,
        path: str = "/mcp",
        tls: bool = False,
        every_s: float = 5.0,
        resolve: Resolve = resolve,
    ) -> None:
        super().__init__(f"dns {name}", self._ask, every_s)
        self._host = name
        self._port = port
        self._path = path
        self._tls = tls
        self._resolve = resolve

    async def _ask(self) -> Answer:
        try:
            found = await self._resolve(self._host, self._port)
        except socket.gaierror as error:
            if error.errno in _NOTHING:
                return Answer(())
            raise LookError("the name cannot be resolved", str(error.strerror)) from error
        except (OSError, UnicodeError) as error:
            raise LookError("the name cannot be resolved", str(error)) from error
        hosts = {str(address[0]) for *_, address in found}
        return Answer(merged(Endpoint(host, self._port, self._path, self._tls) for host in hosts))
