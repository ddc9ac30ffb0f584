"""Replicas that start before their registry, and a registry that loses what it had."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.tools.redis_server import RedisServer
from tests.wire.registry_rig import Replicas, Session
from tests.wire.registry_site import ACCESS, SHARED, case, registry, replicas, stored


@pytest.mark.parametrize("store", SHARED)
async def test_replicas_start_without_their_registry_and_find_it_later(store: str, tmp_path: Path) -> None:
    redis = RedisServer(ACCESS)
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(redis.stop)
        async with replicas(tmp_path, store, redis=redis) as site:
            await site.begin()
            for at in (0, 1):
                assert "degraded" in await site.health(at)
                assert (await site.proxies[at].admin("/livez")).status == 200
                await _begin_without(site, at)
                number = next(site.numbers)
                listed = await site.post(at, "tools/list", path="/mcp")  # outside of sessions
                assert (listed.status, listed.json["id"]) == (200, number + 1)
            redis.start()
            await site.settled()
            for at in (0, 1):
                await site.works(1 - at, await site.open(at))
                assert "degraded" not in await site.health(at)
            await site.check()


async def _begin_without(site: Replicas, at: int) -> None:
    if site.store == "redis":
        answer = await site.initialize(at)
        assert (answer.status, answer.reason) == (503, "store_unavailable")
        assert answer.head.one("retry-after") == b"1"
        assert answer.head.all("mcp-session-id") == []
        site.expect(f"POST {answer.json['id']}", "DELETE ")
        unknown = Session("oslo-0123456789abcdef", "/mcp", "", ())
        await site.unavailable(at, unknown)
    else:
        session = await site.open(at)
        await site.works(1 - at, session)


@pytest.fixture(scope="module", params=SHARED)
async def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    with registry(request.param) as redis:
        async with replicas(folder, request.param, redis=redis, count=3) as site:
            yield site


@pytest.fixture
async def site(shared: Replicas) -> AsyncIterator[Replicas]:
    await shared.settled()
    async with case(shared):
        yield shared
        await shared.settled()


@pytest.mark.parametrize("path", ["/mcp", "/moving"])
async def test_a_flush_takes_no_session_to_another_backend(site: Replicas, path: str) -> None:
    known = [await site.open(number % 3, path=path) for number in range(12)]
    for session in known:
        await site.works(1, session)
    assert site.redis is not None
    site.redis.flush()

    for session in known:
        for at in (0, 1, 2):
            await _works_or_is_unknown(site, at, session)
    for session in known[:3]:
        await site.delete(0, session)


async def _works_or_is_unknown(site: Replicas, at: int, session: Session) -> None:
    answer = await site.call(at, session)
    if answer.status == 404:
        assert answer.reason == "session_not_found"
        return
    assert answer.status == 200
    told = answer.json["result"]
    session.upstream = session.upstream or told["session"]
    assert (told["server"], told["session"]) == (session.server, session.upstream)


async def test_an_empty_registry_gets_back_what_replicas_use(site: Replicas) -> None:
    """The replica that has made the session is cut off, so another must give it back."""
    session = await site.open(0, path="/moving")
    for _ in range(2):
        await site.works(1, session)
    client, stream = await site.listen(1, session)
    line = site.lines[0]
    line.up.black_hole = line.down.black_hole = True
    assert site.redis is not None
    try:
        site.redis.kill()
        site.redis.start()

        async def is_written() -> bool:
            assert (await site.call(1, session)).status == 200
            return stored(site, session) != b""

        await site.until(is_written, "the session is written down again", 1)
        await site.works(2, session)
    finally:
        line.up.black_hole = line.down.black_hole = False
        line.changed()
    await stream.send(b"data: still there\n\n")
    await client.body_until(b"still there")
    await stream.end()
    await site.settled()
    await site.works(0, session)


async def test_what_was_lost_and_is_not_known_is_unknown(site: Replicas) -> None:
    if site.store != "redis":
        return
    session = await site.open(0)
    site.lines[0].cut()
    site.lines[0].up.black_hole = True
    assert site.redis is not None
    try:
        site.redis.flush()
        await site.unknown(1, session)
    finally:
        site.lines[0].up.black_hole = False
        site.lines[0].changed()
    await site.settled()
