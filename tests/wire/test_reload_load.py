"""A hundred reloads under load: every request is answered as if there had been none, and nothing is left.

Rules of this file: clients judge every answer whole; what the process holds is compared with what it held
after the first reloads. How long a client waited at most is printed, and judged by nobody: a busy machine
is no defect.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.client import Answer, Client, call, get, post
from tests.tools.http1 import LAST_CHUNK
from tests.tools.mcp_backend import INITIALIZE, JSON, McpServer, result
from tests.tools.recording import Conn, Seen
from tests.wire.reloading import Config, Site, site
from tests.wire.rig import SLACK

RELOADS = 100
WARM = 150
"""Reloads without load until allocators and caches have what they need: some 300 KiB come with the first
hundred, and 0.5 KiB with each after the third."""
GROWTH_LIMIT = 2 * 1024 * 1024
"""Of the resident memory under load, median of the last twenty against that of the first: 20 KiB for each
reload between them, where a pool with its transports and checks has more."""

KINDS = {"session": 6, "stateless": 4, "stream": 2}
LISTENERS = 4


class LoadedServer(McpServer):
    """Its tool answers with JSON or with a short event stream; its GET streams tick with every call."""

    def __init__(self, name: str) -> None:
        super().__init__(name, tool=self._call)
        self.streams = self._listen  # type: ignore[assignment]
        self.calls = 0

    async def _listen(self, request: Seen, conn: Conn) -> None:
        await conn.stream_head("")
        number = 0
        while not conn.closed_by:
            await conn.send_chunk(b"data: %d\n\n" % number)
            number += 1
            await conn.until(lambda before=self.calls: self.calls > before or bool(conn.closed_by))  # type: ignore[misc]

    async def _call(self, request: Seen, conn: Conn) -> None:
        message = json.loads(await request.whole())
        self.calls += 1
        if message["params"]["name"] != "count":
            await conn.answer(200, [JSON], result(message))
            return
        await conn.stream_head("")
        for number in range(3):
            await conn.send_chunk(b'data: {"step":%d}\n\n' % number)
        await conn.send_chunk(b"data: " + result(message, done=True) + b"\n\n")
        await conn.send(LAST_CHUNK)


class Load:
    """Clients on keep-alive connections, and what they saw."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.failures: list[str] = []
        self.answers = 0
        self.events = 0
        self.longest_s = 0.0
        self.stops = False

    async def caller(self, kind: str) -> None:
        client = await Client.connect(self.port)
        fields: tuple[str, ...] = ()
        if kind == "session":
            opened = await client.ask(post(INITIALIZE))
            fields = (f"Mcp-Session-Id: {(opened.head.one('mcp-session-id') or b'').decode()}",)
        name = "count" if kind == "stream" else "echo"
        number = 0
        try:
            while not self.stops:
                number += 1
                began_s = time.monotonic()
                answer = await client.ask(post(call(number, name=name), *fields))
                self.longest_s = max(self.longest_s, time.monotonic() - began_s)
                self._judge(kind, number, answer)
        except (OSError, EOFError) as error:
            self.failures.append(f"{kind} {number}: {error!r}")
        finally:
            client.close()

    def _judge(self, kind: str, number: int, answer: Answer) -> None:
        self.answers += 1
        whole = answer.status == 200 and answer.framing == "clean" and not answer.says_close
        if not whole or b'"id": %d' % number not in answer.body:
            self.failures.append(f"{kind} {number}: {answer}")

    async def listener(self) -> None:
        client = await Client.connect(self.port)
        try:
            opened = await client.ask(post(INITIALIZE))
            await client.send(get(f"Mcp-Session-Id: {(opened.head.one('mcp-session-id') or b'').decode()}"))
            assert (await client.head("GET")).status == 200
            expected = b""
            number = 0
            while piece := await client.next_piece():
                expected += piece
                while b"\n\n" in expected:
                    event, _, expected = expected.partition(b"\n\n")
                    if event != b"data: %d" % number:
                        self.failures.append(f"event {number}: {event!r}")
                    number += 1
                    self.events += 1
            self.failures.append(f"a stream ended after {number} events")
        finally:
            client.close()


@contextlib.asynccontextmanager
async def load(port: int) -> AsyncIterator[Load]:
    running = Load(port)
    calling = [
        asyncio.create_task(running.caller(kind)) for kind, count in KINDS.items() for _ in range(count)
    ]
    listening = [asyncio.create_task(running.listener()) for _ in range(LISTENERS)]
    try:
        yield running
        running.stops = True
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*calling)
        assert not any(task.done() for task in listening), running.failures
    finally:
        for task in (*calling, *listening):
            task.cancel()
        await asyncio.gather(*calling, *listening, return_exceptions=True)


def variant(number: int, backends: list[Backend]) -> Config:
    """Something else changes each time; after 12 it begins again."""
    urls = [backend.url for backend in backends]
    tools = {
        "backends": urls if number % 2 else urls[:2],
        "balance": ("least_sessions", "round_robin", "hash")[number % 3],
        "credentials": {"authorization": f"Bearer {number % 4}"},
        "timeouts": {"connect": f"{2 + number % 3}s"},
        "health": {"active": {"check": "tcp", "every": "5s"}} if number % 4 == 3 else {},
    }
    config: Config = {
        "pools": {"tools": tools},
        "routes": [{"path": "/mcp", "pool": "tools"}],
        "limits": {"streams": 100 + number % 5, "body": f"{1 + number % 2}MiB"},
        "telemetry": {"access_log": "off"},
        "trusted_proxies": ["10.0.0.0/8"] if number % 2 else [],
    }
    if number % 3 == 1:
        config["pools"]["more"] = {"backends": urls[2:], "drain": "1s"}
        config["routes"].append({"path": "/more", "pool": "more"})
    return config


async def reload_often(proxy: Site, running: Load, backends: list[Backend]) -> list[int]:
    """The resident memory after each."""
    held = []
    for number in range(1, RELOADS + 1):
        await proxy.reload(variant(number, backends))
        goal = running.answers + 2 * sum(KINDS.values())

        async def are_served(goal: int = goal) -> bool:
            return running.answers >= goal

        await proxy.proxy.until(are_served, "clients are served again")
        held.append(proxy.proxy.rss_bytes())
        for backend in backends:
            backend.take()
    return held


def growth_of(memory: list[int]) -> int:
    return sorted(memory[-20:])[10] - sorted(memory[:20])[10]


async def test_a_hundred_reloads_under_load_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    scripted = [LoadedServer(name) for name in "abc"]
    async with contextlib.AsyncExitStack() as stack:
        backends = [await stack.enter_async_context(Backend(server)) for server in scripted]
        proxy = await stack.enter_async_context(site(variant(0, backends), tmp_path))

        def held() -> int:
            return proxy.proxy.descriptors() - sum(len(backend.open_connections) for backend in backends)

        for number in range(WARM):
            await proxy.reload(variant(number, backends))
        base = held()
        async with load(proxy.proxy.port) as running:
            memory = await reload_often(proxy, running, backends)
        assert running.failures == []
        assert running.events > LISTENERS
        sessions = sum(len(server.sessions) for server in scripted)
        assert sessions == KINDS["session"] + LISTENERS
        await proxy.reload(variant(1, backends))
        assert await proxy.proxy.metric("mcp_proxy_sessions", pool="tools") == sessions

        async def is_back() -> bool:
            return held() <= base + SLACK and not await proxy.proxy.metric("mcp_proxy_open_streams")

        await proxy.proxy.until(is_back, f"{held()} descriptors back to {base}")
        assert [backend.violations for backend in backends] == [[], [], []]
        assert await proxy.reloads("failed") == 0
        print(
            f"{running.answers} answers, {running.events} events, "
            f"longest wait {running.longest_s * 1000:.0f} ms, "
            f"memory {memory[0] >> 10} to {memory[-1] >> 10} KiB, growth {growth_of(memory) >> 10} KiB"
        )
        assert growth_of(memory) < GROWTH_LIMIT
