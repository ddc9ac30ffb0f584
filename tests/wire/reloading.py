"""The real proxy, whose configuration changes while it runs, and what it says of that.

Rules of this file: a reload is over when its counter says so; nobody waits for a time. ``reload`` asks with
a signal, ``place`` only changes the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.client import Answer, Client, call, get, post
from tests.tools.mcp_backend import INITIALIZE, McpServer, Stream
from tests.tools.proxy import ProxyProcess, launch, merge

Config = dict[str, Any]


class Site:
    """A proxy, its file, and the clients of a test, which are closed at its end."""

    def __init__(self, proxy: ProxyProcess, file: Path) -> None:
        self.proxy = proxy
        self.file = file
        self._clients: list[Client] = []

    # -- the configuration -----------------------------------------------------------------------

    def text(self, config: Config) -> str:
        """As ``launch`` would write it."""
        listen = {
            "listen": f"127.0.0.1:{self.proxy.port}",
            "admin": {"listen": f"127.0.0.1:{self.proxy.admin_port}"},
        }
        return json.dumps(merge(config, listen), indent=1)

    def place(self, text: str) -> None:
        """Another file under the same name, from one moment to the next."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text)
        os.replace(fresh, self.file)

    def hang_up(self) -> None:
        self.proxy.process.send_signal(signal.SIGHUP)

    async def reloads(self, result: str = "") -> float:
        labels = {"result": result} if result else {}
        return await self.proxy.metric("mcp_proxy_config_reloads_total", **labels)

    async def reloaded(self, count: float, result: str = "") -> None:
        """Wait until there were so many reloads."""

        async def is_done() -> bool:
            return await self.reloads(result) >= count

        await self.proxy.until(is_done, f"{count} reloads {result}: {self.proxy.output[-3000:]}")

    async def is_current(self) -> bool:
        return await self.proxy.metric("mcp_proxy_config_last_reload_success") == 1

    async def reload(self, config: Config) -> None:
        """Put ``config`` in force; it must be good."""
        before = await self.reloads()
        self.place(self.text(config))
        self.hang_up()
        await self.reloaded(before + 1)
        assert await self.is_current(), self.proxy.output[-3000:]

    async def refused(self, text: str) -> str:
        """Try to put ``text`` in force; what the log says of it."""
        before, at = await self.reloads("failed"), self.proxy.log_size()
        self.place(text)
        self.hang_up()
        await self.reloaded(before + 1, "failed")
        assert not await self.is_current()
        return self.log(at)

    def log(self, start: int = 0) -> str:
        return (self.file.parent / "stderr").read_bytes()[start:].decode()

    async def readiness(self) -> str:
        return (await self.proxy.admin("/readyz?verbose")).body.decode()

    # -- clients -----------------------------------------------------------------------------------

    async def client(self) -> Client:
        client = await Client.connect(self.proxy.port)
        self._clients.append(client)
        return client

    async def session(self, target: str = "/mcp") -> Session:
        client = await self.client()
        answer = await client.ask(post(INITIALIZE, target=target))
        assert answer.status == 200, answer
        return Session(client, (answer.head.one("mcp-session-id") or b"").decode(), target)

    async def session_on(self, server: McpServer, target: str = "/mcp") -> Session:
        """A session that lives at ``server``."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                session = await self.session(target)
                if session.id in server.sessions:
                    return session

    async def listening(self, session: Session, server: McpServer) -> tuple[Client, Stream]:
        """An open GET stream: the client's end, which has read the head, and the backend's."""
        client = await self.client()
        await client.send(get(session.field, target=session.target))
        stream = await server.streams.next()
        assert (await client.head("GET")).status == 200
        return client, stream

    def close(self) -> None:
        for client in self._clients:
            client.close()


class Session:
    """One session of a client on a connection of its own."""

    def __init__(self, client: Client, id: str, target: str) -> None:
        self.client = client
        self.id = id
        self.target = target
        self.field = f"Mcp-Session-Id: {id}"

    async def call(self, id: int = 2) -> Answer:
        return await self.client.ask(post(call(id), self.field, target=self.target))


async def flows(client: Client, stream: Stream, text: str) -> None:
    """An event goes through an open stream."""
    event = f"data: {text}\n\n".encode()
    await stream.send(event)
    assert await client.next_piece() == event


def pools(backends: Sequence[Backend | str], **settings: Any) -> Config:
    """One pool ``tools`` at ``/mcp``."""
    return {
        "pools": {"tools": {"backends": [getattr(each, "url", each) for each in backends], **settings}},
        "routes": [{"path": "/mcp", "pool": "tools"}],
    }


@contextlib.asynccontextmanager
async def site(config: Config, folder: Path) -> AsyncIterator[Site]:
    async with launch(config, folder) as proxy:
        running = Site(proxy, folder / "proxy.yaml")
        try:
            yield running
            assert proxy.traceback() == ""
        finally:
            running.close()


@contextlib.asynccontextmanager
async def servers(*names: str) -> AsyncIterator[tuple[list[McpServer], list[Backend]]]:
    """Session servers of these names, each a backend of its own."""
    async with contextlib.AsyncExitStack() as stack:
        scripted = [McpServer(name) for name in names]
        yield scripted, [await stack.enter_async_context(Backend(server)) for server in scripted]


@contextlib.asynccontextmanager
async def early(config: Config, folder: Path) -> AsyncIterator[Site]:
    """A proxy that gets SIGHUP as soon as it does not die of it, long before it is ready."""
    hurried = asyncio.create_task(_hang_up_early(folder / "proxy.yaml"))
    try:
        async with site(config, folder) as proxy:
            await hurried
            yield proxy
    finally:
        hurried.cancel()


async def _hang_up_early(file: Path) -> None:
    """The one wait with a pause: a process that has just begun says nothing."""
    while (pid := _heeds_a_hang_up(file)) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    os.kill(pid, signal.SIGHUP)


def _heeds_a_hang_up(file: Path) -> int | None:
    """The process with this configuration, once it ignores or handles SIGHUP."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(file).encode() in (process / "cmdline").read_bytes():
                lines = [line.split() for line in (process / "status").read_text().splitlines()]
                masks = [int(line[1], 16) for line in lines if line[0] in ("SigIgn:", "SigCgt:")]
                if any(mask >> (signal.SIGHUP - 1) & 1 for mask in masks):
                    return int(process.name)
    return None
