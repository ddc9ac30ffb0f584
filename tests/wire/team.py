"""A proxy with several workers, for tests of what operators and clients see of them.

Rules of this file: which worker accepts a connection is up to the kernel, so a test that cares
freezes the others while it connects.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from tests.tools.backend import Backend
from tests.tools.client import Client, call, post
from tests.tools.mcp_backend import Stream, Streams, json_answer
from tests.tools.proxy import ProxyProcess, launch, merge

SESSIONS = {"sessions": {"store": "signed", "keys": ["a secret of at least 32 characters"]}}


class Team:
    """A proxy with two workers, and one backend."""

    def __init__(self, proxy: ProxyProcess, backend: Backend) -> None:
        self.proxy = proxy
        self.backend = backend

    async def pids(self) -> list[int]:
        return [worker["pid"] for worker in (await self.proxy.status())["workers"]]

    async def connect(self, pid: int) -> Client:
        """A connection that this worker has accepted."""
        others = [other for other in await self.pids() if other != pid]
        with frozen(*others):
            client = await Client.connect(self.proxy.port)
            assert (await client.ask(post(call(1)))).status == 200
        return client

    async def call(self, pid: int, count: int) -> None:
        async with await self.connect(pid) as client:
            for number in range(count - 1):
                assert (await client.ask(post(call(number)))).status == 200

    async def stream(self, pid: int, streams: Streams) -> tuple[Client, Stream]:
        """An answer in progress that this worker relays."""
        client = await self.connect(pid)
        self.backend.handler = streams
        await client.send(post(call(2)))
        stream = await streams.next()
        await client.head()
        self.backend.handler = json_answer()
        return client, stream

    async def is_closed(self) -> bool:
        try:
            (await Client.connect(self.proxy.port)).close()
        except OSError:  # refused, or reset by a listener that closes in this moment
            return True
        return False

    async def replaced(self, pid: int) -> None:
        async def is_replaced() -> bool:
            pids = await self.pids()
            return len(pids) == 2 and pid not in pids

        await self.proxy.until(is_replaced, "there are two workers again")

    async def draining(self) -> None:
        async def is_draining() -> bool:
            return (await self.proxy.admin("/readyz")).status == 503

        await self.proxy.until(is_draining, "the proxy is draining")


@contextlib.contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """These processes do nothing."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def team(folder: Path, **settings: Any) -> AsyncIterator[Team]:
    async with Backend(json_answer()) as backend:
        base = {
            "workers": 2,
            "pools": {"tools": {"backends": [backend.url]}},
            "routes": [{"path": "/mcp", "pool": "tools"}],
            **SESSIONS,
        }
        async with launch(merge(base, settings), folder) as proxy:
            yield Team(proxy, backend)
