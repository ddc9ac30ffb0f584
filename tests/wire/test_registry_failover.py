"""The registry fails over: a Sentinel group whose master dies, a Cluster whose slots move and nodes die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from tests.tools.redis_server import RedisCluster, RedisServer, SentinelGroup
from tests.wire.registry_rig import PREFIX, Replicas, Session
from tests.wire.registry_site import SHARED, case, replicas

SESSIONS = 12


async def consistent(site: Replicas, at: int, session: Session) -> bool:
    """Whether the session works; it must never be anywhere else, nor unknown, nor an error."""
    answer = await site.call(at, session)
    if answer.status == 503:
        assert answer.reason == "store_unavailable"
        return False
    assert answer.status == 200, answer
    told = answer.json["result"]
    session.upstream = session.upstream or told["session"]
    assert (told["server"], told["session"]) == (session.server, session.upstream)
    return True


async def all_work(site: Replicas, known: list[Session]) -> None:
    async def they_work() -> bool:
        calls = [consistent(site, at, session) for session in known for at in (0, 1)]
        return False not in await asyncio.gather(*calls)

    await site.until(they_work, "all sessions work")


async def begins(site: Replicas, at: int, path: str) -> Session | None:
    """A new session, or None if the registry cannot take it now."""
    answer = await site.initialize(at, path=path)
    if answer.status == 503:
        assert answer.head.all("mcp-session-id") == []
        site.expect(f"POST {answer.json['id']}", "DELETE ")
        return None
    assert answer.status == 200
    id_ = (answer.head.one("mcp-session-id") or b"").decode()
    site.said.add(id_)
    name = answer.json["result"]["serverInfo"]["name"]
    return Session(id_, path, name, (), answer.json["id"])


async def steady(site: Replicas, path: str = "/mcp") -> None:
    """New sessions begin everywhere, wherever they are written down, and work everywhere."""
    made: list[Session] = []

    async def they_begin() -> bool:
        begun = [await begins(site, number % 2, path) for number in range(2 * SESSIONS)]
        made[:] = [session for session in begun if session is not None]
        return len(made) == len(begun)

    await site.until(they_begin, "new sessions begin")
    await all_work(site, made)


def tidy(*servers: RedisServer) -> None:
    for server in servers:
        for key in server.command("KEYS", "*"):
            assert key.startswith(PREFIX.encode())
            assert server.command("PTTL", key) != -1


@pytest.fixture(params=SHARED)
async def watched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[SentinelGroup, Replicas]]:
    with SentinelGroup() as group:
        async with replicas(tmp_path_factory.mktemp("replicas"), request.param, url=group.url) as site:
            servers = (group.master, *group.replicas, *group.sentinels)
            site.registry_ports = {server.port for server in servers}
            await site.settled()
            async with case(site):
                yield group, site
                await steady(site)
            tidy(group.current())


async def test_sessions_outlive_the_master(watched: tuple[SentinelGroup, Replicas]) -> None:
    group, site = watched
    known = [await site.open(number % 2, path=path) for number in range(4) for path in ("/mcp", "/moving")]
    await all_work(site, known)
    ended = await site.open(0)
    await site.works(1, ended)
    client, stream = await site.listen(1, known[0])
    master = group.master
    master.kill()
    # What the replica of Redis has not got is written again by who knows it.
    for session in known:
        assert await consistent(site, 0, session)
    assert (await site.delete(0, ended)).status == 200
    await site.unknown(0, ended)

    await site.until(lambda: group.current() is not master, "the sentinels have chosen another")
    await site.settled()

    await steady(site, "/mcp")
    await all_work(site, known)
    await stream.send(b"data: still there\n\n")
    await client.body_until(b"still there")
    await stream.end()
    await site.until(partial(is_over, site, 1, ended), "the end is known to all")
    master.start()


async def is_over(site: Replicas, at: int, session: Session) -> bool:
    answer = await site.call(at, session)
    assert answer.status == 404
    return answer.reason == "session_not_found"


async def test_writes_that_the_new_master_never_got_are_made_again(
    watched: tuple[SentinelGroup, Replicas],
) -> None:
    group, site = watched
    (spare,) = group.replicas
    spare.command("REPLICAOF", "NO", "ONE")  # it gets nothing of what follows
    known = [await site.open(number % 2, path=path) for number in range(4) for path in ("/mcp", "/moving")]
    for session in known:
        await site.works(known.index(session) // 2 % 2, session)
    group.master.kill()
    await site.until(lambda: group.current() is spare, "the sentinels have chosen another")
    await site.settled()
    for session in known:
        answer = await site.call(0, session)
        assert answer.status in (200, 404)
        if answer.status == 200:
            assert answer.json["result"]["server"] == session.server
    await steady(site, "/mcp")
    group.master.start()


@pytest.fixture
async def sharded(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[RedisCluster, Replicas]]:
    with RedisCluster() as cluster:
        async with replicas(tmp_path_factory.mktemp("replicas"), "redis", url=cluster.url) as site:
            site.registry_ports = {node.port for node in cluster.nodes}
            await site.settled()
            async with case(site):
                yield cluster, site
                await steady(site)
            tidy(*cluster.nodes)


def slots(cluster: RedisCluster) -> list[int]:
    """Those with sessions in them."""
    keys = [key for node in cluster.nodes for key in node.command("KEYS", "*:session:*")]
    return sorted({cluster.slot(key.decode()) for key in keys})


async def test_sessions_follow_their_slots(sharded: tuple[RedisCluster, Replicas]) -> None:
    cluster, site = sharded
    known = [await site.open(0, path="/moving") for _ in range(SESSIONS)]
    for session in known[: SESSIONS // 2]:
        await site.works(1, session)
    for slot in slots(cluster):
        source = cluster.owner(slot)
        target = next(node for node in cluster.nodes if node is not source)
        cluster.begin_move(slot, target)
        await asyncio.gather(*(consistent(site, 1, session) for session in known))
        cluster.move_keys(slot, source, target)
        await asyncio.gather(*(consistent(site, 0, session) for session in known))
        cluster.end_move(slot, target)
    await all_work(site, known)
    await steady(site, "/moving")
    for session in known:
        assert (await site.delete(1, session)).status == 200
    for session in known:
        await site.until(partial(is_over, site, 0, session), "the end is known to all")


async def test_a_node_that_dies_takes_nothing_known_with_it(
    sharded: tuple[RedisCluster, Replicas],
) -> None:
    cluster, site = sharded
    known = [await site.open(0, path=path) for _ in range(SESSIONS) for path in ("/mcp", "/moving")]
    for session in known:
        await site.works(1, session)
    cold = [await site.open(0, path="/moving") for _ in range(SESSIONS)]
    dead = cluster.nodes[1]
    dead.kill()
    for session in known:
        for at in (0, 1):
            assert await consistent(site, at, session)
    routed = await asyncio.gather(*(consistent(site, 1, session) for session in cold))
    assert True in routed, "keys of other nodes can be asked for"
    begun = [await begins(site, number % 2, "/mcp") for number in range(SESSIONS)]
    assert any(begun)

    dead.start()

    await site.settled()
    await steady(site, "/moving")
    for session in known:
        assert await consistent(site, 0, session)
