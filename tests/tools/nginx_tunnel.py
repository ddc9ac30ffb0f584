"""Plain TCP in, TLS out: the raw client of the tests speaks through it to a server that speaks TLS only.

Rules of this file: bytes are passed on as they come, in both directions, and an end of one side is an end of
the other. It knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path


def trusting(certificate: Path, *protocols: str) -> ssl.SSLContext:
    """For a client that believes exactly this certificate; ``protocols`` by ALPN."""
    context = ssl.create_default_context(cafile=certificate)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


@contextlib.asynccontextmanager
async def tunnel(port: int, name: str, context: ssl.SSLContext) -> AsyncIterator[int]:
    """To ``port`` of 127.0.0.1, where ``name`` is asked for; yields the plain port."""
    tasks: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            to = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
            ways = [asyncio.create_task(_pump(reader, to[1])), asyncio.create_task(_pump(to[0], writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                to[1].transport.abort()
        writer.close()

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
