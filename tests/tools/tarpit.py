"""A port on which a connect neither succeeds nor fails.

Rules of this file: Linux drops the SYN when the accept queue is full, so the connecting side stays
in SYN_SENT, and that is all there is to see of it.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

_SYN_SENT = "02"


class Tarpit:
    """``async with Tarpit() as tarpit``. Holds its own queue full; closes everything at the end."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.port: int = self._listener.getsockname()[1]
        self._fillers: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def attempts(self) -> int:
        """Connects in progress on this machine."""
        wanted = f"0100007F:{self.port:04X}"
        rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(row[2] == wanted and row[3] == _SYN_SENT for row in rows)

    async def __aenter__(self) -> Self:
        while self.attempts() == 0:
            sock = socket.socket()
            sock.setblocking(False)
            self._fillers.append(sock)
            sock.connect_ex(("127.0.0.1", self.port))
            await asyncio.sleep(0)
        self._fillers.pop().close()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in (*self._fillers, self._listener):
            sock.close()
