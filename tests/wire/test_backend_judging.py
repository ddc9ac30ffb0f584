"""Who gets what is new: backends that fail, warm up or weigh more, behind two proxies and nginx.

Rules of this file: each replica judges by what it has met itself, so a case that counts failures asks one
replica. Judging moves no session. What a backend has received is the proof.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.mcp_backend import McpServer, json_answer
from tests.tools.recording import Conn
from tests.wire.fronted import Front, case, front, is_unavailable, owner
from tests.wire.reloading import servers
from tests.wire.server_processes import Server, started

MODERN = "2026-07-28"


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    async with front(tmp_path_factory.mktemp("front")) as running:
        yield running


@pytest.fixture
async def site(shared: Front) -> AsyncIterator[Front]:
    async with case(shared) as running:
        yield running


def quick_to_eject(seconds: float) -> dict[str, Any]:
    return {"eject": {"after": 5, "for": f"{seconds:g}s", "at_most": "50%"}}


FAILING = json_answer(status=500)


async def session_at(site: Front, name: str) -> str:
    """A session of this server that replica 0 has opened."""
    async with asyncio.timeout(PATIENCE_S):
        while owner(session := await site.open(0)) != name:
            pass
    return session


async def opened(site: Front, count: int, at: int | None = 0) -> Counter[str]:
    """Whose the next sessions are, one after the other."""
    return Counter([owner(await site.open(at)) for _ in range(count)])


# -- ejected by its failures ---------------------------------------------------------------------


class Gated(McpServer):
    """``initialize`` is answered when the gate is open."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = 0

    async def _initialize(self, message: dict[str, Any], conn: Conn) -> None:
        self.asked += 1
        await self.gate.wait()
        await super()._initialize(message, conn)


async def test_five_failures_eject_a_backend_for_new_sessions_and_one_request_brings_it_back(
    site: Front,
) -> None:
    a, b = Gated("a"), Gated("b")
    async with Backend(a) as first, Backend(b) as second:
        await site.use([first, second], health=quick_to_eject(2))
        session = await session_at(site, "a")
        a.tool = FAILING
        for _ in range(4):
            assert (await site.call(session, 0)).status == 500
        assert await site.state(first) == "up"
        assert (await site.call(session, 0)).status == 500
        assert await site.state(first) == "ejected"
        assert await site.metric("ejections_total") == 1
        a.tool = json_answer()
        assert (await site.call(session, 0)).status == 200, "the session has not moved"
        asked = a.asked
        assert await opened(site, 5) == {"b": 5}

        a.gate.clear()
        await site.until(lambda: is_in(site, first, "trial"), "its time is over")
        waiting = [asyncio.create_task(site.open(0)) for _ in range(10)]
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            while sum(task.done() for task in waiting) < 9:
                await asyncio.wait(
                    [task for task in waiting if not task.done()], return_when=asyncio.FIRST_COMPLETED
                )
        assert a.asked == asked + 1, "one request finds out"
        assert await site.state(first) == "trial"
        a.gate.set()
        owners = Counter(owner(session) for session in await asyncio.gather(*waiting))
        assert owners == {"a": 1, "b": 9}
        assert await site.state(first) == "up"
        assert (await opened(site, 5))["a"] == 5, "it has fewer than the other"


async def is_in(site: Front, backend: Backend | Server, state: str, at: int = 0) -> bool:
    return await site.state(backend, at) == state


async def test_at_most_half_of_a_pool_is_ejected(site: Front) -> None:
    async with servers("a", "b", "c") as (scripted, backends):
        await site.use(backends, health=quick_to_eject(3600))
        sessions = [await session_at(site, server.name) for server in scripted]
        for server in scripted:
            server.tool = FAILING
        for session in sessions:
            for _ in range(6):
                assert (await site.call(session, 0)).status == 500
        assert [await site.state(backend) for backend in backends] == ["ejected", "up", "up"]
        assert set(await opened(site, 6)) == {"b", "c"}


async def test_a_failure_that_was_not_in_a_row_ejects_nobody(site: Front) -> None:
    async with servers("a", "b") as (scripted, backends):
        await site.use(backends, health=quick_to_eject(3600))
        session = await session_at(site, "a")
        for _ in range(3):
            scripted[0].tool = FAILING
            for _ in range(4):
                assert (await site.call(session, 0)).status == 500
            scripted[0].tool = json_answer()
            assert (await site.call(session, 0)).status == 200
        assert await site.state(backends[0]) == "up"


async def test_a_backend_that_freezes_is_ejected_by_its_timeouts_and_comes_back(
    site: Front, tmp_path: Path
) -> None:
    with started(tmp_path, "a", "b") as processes:
        frozen = processes[0]
        await site.use(processes, timeouts={"response_head": "500ms"}, health=quick_to_eject(1))
        session = await session_at(site, "a")
        frozen.freeze()
        for answer in await asyncio.gather(*(site.call(session, 0) for _ in range(5))):
            assert (answer.status, answer.reason) == (504, "upstream_timeout")
        assert await site.state(frozen) == "ejected"
        assert await opened(site, 5) == {"b": 5}
        frozen.thaw()
        await site.until(lambda: is_in(site, frozen, "trial"), "its time is over")
        await session_at(site, "a")
        assert await site.state(frozen) == "up"
        await site.works(session)


async def test_a_backend_that_refused_too_often_serves_its_sessions_when_it_is_back_and_nobody_else(
    site: Front, tmp_path: Path
) -> None:
    with started(tmp_path, "a", "b", options=("--remembers",)) as processes:
        await site.use(processes, lost_after="1h", health=quick_to_eject(3600))
        session = await session_at(site, "a")
        processes[0].kill()
        for _ in range(2):  # each is tried three times
            assert is_unavailable(await site.call(session, 0))
        assert await site.state(processes[0]) == "down"
        processes[0].start()
        await site.works(session)
        assert await site.state(processes[0]) == "ejected"
        assert await opened(site, 5) == {"b": 5}


# -- balanced --------------------------------------------------------------------------------------


class Crowd:
    """``initialize`` is answered when as many as expected wait for it, at all servers together."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.waiting = 0
        self.is_whole = asyncio.Event()

    def server(self, name: str) -> McpServer:
        crowd = self

        class Patient(McpServer):
            async def _initialize(self, message: dict[str, Any], conn: Conn) -> None:
                crowd.waiting += 1
                if crowd.waiting == crowd.size:
                    crowd.is_whole.set()
                await crowd.is_whole.wait()
                await super()._initialize(message, conn)

        return Patient(name)


async def test_sessions_that_are_opened_at_the_same_time_are_spread_evenly(site: Front) -> None:
    crowd = Crowd(30)
    scripted = [crowd.server(name) for name in "abc"]
    async with contextlib.AsyncExitStack() as stack:
        backends = [await stack.enter_async_context(Backend(server)) for server in scripted]
        await site.use(backends)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(site.open() for _ in range(30)))
        assert [len(server.sessions) for server in scripted] == [10, 10, 10]
        await asyncio.gather(*(site.open() for _ in range(30)))
        assert [len(server.sessions) for server in scripted] == [20, 20, 20]


async def test_sessions_that_are_on_their_way_count_like_those_that_are_there(site: Front) -> None:
    crowd = Crowd(24)
    scripted = [McpServer("a"), crowd.server("b"), crowd.server("c")]
    async with contextlib.AsyncExitStack() as stack:
        backends = [await stack.enter_async_context(Backend(server)) for server in scripted]
        await site.use(backends[:1])
        assert await opened(site, 6) == {"a": 6}
        scripted[0] = backends[0].handler = crowd.server("a")
        await site.use(backends, goes_on=True)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(site.open(0) for _ in range(24)))
        assert [len(server.sessions) for server in scripted] == [4, 10, 10]


async def test_a_weight_is_a_share_of_the_sessions(site: Front) -> None:
    async with servers("a", "b") as (scripted, backends):
        await site.use(backends)
        config = site.config(backends)
        (pool,) = config["pools"].values()
        pool["backends"] = [{"url": backends[0].url, "weight": 3}, backends[1].url]
        await site.reload(config)
        await asyncio.gather(*(site.open() for _ in range(40)))
        assert [len(server.sessions) for server in scripted] == [30, 10]


async def test_a_backend_that_comes_back_gets_its_share_little_by_little(site: Front, tmp_path: Path) -> None:
    with started(tmp_path, "a", "b") as processes:
        await site.use(processes, slow_start="1h")
        processes[1].kill()
        assert await opened(site, 2) == {"a": 2}
        assert await site.state(processes[1]) == "down"
        processes[1].start()
        await site.until(lambda: is_in(site, processes[1], "up"), "it is found again")
        shares = await opened(site, 20)
        assert shares == {"a": 18, "b": 2}, "a tenth"
        await site.use(processes, goes_on=True, slow_start="100ms")

        async def has_as_many() -> bool:
            await site.open(0)
            return len(processes[0].made) == len(processes[1].made)

        await site.until(has_as_many, "it catches up")
        assert await opened(site, 10) == {"a": 5, "b": 5}


async def test_sessions_that_are_made_anew_at_the_same_time_go_where_the_fewest_are(site: Front) -> None:
    async with servers("a", "b", "c") as (scripted, backends):
        settings: dict[str, Any] = {"on_backend_loss": "reinitialize", "drain": "200ms"}
        await site.use(backends[:1], **settings)
        sessions = [await site.open(0) for _ in range(12)]
        await site.use(backends[:2], goes_on=True, **settings)
        assert await opened(site, 6) == {"b": 6}
        await site.use(backends[1:], goes_on=True, **settings)
        await site.becomes(backends[0], "gone")
        answers = await asyncio.gather(*(site.call(session, 0) for session in sessions))
        assert [answer.status for answer in answers] == [200] * 12
        assert [len(server.sessions) for server in scripted] == [12, 9, 9]
