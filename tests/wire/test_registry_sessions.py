"""Sessions through several replicas while the registry is well: begun on one, used on another, ended on
any, and lost with their backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.tools.backend import Backend
from tests.wire.registry_rig import Replicas, Server, Session
from tests.wire.registry_site import STORES, case, has_ended, registry, replicas

SESSIONS = 200
AT_ONCE = 40
CONNECTIONS = 8
"""Of one replica to the registry, beside its subscription."""


@pytest.fixture(scope="module", params=STORES)
async def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    with registry(request.param) as redis:
        async with replicas(folder, request.param, redis=redis) as site:
            yield site


@pytest.fixture
async def site(shared: Replicas) -> AsyncIterator[Replicas]:
    async with case(shared):
        yield shared
        for line in shared.lines:
            line.up.latency_s = 0.0
        for backend in shared.backends:
            await backend.refuse()
            backend.listen()


async def _follow_up(site: Replicas, first: int) -> None:
    session = await site.open(first)
    await site.works(1 - first, session)


async def _connect_all(site: Replicas) -> None:
    """The first replica opens all its connections to the registry: handshakes over a slow line
    would not fit into an operation's budget."""

    async def is_connected() -> bool:
        await asyncio.gather(*(_follow_up(site, 0) for _ in range(AT_ONCE)))
        return len(site.lines[0].wires) > CONNECTIONS

    site.lines[0].up.latency_s = 0.02
    await site.until(is_connected, "all connections are open")


async def test_a_session_is_known_to_every_replica_before_its_client_knows_it(site: Replicas) -> None:
    if site.store == "redis":
        await _connect_all(site)
        site.lines[0].up.latency_s = 0.1  # whatever the first replica writes arrives late
    for _ in range(SESSIONS // AT_ONCE):
        await asyncio.gather(*(_follow_up(site, 0) for _ in range(AT_ONCE)))
    for line in site.lines:
        line.up.latency_s = 0.0
    await asyncio.gather(*(_follow_up(site, 1) for _ in range(AT_ONCE)))

    assert await site.metric("session_lookups_total", result="miss") == 0
    assert await site.metric("session_lookups_total", result="error") == 0


async def test_a_warm_session_costs_the_registry_nothing_and_a_cold_one_a_single_question(
    site: Replicas,
) -> None:
    sessions = [await site.open(0) for _ in range(10)]
    if site.redis is None:
        return
    site.redis.forget_calls()
    for session in sessions:
        await site.works(1, session)
    assert site.redis.calls() == {"get": len(sessions)}
    for session in sessions:
        await site.works(0, session)
        await site.works(1, session)
    assert site.redis.calls() == {"get": len(sessions)}


async def test_many_that_wait_for_one_unknown_session_ask_once(site: Replicas) -> None:
    session = await site.open(0)
    if site.redis is not None:
        site.redis.forget_calls()
        site.lines[1].up.latency_s = 0.1
    await asyncio.gather(*(site.works(1, session) for _ in range(20)))
    if site.redis is not None:
        assert site.redis.calls() == {"get": 1}


async def test_what_one_replica_has_ended_no_other_routes(site: Replicas) -> None:
    session = await site.open(0)
    await site.works(1, session)
    client, _ = await site.listen(1, session)
    assert (await site.delete(0, session)).status == 200

    await site.unknown(0, session)
    if site.redis is None:
        # Nobody has told the other one: its backend does.
        await site.disowned(1, session)
    else:
        assert (await client.rest()).framing == "clean"

        async def is_forgotten() -> bool:
            answer = await site.call(1, session)
            assert answer.status == 404
            return answer.reason == "session_not_found"

        await site.until(is_forgotten, "the other replica has heard of it")
    await site.unknown(1, session)
    await site.unknown(0, session)


async def test_an_end_is_final_for_a_replica_that_never_knew_the_session(site: Replicas) -> None:
    session = await site.open(0)
    assert (await site.delete(0, session)).status == 200
    if site.redis is None:
        await site.disowned(1, session)
    await site.unknown(1, session)
    again = await site.delete(1, session)
    assert (again.status, again.reason) == (404, "session_not_found")


async def test_a_backend_that_has_forgotten_its_sessions_is_believed(site: Replicas) -> None:
    session = await site.open(0)
    await site.works(0, session)
    await site.works(1, session)
    for server in site.servers:
        server.sessions.clear()

    await site.disowned(0, session)
    await site.unknown(0, session)
    if site.redis is None:
        await site.disowned(1, session)
    await site.until(lambda: _is_refused(site, 1, session), "the other replica has heard of it")


async def _is_refused(site: Replicas, at: int, session: Session) -> bool:
    answer = await site.call(at, session)
    assert answer.status == 404
    return answer.reason == "session_not_found"


# -- lost backends -------------------------------------------------------------------------------


async def stop(site: Replicas, session: Session) -> Backend:
    """The session's backend dies, with all its sessions."""
    backend = site.backend_of(session)
    await backend.down()
    server(backend).sessions.clear()
    return backend


def server(backend: Backend) -> Server:
    assert isinstance(backend.handler, Server)
    return backend.handler


async def absent(site: Replicas, session: Session, at: int) -> int:
    """503 until the backend counts as lost; returns how often. Then it is 404."""
    count = 0
    while True:
        answer = await site.call(at, session)
        if answer.status == 404:
            assert answer.reason == "session_not_found"
            return count
        assert (answer.status, answer.reason) == (503, "backend_unavailable")
        assert answer.head.one("retry-after") == b"1"
        count += 1


async def test_a_session_of_an_absent_backend_waits_and_then_ends_once(site: Replicas) -> None:
    session = await site.open(0)
    other = await site.open(0)
    while other.server == session.server:
        other = await site.open(0)
    await site.works(1, session)
    backend = await stop(site, session)

    assert await absent(site, session, 0) > 0

    await site.unknown(0, session)
    if site.redis is not None:
        await site.until(lambda: has_ended(site, session), "its end is written down")
        await absent(site, session, 1)  # as soon as it has heard of it
    for at in (0, 1):
        await site.works(at, other)
    backend.listen()
    if site.redis is None:
        # Nobody has told the other replica, and the backend knows it no more.
        await site.disowned(1, session)
    await site.unknown(1, session)
    await site.unknown(0, session)


async def test_a_backend_that_comes_back_in_time_keeps_its_sessions(site: Replicas) -> None:
    session = await site.open(0)
    await site.works(1, session)
    backend = site.backend_of(session)
    await backend.down()
    for at in (0, 1):
        await site.refused(at, session, 503, "backend_unavailable")
    backend.listen()
    for at in (0, 1):
        await site.works(at, session)


async def test_a_delete_of_a_session_of_a_lost_backend_is_done(site: Replicas) -> None:
    session = await site.open(0, path="/moving" if site.redis is not None else "/mcp")
    await site.works(1, session)
    await stop(site, session)
    answer = await site.delete(0, session)
    while answer.status == 503:
        answer = await site.delete(0, session)
    assert answer.status == 204
    await site.unknown(0, session)


async def test_a_backend_that_a_replica_has_never_heard_of_is_given_time_and_then_lost_and_never_dialled(
    site: Replicas, tmp_path_factory: pytest.TempPathFactory
) -> None:
    session = await site.open(0)
    await site.works(1, session)
    (other,) = site.others(session)
    pools = {name: {"backends": [other.url], "unknown_after": "1s"} for name in ("tools", "tapped", "moving")}
    if site.redis is None:
        del pools["moving"]
    folder = tmp_path_factory.mktemp("newer")
    store, redis = site.store, site.redis
    async with replicas(folder, store, redis=redis, over={"pools": pools}, count=1) as newer:
        await newer.settled()
        early = await newer.call(0, session)
        assert (early.status, early.head.one("mcp-proxy-reason")) == (503, b"backend_unavailable")
        await newer.until(lambda: is_over(newer, session), "nobody has named the backend")
        await newer.unknown(0, session)
        newer.hang_up()
    if redis is None:
        await site.works(0, session)
    else:  # the end was written down: the newer configuration is the one to come
        await site.until(lambda: is_over(site, session), "others have heard of it")


async def is_over(site: Replicas, session: Session) -> bool:
    return (await site.call(0, session)).status == 404
