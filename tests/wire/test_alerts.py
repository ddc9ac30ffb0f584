"""The alerts, judged by what a running proxy shows: quiet while it is well, and firing once it is broken.

Rules of this file: every sample comes from a scrape, and a minute passes from one to the next, if only for
Prometheus; between two there is some traffic. What says how fast this machine is (``SPEED``) is no verdict on
the proxy, so it may fire; tests/unit/test_alerts.py has the cases for it.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.tools.backend import Backend, Handler
from tests.tools.client import call, get, post
from tests.tools.mcp_backend import INITIALIZE, McpServer, Streams, json_answer
from tests.tools.promtool import Recording, firing
from tests.tools.recording import Conn, Seen
from tests.tools.redis_server import RedisServer
from tests.wire.reloading import Site, flows, pools, servers, site

SPEED = {"McpProxyEventLoopLag", "McpProxyOverheadHigh", "McpProxyRegistrySlow"}
CALLS = 8
"""A minute, in one session: more than the 0.05 a second below which an alert says nothing."""


class Watched:
    """A proxy with two backends and a registry, and what Prometheus has seen of it."""

    def __init__(
        self, site: Site, names: list[McpServer], backends: list[Backend], redis: RedisServer, folder: Path
    ) -> None:
        self.site = site
        self.servers = names
        self.backends = backends
        self.redis = redis
        self.recording = Recording()
        self._folder = folder

    async def minutes(self, count: int, traffic: Callable[[], Awaitable[None]] | None = None) -> None:
        for _ in range(count):
            await (traffic or self.use)()
            self.recording.scraped(await self.site.proxy.metrics())

    async def use(self) -> None:
        """A session that lives where it may: calls, a stream that its backend ends, one that the client
        leaves, and its end."""
        session = await self.site.session()
        for _ in range(CALLS):
            assert (await session.call()).status == 200
        (server,) = (each for each in self.servers if session.id in each.sessions)
        client, stream = await self.site.listening(session, server)
        await flows(client, stream, "news")
        await stream.end()
        assert (await client.rest()).framing == "clean"
        client, stream = await self.site.listening(session, server)
        client.close()
        assert (await session.client.ask(get(session.field, method="DELETE"), "DELETE")).status == 200
        session.client.close()

    async def attempt(self) -> None:
        """What a client that does not give up does; whatever comes of it."""
        client = await self.site.client()
        for number in range(CALLS):
            await client.ask(post(call(number)))
        client.close()

    async def begin(self) -> None:
        """New sessions are asked for; whatever comes of it."""
        client = await self.site.client()
        for _ in range(CALLS):
            await client.ask(post(INITIALIZE))
        client.close()

    async def rest(self) -> None:
        """Nobody wants anything."""

    def alerts(self) -> set[str]:
        """What fires now, but for ``SPEED``."""
        fired = firing(self.recording.series(), self.recording.minutes, self._folder)
        return {each["alertname"] for each in fired} - SPEED


def every_other() -> Handler:
    """Answers with an error, but not so often in a row that the backend is ejected."""
    answers = itertools.cycle([json_answer(), json_answer(status=500)])

    async def handle(request: Seen, conn: Conn) -> None:
        await next(answers)(request, conn)

    return handle


@contextlib.asynccontextmanager
async def watched(folder: Path, **over: Any) -> AsyncIterator[Watched]:
    with RedisServer() as redis:
        async with servers("a", "b") as (names, backends):
            sessions = {"store": "redis", "url": redis.url}
            config = {**pools(backends), "sessions": sessions, **over}
            async with site(config, folder) as running:
                yield Watched(running, names, backends, redis, folder)


async def test_nothing_fires_while_a_proxy_is_well(tmp_path: Path) -> None:
    async with watched(tmp_path) as proxy:
        session = await proxy.site.session()
        (server,) = (each for each in proxy.servers if session.id in each.sessions)
        client, stream = await proxy.site.listening(session, server)
        await proxy.minutes(75)
        await flows(client, stream, "still here")
        assert proxy.alerts() == set()


async def test_a_backend_that_is_gone_is_told_and_then_a_pool_without_any(tmp_path: Path) -> None:
    async with watched(tmp_path) as proxy:
        await proxy.minutes(10)
        await proxy.backends[1].down()
        await proxy.minutes(10, proxy.attempt)
        assert proxy.alerts() == {"McpProxyBackendDown"}

        await proxy.backends[0].down()
        await proxy.minutes(10, proxy.attempt)
        assert proxy.alerts() == {"McpProxyBackendDown", "McpProxyPoolDown", "McpProxyErrorRatioHigh"}


async def test_a_registry_that_is_gone_is_told(tmp_path: Path) -> None:
    async with watched(tmp_path) as proxy:
        await proxy.minutes(10)
        proxy.redis.kill()
        await proxy.minutes(10, proxy.begin)
        # How many questions failed before it was known to be away is a matter of luck.
        assert proxy.alerts() - {"McpProxyRegistryErrors"} == {
            "McpProxyRegistryDown",
            "McpProxyErrorRatioHigh",
        }

        proxy.redis.start()

        async def is_up() -> bool:
            return await proxy.site.proxy.metric("mcp_proxy_store_up") == 1

        await proxy.site.proxy.until(is_up, "the registry can be asked")
        await proxy.minutes(20)
        assert proxy.alerts() == set()


async def test_sessions_that_are_lost_are_told(tmp_path: Path) -> None:
    async with watched(tmp_path) as proxy:
        await proxy.minutes(20)

        async def remember_in_vain() -> None:
            client = await proxy.site.client()
            for _ in range(CALLS):
                answer = await client.ask(post(call(), "Mcp-Session-Id: d3adbeef-gone"))
                assert (answer.status, answer.reason) == (404, "session_not_found")
            client.close()

        await proxy.minutes(15, remember_in_vain)
        assert proxy.alerts() == {"McpProxySessionsLost"}


async def test_backends_that_answer_with_errors_are_told(tmp_path: Path) -> None:
    async with watched(tmp_path) as proxy:
        await proxy.minutes(10)
        for backend in proxy.backends:
            backend.handler = every_other()
        await proxy.minutes(10, proxy.attempt)
        assert proxy.alerts() == {"McpProxyErrorRatioHigh"}


async def test_work_that_is_turned_away_is_told(tmp_path: Path) -> None:
    async with watched(tmp_path, limits={"streams": 1}) as proxy:
        session = await proxy.site.session()
        (server,) = (each for each in proxy.servers if session.id in each.sessions)
        await proxy.site.listening(session, server)

        async def listen_in_vain() -> None:
            client = await proxy.site.client()
            for _ in range(CALLS):
                answer = await client.ask(get(session.field), "GET")
                assert (answer.status, answer.reason) == (503, "overloaded")
            client.close()

        await proxy.minutes(10, listen_in_vain)
        assert proxy.alerts() == {"McpProxyOverloaded", "McpProxyErrorRatioHigh"}


async def test_a_configuration_that_is_refused_is_told(tmp_path: Path) -> None:
    async with watched(tmp_path) as proxy:
        good = proxy.site.file.read_text()
        await proxy.minutes(5)
        await proxy.site.refused("pools: nothing")
        await proxy.minutes(4)
        assert proxy.alerts() == {"McpProxyReloadFailed"}

        before = await proxy.site.reloads()
        proxy.site.place(good)
        proxy.site.hang_up()
        await proxy.site.reloaded(before + 1)
        await proxy.minutes(1)
        assert proxy.alerts() == set()


async def test_a_proxy_that_does_not_get_done_with_draining_is_told_and_then_that_it_is_gone(
    tmp_path: Path,
) -> None:
    async with watched(tmp_path, limits={"drain": "1h"}) as proxy:
        await proxy.minutes(5)
        streams = Streams()
        proxy.backends[0].handler = proxy.backends[1].handler = streams
        client = await proxy.site.client()
        await client.send(post(call()))
        stream = await streams.next()
        process = proxy.site.proxy.process
        process.send_signal(signal.SIGTERM)

        async def is_draining() -> bool:
            return await proxy.site.proxy.metric("mcp_proxy_draining") == 1

        await proxy.site.proxy.until(is_draining, "it drains")
        await proxy.minutes(17, proxy.rest)
        assert proxy.alerts() == {"McpProxyDrainingLong"}

        await stream.end()
        assert await proxy.site.proxy.wait() == 0
        for _ in range(4):
            proxy.recording.scraped(None)
        assert proxy.alerts() == {"McpProxyDown"}
