"""A forward proxy, as companies put between their networks and the world.

Rules of this file: it records the head of each connection and then copies bytes; what it sends
to the origin is what it was sent, so that the origin sees how well the proxy was spoken to.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType

from tests.tools.http1 import Head, parse_head


class EgressProxy:
    """``async with EgressProxy() as proxy``. ``verdict`` replaces a tunnel: bytes to answer the
    CONNECT with before closing, ``b""`` to close without a word."""

    def __init__(self) -> None:
        self.heads: list[Head] = []
        self.verdict: bytes | None = None
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> EgressProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            await self._forward(reader, writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw = await reader.readuntil(b"\r\n\r\n")
        head = parse_head(raw)
        self.heads.append(head)
        method, target, _ = head.start
        authority = target if method == b"CONNECT" else target.split(b"/")[2]
        if self.verdict is not None:
            writer.write(self.verdict)
            return
        host, _, port = authority.decode().partition(":")
        origin_reader, origin_writer = await asyncio.open_connection(host, int(port))
        with contextlib.closing(origin_writer):
            if method == b"CONNECT":
                writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            else:
                path = target.split(b"/", 3)[3]
                origin_writer.write(raw.replace(target, b"/" + path, 1))
            await asyncio.wait(
                [
                    asyncio.create_task(_copy(reader, origin_writer)),
                    asyncio.create_task(_copy(origin_reader, writer)),
                ]
            )


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, RuntimeError), contextlib.closing(writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
