"""A proxy that is told to end, seen by those who use it: nobody gets an error, no call is lost, and every
stream that stays ends behind a whole event.

Rules of this file: nobody waits for a time. A test goes on when a replica says that it drains, and at the
end it judges all that its clients saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.client import Answer, Client, call, get, post
from tests.tools.mcp_backend import INITIALIZE, JSON, McpServer, Stream, result
from tests.tools.nginx import nginx
from tests.tools.ports import free_ports
from tests.tools.proxy import ProxyProcess, launch
from tests.tools.recording import Conn, Seen
from tests.wire.team import SESSIONS as SIGNED
from tests.wire.team import team

CROWD = 20
CALLERS = 8
EVENT = b"id: %d\ndata: {}\n\n"


class SlowServer(McpServer):
    """Its tool ``slow`` answers when it is released."""

    def __init__(self) -> None:
        super().__init__(tool=self._call)
        self.waiting = 0
        self.released = asyncio.Event()

    async def _call(self, request: Seen, conn: Conn) -> None:
        message = json.loads(await request.whole())
        if message["params"]["name"] == "slow":
            self.waiting += 1
            conn.wake()
            await self.released.wait()
        await conn.answer(200, [JSON], result(message, ok=True))


class Caller:
    """Calls all the time on keep-alive connections, of which it makes a new one when it is told to."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.calls = 0
        self.failures: list[str] = []
        self.stops = False
        self.progress = asyncio.Event()

    async def call_on(self) -> None:
        client = await Client.connect(self.port)
        while not self.stops:
            self.calls += 1
            answer = await client.ask(post(call(self.calls)))
            if answer.status != 200 or answer.framing != "clean" or answer.json["id"] != self.calls:
                self.failures.append(f"call {self.calls}: {answer}")
            if answer.says_close:
                client.close()
                client = await Client.connect(self.port)
            self.progress.set()
        client.close()


@contextlib.asynccontextmanager
async def calling(port: int, count: int = CALLERS) -> AsyncIterator[list[Caller]]:
    callers = [Caller(port) for _ in range(count)]
    tasks = [asyncio.create_task(caller.call_on()) for caller in callers]
    try:
        yield callers
        for caller in callers:
            caller.stops = True
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def served_again(callers: list[Caller], calls: int = 10) -> None:
    goals = [caller.calls + calls for caller in callers]
    async with asyncio.timeout(PATIENCE_S):
        for caller, goal in zip(callers, goals, strict=True):
            while caller.calls < goal:
                caller.progress.clear()
                await caller.progress.wait()


def config(*backends: Backend, **limits: str) -> dict[str, Any]:
    return {
        "pools": {"tools": {"backends": [backend.url for backend in backends]}},
        "routes": [{"path": "/mcp", "pool": "tools"}],
        "limits": limits,
        **SIGNED,
    }


async def draining(proxy: ProxyProcess) -> None:
    async def is_draining() -> bool:
        return (await proxy.admin("/readyz")).status == 503

    await proxy.until(is_draining, "the proxy is draining")


async def closed(proxy: ProxyProcess) -> None:
    async def is_closed() -> bool:
        try:
            (await Client.connect(proxy.port)).close()
        except OSError:
            return True
        return False

    await proxy.until(is_closed, "the listener is closed")


async def session(port: int) -> str:
    async with await Client.connect(port) as client:
        answer = await client.ask(post(INITIALIZE))
    assert answer.status == 200, answer
    return f"Mcp-Session-Id: {(answer.head.one('mcp-session-id') or b'').decode()}"


async def listening(port: int, server: McpServer, field: str, *first: bytes) -> tuple[Client, Stream]:
    """A GET stream that has relayed these bytes."""
    client = await Client.connect(port)
    await client.send(get(field))
    stream = await server.streams.next()
    await client.head("GET")
    for piece in first:
        await stream.send(piece)
        await client.body_until(piece)
    return client, stream


@pytest.mark.parametrize("delay", ["0s", "1s"])
async def test_a_deploy_of_both_replicas_under_load_shows_nobody_an_error(delay: str, tmp_path: Path) -> None:
    server = SlowServer()
    async with contextlib.AsyncExitStack() as stack:
        backend = await stack.enter_async_context(Backend(server))
        settings = config(backend, drain_delay=delay)
        ports = [(one[0], one[1]) for one in (free_ports(2) for _ in range(2))]
        replicas = []
        for number, own in enumerate(ports):
            folder = tmp_path / f"replica-{number}"
            folder.mkdir()
            life = await stack.enter_async_context(contextlib.AsyncExitStack())
            replicas.append((life, await life.enter_async_context(launch(settings, folder, ports=own))))
        (tmp_path / "nginx").mkdir()
        port = await stack.enter_async_context(nginx([own[0] for own in ports], tmp_path / "nginx"))
        field = await session(port)
        callers = await stack.enter_async_context(calling(port))
        for number, (life, proxy) in enumerate(replicas):
            await served_again(callers)
            await leaves_unseen(port, server, field, proxy, callers)
            folder = tmp_path / f"replica-{number}-again"
            folder.mkdir()
            await life.enter_async_context(launch(settings, folder, ports=ports[number]))
        await served_again(callers)
        assert [failure for caller in callers for failure in caller.failures] == []


async def leaves_unseen(
    port: int, server: SlowServer, field: str, proxy: ProxyProcess, callers: list[Caller]
) -> None:
    """One replica ends while half of the calls and streams are its own."""
    server.waiting, server.released = 0, asyncio.Event()
    streams = [await listening(port, server, field, EVENT % 1, b"id: 2\nda") for _ in range(CROWD)]
    slow = [await Client.connect(port) for _ in range(CROWD)]
    for client in slow:
        await client.send(post(call(7, name="slow"), field))
    async with asyncio.timeout(PATIENCE_S):
        while server.waiting < CROWD:
            await served_again(callers, 1)
    own = int(await proxy.metric("mcp_proxy_open_streams"))
    assert own > CROWD // 4

    proxy.process.send_signal(signal.SIGTERM)
    await draining(proxy)
    await closed(proxy)
    assert all(stream.conn.closed_by == "" for _, stream in streams), "none ends within an event"
    await served_again(callers)
    ends = [asyncio.create_task(client.rest()) for client, _ in streams]
    number = 2
    while sum(end.done() for end in ends) < own:
        number += 1
        for _, stream in streams:
            await goes_on(stream, b"ta: {}\n\nid: %d\nda" % number)
        await served_again(callers, 1)
    assert proxy.process.returncode is None, "calls are still in progress"
    server.released.set()
    answers = await asyncio.gather(*(client.answer() for client in slow))
    assert [(answer.status, answer.framing) for answer in answers] == [(200, "clean")] * CROWD
    assert await proxy.wait() == 0
    whole = b"".join(EVENT % each for each in range(1, number))
    for answer in (end.result() for end in ends if end.done()):
        assert answer.framing == "clean"
        assert answer.body.endswith(b"\n\n"), "it ended within an event"
        assert whole.startswith(answer.body)
    assert proxy.traceback() == ""
    await hang_up(ends, [*slow, *(client for client, _ in streams)])


async def goes_on(stream: Stream, piece: bytes) -> None:
    """The backend sends, if anybody still listens."""
    if not stream.conn.closed_by:
        with contextlib.suppress(OSError):
            await stream.conn.send_chunk(piece)


async def hang_up(ends: list[asyncio.Task[Answer]], clients: list[Client]) -> None:
    for end in ends:
        end.cancel()
    await asyncio.gather(*ends, return_exceptions=True)
    for client in clients:
        client.close()


async def test_during_the_drain_delay_it_is_not_ready_and_serves_everything(tmp_path: Path) -> None:
    server = McpServer()
    async with (
        Backend(server) as backend,
        launch(config(backend, drain_delay="10m"), tmp_path) as proxy,
        await Client.connect(proxy.port) as before,
    ):
        assert not (await before.ask(post(call()))).says_close
        field = await session(proxy.port)
        client, stream = await listening(proxy.port, server, field, EVENT % 1)
        proxy.process.send_signal(signal.SIGTERM)
        await draining(proxy)

        for one in (before, await Client.connect(proxy.port)):
            answer = await one.ask(post(call()))
            assert (answer.status, answer.says_close) == (200, True)
            assert await one.closed() == "eof"
            one.close()
        await stream.send(EVENT % 2)
        assert await client.body_until(EVENT % 2)
        late, _ = await listening(proxy.port, server, field, EVENT % 1)
        assert (await proxy.admin("/livez")).status == 200

        proxy.process.send_signal(signal.SIGTERM)
        assert await proxy.wait() == 0
        for one, body in ((client, EVENT % 1 + EVENT % 2), (late, EVENT % 1)):
            end = await one.rest()
            assert (end.framing, end.body) == ("clean", body)
            one.close()
        assert proxy.traceback() == ""


async def test_after_the_drain_delay_it_ends_by_itself(tmp_path: Path) -> None:
    server = McpServer()
    async with Backend(server) as backend, launch(config(backend, drain_delay="300ms"), tmp_path) as proxy:
        client, _ = await listening(proxy.port, server, await session(proxy.port), EVENT % 1)
        assert await proxy.stop() == 0
        assert (await client.rest()).framing == "clean"
        client.close()


LINE_ENDS = [b"\n", b"\r\n", b"\r"]


@pytest.mark.parametrize("line_end", LINE_ENDS, ids=["LF", "CR LF", "CR"])
async def test_a_stream_ends_behind_the_event_in_whose_middle_it_was(tmp_path: Path, line_end: bytes) -> None:
    server = McpServer()
    event = b"id: 1" + line_end + b"data: {}" + line_end * 2
    half = len(event) - len(line_end)
    async with Backend(server) as backend, launch(config(backend), tmp_path) as proxy:
        field = await session(proxy.port)
        client, stream = await listening(proxy.port, server, field, event, event[:half])
        proxy.process.send_signal(signal.SIGTERM)
        await draining(proxy)
        ending = asyncio.create_task(client.rest())
        while not ending.done():  # it is always in the middle of an event
            await goes_on(stream, event[half:] + event[:half])
            with contextlib.suppress(OSError, EOFError):  # the proxy has ended
                await proxy.admin("/livez")
        end = ending.result()
        assert (end.framing, end.body) == ("clean", event * (len(end.body) // len(event)))
        assert await proxy.wait() == 0
        (line,) = [line for line in proxy.access_lines() if line["stream"]]
        assert line["bytes_out"] == len(end.body)
        client.close()


async def test_a_call_that_outlasts_the_grace_is_told_so(tmp_path: Path) -> None:
    server = SlowServer()
    async with Backend(server) as backend, launch(config(backend, drain="500ms"), tmp_path) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(post(call(name="slow")))
            await backend.until(lambda: server.waiting == 1)
            proxy.process.send_signal(signal.SIGTERM)
            answer = await client.answer()
        assert (answer.status, answer.reason, answer.says_close) == (504, "upstream_timeout", True)
        assert answer.json["error"]["data"]["maybeExecuted"]
        assert await proxy.wait() == 0


async def test_a_second_signal_hurries_out_of_the_delay(tmp_path: Path) -> None:
    server = SlowServer()
    limits = {"drain_delay": "10m", "drain": "10m"}
    async with Backend(server) as backend, launch(config(backend, **limits), tmp_path) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(post(call(name="slow")))
            await backend.until(lambda: server.waiting == 1)
            proxy.process.send_signal(signal.SIGINT)
            await draining(proxy)
            proxy.process.send_signal(signal.SIGTERM)
            answer = await client.answer()
        assert (answer.status, answer.reason) == (504, "upstream_timeout")
        assert await proxy.wait() == 0


async def test_workers_serve_during_the_delay_and_their_parent_is_not_ready(tmp_path: Path) -> None:
    async with team(tmp_path, limits={"drain_delay": "10m"}) as workers:
        pids = await workers.pids()
        os.kill(workers.proxy.pid, signal.SIGTERM)
        await workers.draining()
        for pid in pids:
            async with await workers.connect(pid) as client:
                assert await client.closed() == "eof", "its answer said so"
        assert not await workers.is_closed()
        os.kill(workers.proxy.pid, signal.SIGTERM)
        assert await workers.proxy.wait() == 0


async def test_workers_that_lost_their_parent_do_not_wait_for_the_delay(tmp_path: Path) -> None:
    """They hold the port that the next parent wants."""
    async with team(tmp_path, limits={"drain_delay": "10m"}) as workers:
        workers.proxy.process.kill()
        await workers.proxy.process.wait()
        async with asyncio.timeout(PATIENCE_S):
            while not await workers.is_closed():  # noqa: ASYNC110 -- there is nobody left to ask instead
                await asyncio.sleep(0.02)


async def test_workers_end_by_themselves_after_the_delay(tmp_path: Path) -> None:
    async with team(tmp_path, limits={"drain_delay": "300ms"}) as workers:
        assert await workers.proxy.stop() == 0
        assert "is killed" not in workers.proxy.output
