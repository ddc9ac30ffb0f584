"""Three replicas behind nginx are restarted one after the other, while clients call, listen and stream.

Rules of this file: every session lives in one of two scripted backends, which count what reaches them;
what a client saw is judged whole at the end. Nobody waits for a time: a replica is restarted when every
client has been served again since the last one came back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.client import Client, call, get, post
from tests.tools.http1 import LAST_CHUNK
from tests.tools.mcp_backend import INITIALIZE, JSON, McpServer, result
from tests.tools.nginx import nginx
from tests.tools.ports import free_ports
from tests.tools.proxy import launch
from tests.tools.recording import Conn, Seen
from tests.tools.redis_server import RedisServer

SESSIONS = 8
REPLICAS = 3
KEY = "a-key-for-the-rolling-restart-0123456789"


class EventServer(McpServer):
    """Its GET streams begin where ``Last-Event-ID`` says; its tool ``count`` answers with an event stream."""

    def __init__(self, name: str) -> None:
        super().__init__(name, tool=self._call)
        self.resumed: list[tuple[str, str]] = []
        """Session and Last-Event-ID of every GET that had one."""
        self.streams = self._listen  # type: ignore[assignment]

    async def _listen(self, request: Seen, conn: Conn) -> None:
        last = (request.head.one("last-event-id") or b"").decode()
        session = (request.head.one("mcp-session-id") or b"").decode()
        if last:
            self.resumed.append((session, last))
        await conn.stream_head("")
        number = int(last or 0) + 1
        await conn.send_chunk(b'id: %d\ndata: {"n":%d}\n\n' % (number, number))
        await conn.until(lambda: bool(conn.closed_by))

    async def _call(self, request: Seen, conn: Conn) -> None:
        message = json.loads(await request.whole())
        if message["params"]["name"] != "count":
            session = (request.head.one("mcp-session-id") or b"").decode()
            await conn.answer(200, [JSON], result(message, session=session))
            return
        await conn.stream_head("")
        for number in range(3):
            await conn.send_chunk(b'data: {"step":%d}\n\n' % number)
        await conn.send_chunk(b"data: " + result(message, done=True) + b"\n\n")
        await conn.send(LAST_CHUNK)


class Walker:
    """One client with one session: it calls all the time, and listens all the time."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.session = ""
        self.failures: list[str] = []
        self.calls = 0
        self.ends: list[str] = []
        """How each of its GET streams ended."""
        self.torn: list[bytes] = []
        """What came after the last whole event of a stream."""
        self.last_event = 0
        self.progress = asyncio.Event()
        self.stops = False

    async def begin(self) -> None:
        client = await Client.connect(self.port)
        answer = await client.ask(post(INITIALIZE))
        client.close()
        assert answer.status == 200, answer
        self.session = (answer.head.one("mcp-session-id") or b"").decode()

    @property
    def _field(self) -> str:
        return f"Mcp-Session-Id: {self.session}"

    async def call_on(self) -> None:
        """On a keep-alive connection, which nginx may spread over all replicas."""
        client = await Client.connect(self.port)
        while not self.stops:
            self.calls += 1
            name = "count" if self.calls % 4 == 0 else "echo"
            answer = await client.ask(post(call(self.calls, name=name), self._field))
            whole = answer.status == 200 and answer.framing == "clean"
            if not whole or b'"id": %d' % self.calls not in answer.body:
                self.failures.append(f"call {self.calls}: {answer}")
            if answer.says_close:
                client.close()
                client = await Client.connect(self.port)
            self.progress.set()
        client.close()

    async def listen_on(self) -> None:
        while not self.stops:
            client = await Client.connect(self.port)
            resume = (f"Last-Event-ID: {self.last_event}",) if self.last_event else ()
            await client.send(get(self._field, *resume))
            head = await client.head("GET")
            if head.start[1] == b"503" and head.one("mcp-proxy-reason") == b"draining":
                client.close()  # it came to a replica that was leaving; the next one is another
                continue
            if head.start[1] != b"200":
                self.failures.append(f"GET: {head.raw!r}")
                client.close()
                return
            event = await client.body_until(b"\n\n")
            self.last_event = json.loads(event.partition(b"data: ")[2])["n"]
            self.progress.set()
            waiting = asyncio.create_task(client.rest())
            try:
                rest = await waiting
            except asyncio.CancelledError:
                client.close()
                raise
            self.ends.append(rest.framing)
            self.torn.append(rest.body.partition(event)[2] if event in rest.body else b"")
            client.close()


@contextlib.asynccontextmanager
async def walking(port: int) -> AsyncIterator[list[Walker]]:
    walkers = [Walker(port) for _ in range(SESSIONS)]
    for walker in walkers:
        await walker.begin()
    calling = [asyncio.create_task(walker.call_on()) for walker in walkers]
    listening = [asyncio.create_task(walker.listen_on()) for walker in walkers]
    try:
        yield walkers
        for walker in walkers:
            walker.stops = True
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*calling)
    finally:
        for task in (*calling, *listening):
            task.cancel()
        await asyncio.gather(*calling, *listening, return_exceptions=True)


async def served_again(walkers: list[Walker]) -> None:
    """Every client has made ten more calls and has an open stream again."""
    goal = [walker.calls + 10 for walker in walkers]
    async with asyncio.timeout(PATIENCE_S):
        for walker, calls in zip(walkers, goal, strict=True):
            while walker.calls < calls:
                walker.progress.clear()
                await walker.progress.wait()


@pytest.mark.parametrize("store", ["redis", "signed"])
async def test_a_rolling_restart_loses_no_call_and_no_session(store: str, tmp_path: Path) -> None:
    servers = [EventServer("a"), EventServer("b")]
    async with contextlib.AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        backends = [await stack.enter_async_context(Backend(server)) for server in servers]
        sessions: dict[str, Any] = {"store": "redis", "url": redis.url}
        if store == "signed":
            sessions = {"store": "signed", "keys": [KEY], "url": redis.url}
        config = {
            "pools": {"tools": {"backends": [backend.url for backend in backends]}},
            "routes": [{"path": "/mcp", "pool": "tools"}],
            "sessions": sessions,
        }
        addresses = [(ports[0], ports[1]) for ports in (free_ports(2) for _ in range(REPLICAS))]
        replicas = []
        for number, ports in enumerate(addresses):
            folder = tmp_path / f"replica-{number}"
            folder.mkdir()
            own = await stack.enter_async_context(contextlib.AsyncExitStack())
            replicas.append((own, await own.enter_async_context(launch(config, folder, ports=ports))))
        (tmp_path / "nginx").mkdir()
        port = await stack.enter_async_context(nginx([one for one, _ in addresses], tmp_path / "nginx"))

        async with walking(port) as walkers:
            await served_again(walkers)
            for number, (own, proxy) in enumerate(replicas):
                assert await proxy.stop() == 0, proxy.output[-2000:]
                folder = tmp_path / f"replica-{number}-again"
                folder.mkdir()
                await own.enter_async_context(launch(config, folder, ports=addresses[number]))
                await served_again(walkers)

        assert [failure for walker in walkers for failure in walker.failures] == []
        ends = [end for walker in walkers for end in walker.ends]
        assert len(ends) >= SESSIONS
        assert set(ends) == {"clean"}
        owners = {session: server for server in servers for session in server.sessions}
        assert len(owners) == SESSIONS, "no session was made anew"
        resumed = [entry for server in servers for entry in server.resumed]
        assert len(resumed) >= SESSIONS
        for server in servers:
            assert all(owners[session] is server for session, _ in server.resumed)
