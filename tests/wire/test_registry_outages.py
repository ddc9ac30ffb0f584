"""The registry fails while sessions are in use: what is known keeps working, what cannot be known is 503
and never 404, and nothing is lost when it comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.tools.client import post
from tests.tools.redis_server import RedisServer
from tests.wire.registry_rig import Replicas, Session
from tests.wire.registry_site import SHARED, case, has_ended, registry, replicas, stored

FREEZE_S = 5.0
SHORT_S = 1.0
SLOW_MS = 1000.0
"""Far above the budget for the registry, far below any patience: what took longer has waited for it."""
STRANGER = "d3adbeef-never-issued"


@pytest.fixture(scope="module", params=SHARED)
async def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    with registry(request.param) as redis:
        async with replicas(folder, request.param, redis=redis) as site:
            yield site


@pytest.fixture
async def site(shared: Replicas) -> AsyncIterator[Replicas]:
    await shared.settled()
    async with case(shared):
        yield shared
        await shared.settled()


def redis_of(site: Replicas) -> RedisServer:
    assert site.redis is not None
    return site.redis


def freeze(site: Replicas) -> None:
    redis_of(site).freeze()


def kill(site: Replicas) -> None:
    redis_of(site).kill()


def fill(site: Replicas) -> None:
    redis_of(site).maxmemory("1")


def recover(site: Replicas, outage: Callable[[Replicas], None]) -> None:
    if outage is freeze:
        redis_of(site).thaw()
    elif outage is kill:
        redis_of(site).start()
    else:
        redis_of(site).maxmemory("0")


async def modern(site: Replicas, at: int) -> None:
    """A request of the stateless era is answered."""
    number = next(site.numbers)
    meta = '"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}'
    body = f'{{"jsonrpc":"2.0","id":{number},"method":"tools/list","params":{{{meta}}}}}'.encode()
    fields = ("MCP-Protocol-Version: 2026-07-28", "Mcp-Method: tools/list")
    for path in ("/mcp", "/tapped"):
        answer = await site.ask(at, post(body, *fields, target=path), "POST", f"POST {number}")
        assert (answer.status, answer.json["id"]) == (200, number)


async def begin_fails(site: Replicas, at: int, path: str) -> None:
    """``initialize`` is refused, and the backend is told to forget what it made."""
    answer = await site.initialize(at, path=path)
    assert (answer.status, answer.reason) == (503, "store_unavailable")
    assert answer.head.one("retry-after") == b"1"
    assert answer.head.all("mcp-session-id") == []
    site.expect(f"POST {answer.json['id']}", "DELETE ")


async def begin(site: Replicas, at: int, path: str = "/mcp") -> None:
    """A sealed id needs no registry, any other session must be written down."""
    if site.store == "redis":
        await begin_fails(site, at, path)
    else:
        await site.works(at, await site.open(at, path=path))


async def forgotten(site: Replicas, count: int) -> None:
    """The backends have forgotten all sessions but so many."""
    await site.until(lambda: sum(len(server.sessions) for server in site.servers) == count, "they forget")


async def durations(site: Replicas) -> list[list[float]]:
    """Of all answers so far, in milliseconds, by replica."""
    took: list[list[float]] = []

    async def is_complete() -> bool:
        took[:] = [
            [line["duration_ms"] for line in proxy.access_lines() if not line["stream"]]
            for proxy in site.proxies
        ]
        return sum(map(len, took)) == site.asked

    await site.until(is_complete, "all is recorded")
    return took


async def measured(site: Replicas, what: str, work: Callable[[], Awaitable[object]]) -> None:
    """None of the answers has waited for the registry for longer than its budget, generously."""
    before = await durations(site)
    await work()
    after = await durations(site)
    took = sorted(ms for old, new in zip(before, after, strict=True) for ms in new[len(old) :])
    print(f"{site.store} {what}: n={len(took)} p50={took[len(took) // 2]:.1f} p99={took[-1]:.1f} ms")
    assert took[-1] < SLOW_MS


class Sessions:
    """Of each kind one."""

    def __init__(self, warm: Session, cold: Session) -> None:
        self.warm = warm
        """Known to both replicas."""
        self.cold = cold
        """Known to the first one only."""


async def sessions(site: Replicas, path: str = "/mcp") -> Sessions:
    warm, cold = await site.open(0, path=path), await site.open(0, path=path)
    await site.works(1, warm)
    await site.works(0, cold)
    return Sessions(warm, cold)


async def _while_it_fails(site: Replicas, known: Sessions) -> None:
    """One request of every kind."""
    for at in (0, 1):
        await site.works(at, known.warm)
        await modern(site, at)
    await site.works(0, known.cold)
    if site.store == "redis":
        await site.unavailable(1, known.cold)
        await site.unavailable(0, Session(STRANGER, "/mcp", "", ()))
    else:
        await site.unknown(0, Session(STRANGER, "/mcp", "", ()))  # certainly none of ours


@pytest.mark.parametrize("outage", [kill, freeze, fill])
async def test_a_session_that_cannot_be_written_down_is_refused_and_ended(
    site: Replicas, outage: Callable[[Replicas], None]
) -> None:
    known = await sessions(site)
    held = sum(len(server.sessions) for server in site.servers)
    outage(site)
    try:
        for path in ("/mcp", "/moving") if outage is fill else ("/mcp",):
            for at in (0, 1):
                await begin(site, at, path)
                await site.works(at, known.warm)
        if site.store == "redis":
            await forgotten(site, held)
    finally:
        recover(site, outage)
    began_s = time.perf_counter()
    await site.settled()
    session = await site.open(1)
    await site.works(0, session)
    print(f"{site.store} after {outage.__name__}: works again {time.perf_counter() - began_s:.2f} s later")


async def test_a_full_registry_keeps_what_it_has(site: Replicas) -> None:
    known = await sessions(site)
    fill(site)
    try:
        await begin(site, 0)
        await site.works(1, known.cold)
        assert (await site.delete(0, known.warm)).status == 200
        await site.unknown(0, known.warm)
        await _is_over(site, 1, known.warm)
    finally:
        recover(site, fill)
    await site.until(lambda: has_ended(site, known.warm), "its end is written down")
    await site.unknown(1, known.warm)


async def _is_over(site: Replicas, at: int, session: Session) -> None:
    """404, whoever says it."""
    assert (await site.call(at, session)).status == 404


@pytest.mark.parametrize("outage", [kill, freeze])
async def test_what_is_known_works_and_what_is_not_is_503_while_the_registry_is_away(
    site: Replicas, outage: Callable[[Replicas], None]
) -> None:
    known = await sessions(site)
    client, stream = await site.listen(1, known.warm)
    outage(site)
    try:
        await measured(site, f"{outage.__name__}, first", lambda: _while_it_fails(site, known))
        for at in (0, 1):
            await begin(site, at)

        async def is_open() -> bool:
            unknown = Session(STRANGER, "/mcp", "", ())
            await asyncio.gather(*(site.call(at, unknown) for at in (0, 1)))
            await site.works(0, known.warm)
            return "degraded" in await site.health(0) and "degraded" in await site.health(1)

        await site.until(is_open, "replicas have noticed")
        await measured(site, f"{outage.__name__}, later", lambda: _while_it_fails(site, known))
        await begin(site, 0)
        await stream.send(b"data: still there\n\n")
        await client.body_until(b"still there")
    finally:
        recover(site, outage)
    await site.settled()
    await stream.send(b"data: and now\n\n")
    await client.body_until(b"and now")
    for at in (0, 1):
        await site.works(at, known.warm)
        await site.unknown(at, Session(STRANGER, "/mcp", "", ()))
    if site.store == "redis":
        # Also if all was lost: the replica that knew it has written it again.
        await site.until(lambda: stored(site, known.cold) != b"", "it is written down again")
    await site.works(1, known.cold)
    await site.works(1, await site.open(0))
    await stream.end()


async def uptime_s(site: Replicas) -> float:
    return float((await site.proxies[0].status())["uptime_s"])


async def test_a_frozen_registry_confuses_no_sessions(site: Replicas) -> None:
    freeze_s = FREEZE_S if site.store == "redis" else SHORT_S
    known = [await site.open(number % 2) for number in range(24)]
    for session in known:
        await site.works(0, session)
    began_s = await uptime_s(site)
    freeze(site)
    try:

        async def is_over() -> bool:
            await asyncio.gather(*(_either(site, at, session) for session in known for at in (0, 1)))
            return await uptime_s(site) - began_s >= freeze_s

        await site.until(is_over, "it was frozen for long")
    finally:
        recover(site, freeze)

    async def all_work() -> bool:
        routed = [_either(site, at, session) for session in known for at in (0, 1)]
        return False not in await asyncio.gather(*routed)

    await site.until(all_work, "all sessions work again")


async def _either(site: Replicas, at: int, session: Session) -> bool:
    """Its own backend answers, or the proxy says that it cannot tell."""
    answer = await site.call(at, session)
    if answer.status == 503:
        assert answer.reason == "store_unavailable"
        return False
    assert answer.status == 200, answer
    told = answer.json["result"]
    session.upstream = session.upstream or told["session"]
    assert (told["server"], told["session"]) == (session.server, session.upstream)
    return True


@pytest.mark.parametrize("comes_back", ["with everything", "empty"])
async def test_a_session_that_ended_meanwhile_does_not_come_back(site: Replicas, comes_back: str) -> None:
    outage = freeze if comes_back == "with everything" else kill
    ended, kept = await site.open(0), await site.open(0)
    for session in (ended, kept):
        await site.works(1, session)
    client, _ = await site.listen(1, ended)
    outage(site)
    try:
        assert (await site.delete(0, ended)).status == 200
        await site.unknown(0, ended)
        await site.disowned(1, ended)
        await site.unknown(1, ended)
        await site.works(1, kept)
    finally:
        recover(site, outage)
    await site.settled()
    await site.until(lambda: has_ended(site, ended), "its end is written down")
    for at in (0, 1):
        await site.unknown(at, ended)
        await site.works(at, kept)
    assert (await client.rest()).framing == "clean"


async def test_the_end_of_a_session_reaches_a_replica_that_was_cut_off(site: Replicas) -> None:
    ended = await site.open(0)
    await site.works(1, ended)
    line = site.lines[1]
    line.up.black_hole = line.down.black_hole = True
    try:
        assert (await site.delete(0, ended)).status == 200
        await site.unknown(0, ended)
        await site.disowned(1, ended)
    finally:
        line.up.black_hole = line.down.black_hole = False
        line.changed()
    await site.settled()
    for at in (0, 1):
        await site.unknown(at, ended)
