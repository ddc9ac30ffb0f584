"""The metric of the proxy's own time has in it what is the proxy's, and nothing that is a backend's.

Rules of this file: bounds are made of times that a test took at its own ends, each at a moment of which it
knows what the proxy was waiting for then. So they hold however slow the machine is. ``make bench`` says how
near the metric comes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import pytest

from tests.tools.backend import Backend
from tests.tools.client import Answer, Client, call, post
from tests.tools.mcp_backend import JSON, Streams, json_answer, result
from tests.tools.proxy import ProxyProcess, launch
from tests.tools.recording import Conn, Seen
from tests.tools.tarpit import Tarpit
from tests.wire.registry_rig import Replicas
from tests.wire.registry_site import case, registry, replicas
from tests.wire.rig import Rig

PATIENT = 10
"""Who is waited for keeps the others waiting for so many times as long as all the rest took: were it counted
on the wrong side, no bound would hold."""


class Account:
    """What the metric counts of some exchanges, and what the test knows of them."""

    def __init__(self) -> None:
        self.overhead_s = 0.0
        self.took_s = 0.0
        """At most that long did they take altogether."""


@contextlib.asynccontextmanager
async def account(proxy: ProxyProcess, exchanges: int = 1) -> AsyncIterator[Account]:
    """Filled in when all of them have been counted."""
    found = Account()
    sum_s, count = await _counted(proxy)
    began_s = monotonic()
    yield found

    async def is_counted() -> bool:
        return (await _counted(proxy))[1] == count + exchanges

    await proxy.until(is_counted, f"{exchanges} more exchanges with a backend")
    found.took_s = monotonic() - began_s
    found.overhead_s = (await _counted(proxy))[0] - sum_s


async def _counted(proxy: ProxyProcess) -> tuple[float, float]:
    samples = dict(
        line.rpartition(" ")[::2]
        for line in (await proxy.metrics()).splitlines()
        if line.startswith("mcp_proxy_overhead_seconds_")
    )
    sum_s, count = (float(samples.get(f'{NAME}_{each}{{route="/mcp"}}', "0")) for each in ("sum", "count"))
    return sum_s, count


NAME = "mcp_proxy_overhead_seconds"


class Held:
    """A time during which the proxy waited for something that the test held back."""

    def __init__(self, proxy: ProxyProcess, since_s: float) -> None:
        self._proxy = proxy
        self._since_s = since_s
        """The exchange began."""
        self.held_s = 0.0

    async def hold(self) -> None:
        """Whatever the proxy had in hand is done when this begins to count."""
        await self._proxy.admin("/livez")
        held_from_s = monotonic()
        while monotonic() - held_from_s < PATIENT * (held_from_s - self._since_s):
            await self._proxy.admin("/livez")
        self.held_s += monotonic() - held_from_s


# -- a backend's time ---------------------------------------------------------------------------


async def test_the_wait_for_an_answer_is_no_overhead(rig: Rig) -> None:
    told = asyncio.Event()

    async def answer(request: Seen, conn: Conn) -> None:
        await request.whole()
        await told.wait()
        await conn.answer(200, [JSON], result({"id": 1}))

    rig.script(answer)
    client = await rig.client()
    async with account(rig.proxy) as counted:
        held = Held(rig.proxy, monotonic())
        await client.send(post(call(1)))
        await rig.backend.arrived()
        await held.hold()
        told.set()
        assert (await client.answer()).status == 200
    rig.taken()

    assert 0 < counted.overhead_s <= counted.took_s - held.held_s


async def test_the_silence_between_the_events_of_an_answer_is_no_overhead(rig: Rig) -> None:
    streams = Streams()
    rig.script(streams)
    client = await rig.client()
    async with account(rig.proxy) as counted:
        held = Held(rig.proxy, monotonic())
        await client.send(post(call(1)))
        stream = await streams.next()
        await client.head()
        await held.hold()
        for number in range(3):
            await stream.send(b"data: %d\n\n" % number)
            await client.body_until(b"data: %d\n\n" % number)
        await held.hold()
        await stream.end()
        assert (await client.rest()).framing == "clean"
    rig.taken()

    assert 0 < counted.overhead_s <= counted.took_s - held.held_s


async def test_a_connect_that_comes_to_nothing_is_no_overhead_though_another_backend_answers(
    tmp_path: Path,
) -> None:
    async with Tarpit() as tarpit, Backend(json_answer()) as backend:
        pool = {
            "backends": [tarpit.url, backend.url],
            "balance": "round_robin",
            "timeouts": {"connect": "1s"},
        }
        config = {"pools": {"tools": pool}, "routes": [{"path": "/mcp", "pool": "tools"}]}
        async with launch(config, tmp_path) as proxy, await Client.connect(proxy.port) as client:
            held_s = 0.0
            async with account(proxy, exchanges=2) as counted:
                for number in range(2):
                    await client.send(post(call(number)))
                    answer = asyncio.create_task(client.answer())
                    held_s += await _connecting_s(tarpit, answer)
                    assert (await answer).status == 200
            failures = await proxy.metric("mcp_proxy_upstream_failures_total", phase="connect")
        assert len(backend.take()) == 2

    assert failures == 1
    assert 0 < counted.overhead_s <= counted.took_s - held_s


async def _connecting_s(tarpit: Tarpit, answer: asyncio.Task[Answer]) -> float:
    """For how long the tarpit was tried before the answer came, as far as it was seen: never longer than it
    was, and on a machine that lets nobody look in between not at all."""
    first_s = last_s = 0.0
    while not answer.done():
        at_s = monotonic()
        if tarpit.attempts():
            first_s, last_s = first_s or monotonic(), at_s
        elif first_s:
            break
        await asyncio.sleep(0)
    return max(0.0, last_s - first_s)


# -- the proxy's own time -----------------------------------------------------------------------


@pytest.fixture(scope="module")
async def site_of_module(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Replicas]:
    with registry("redis") as redis:
        async with replicas(tmp_path_factory.mktemp("replicas"), "redis", redis=redis) as site:
            yield site


@pytest.fixture
async def site(site_of_module: Replicas) -> AsyncIterator[Replicas]:
    async with case(site_of_module):
        yield site_of_module


async def test_the_wait_for_the_registry_before_a_backend_is_asked_is_overhead(site: Replicas) -> None:
    session = await site.open(0)
    proxy, line = site.proxies[1], site.lines[1]
    async with account(proxy) as counted:
        line.down.black_hole = True
        answer = asyncio.create_task(site.call(1, session))
        await _in_hand(proxy)
        held_from_s = monotonic()
        await proxy.admin("/livez")
        assert len(site.counted()) == 1, "the session is not known here, and nobody can have said whose it is"
        held_s = monotonic() - held_from_s
        line.down.black_hole = False
        line.changed()
        assert (await answer).status == 200

    assert held_s <= counted.overhead_s <= counted.took_s


async def test_the_wait_for_the_registry_before_an_answer_may_leave_is_overhead(site: Replicas) -> None:
    proxy, line = site.proxies[0], site.lines[0]
    before = _sessions(site)
    async with account(proxy) as counted:
        line.down.black_hole = True
        opened = asyncio.create_task(site.open(0))
        await site.until(lambda: _sessions(site) > before, "a backend has made a session")
        for conn in (conn for backend in site.backends for conn in backend.open_connections):
            await conn.consumed()
        held_from_s = monotonic()
        await proxy.admin("/livez")
        assert not opened.done()
        held_s = monotonic() - held_from_s
        line.down.black_hole = False
        line.changed()
        await opened

    assert held_s <= counted.overhead_s <= counted.took_s


async def _in_hand(proxy: ProxyProcess) -> None:
    """The proxy has begun with an exchange."""

    async def has_begun() -> bool:
        return bool(await proxy.metric("mcp_proxy_inflight"))

    await proxy.until(has_begun, "an exchange in progress")


def _sessions(site: Replicas) -> int:
    """Whose answer has been sent."""
    busy = any(backend.busy for backend in site.backends)
    return 0 if busy else sum(len(server.sessions) for server in site.servers)
