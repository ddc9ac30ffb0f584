"""Sessions of a lost backend are made anew at another one, once, whoever asks where and how often."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.tools.backend import Backend
from tests.tools.mcp_backend import json_answer
from tests.tools.recording import Conn, Seen
from tests.wire.registry_rig import Replicas, Server, Session
from tests.wire.registry_site import SHARED, case, registry, replicas

AT_ONCE = 8
ANEW = "was lost and has been made anew at"


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
        await restore(shared)


async def restore(site: Replicas) -> None:
    """All backends are there."""
    for backend in site.backends:
        await backend.refuse()
        backend.listen()


def server(backend: Backend) -> Server:
    assert isinstance(backend.handler, Server)
    return backend.handler


async def stop(backend: Backend) -> None:
    """It dies, with all its sessions."""
    await backend.down()
    server(backend).sessions.clear()


async def revived(site: Replicas, session: Session, *replicas: int) -> None:
    """One call on each of these, at once; all are answered by one and the same new session."""
    answers = await asyncio.gather(*(site.call(at, session) for at in replicas))
    assert [answer.status for answer in answers] == [200] * len(replicas)
    ((name, upstream),) = {
        (answer.json["result"]["server"], answer.json["result"]["session"]) for answer in answers
    }
    assert upstream != session.upstream
    site.said.add(upstream)
    session.server, session.upstream = name, upstream
    site.expect(f"POST {session.number}", "POST notifications/initialized")


def arrived(site: Replicas, backend: Backend, session: Session) -> list[Seen]:
    """What a backend got of a session that was made anew there, in order."""
    port, number = f":{backend.port}".encode(), f'"id": {session.number},'.encode()
    upstream = session.upstream.encode()
    requests = [seen for seen in site.received() if (seen.head.one("host") or b"").endswith(port)]
    return [seen for seen in requests if seen.head.one("mcp-session-id") == upstream or number in seen.body]


async def test_many_requests_on_all_replicas_make_one_new_session(site: Replicas) -> None:
    session = await site.open(0, path="/moving")
    id_ = session.id
    await site.works(1, session)
    before = await site.metric("reinitializations_total", pool="moving", result="done")
    old = site.backend_of(session)
    (new,) = site.others(session)
    await stop(old)

    await revived(site, session, *(0, 1) * AT_ONCE)

    first, second, *calls = arrived(site, new, session)
    assert b'"initialize"' in first.body
    assert first.head.all("mcp-session-id") == []
    assert b"notifications/initialized" in second.body
    assert len(calls) == 2 * AT_ONCE
    assert await site.metric("reinitializations_total", pool="moving", result="done") == before + 1
    assert site.log().count(ANEW) == 1
    assert session.id == id_
    for at in (0, 1, 0):
        await site.works(at, session)
    assert (await site.delete(1, session)).status == 200
    assert session.upstream not in server(new).sessions
    await site.unknown(1, session)
    await site.until(lambda: _is_unknown(site, 0, session), "the other replica has heard of it")


async def _is_unknown(site: Replicas, at: int, session: Session) -> bool:
    answer = await site.call(at, session)
    assert answer.status == 404
    return bool(answer.reason)


async def test_the_stream_of_a_session_ends_cleanly_and_comes_back_where_the_session_is(
    site: Replicas,
) -> None:
    session = await site.open(0, path="/moving")
    await site.works(1, session)
    client, stream = await site.listen(1, session)
    await stream.send(b"id: 41\ndata: before\n\n")
    await client.body_until(b"before")
    await stop(site.backend_of(session))
    assert (await client.rest()).framing == "clean"

    await revived(site, session, 0)

    client, stream = await site.listen(1, session, "Last-Event-ID: 41")
    assert stream.request.head.one("last-event-id") == b"41"
    assert stream.request.head.one("mcp-session-id") == session.upstream.encode()
    await stream.send(b"id: 42\ndata: after\n\n")
    await client.body_until(b"after")
    await stream.end()
    assert (await client.rest()).framing == "clean"


async def test_a_stream_may_be_the_first_to_find_its_backend_lost(site: Replicas) -> None:
    session = await site.open(0, path="/moving")
    await site.works(1, session)
    (new,) = site.others(session)
    await stop(site.backend_of(session))
    session.server, session.upstream = server(new).name, ""
    client, stream = await site.listen(1, session, "Last-Event-ID: 7")
    site.expect(f"POST {session.number}", "POST notifications/initialized")
    assert stream.request.head.one("last-event-id") == b"7"
    await site.works(0, session)
    await stream.end()
    assert (await client.rest()).framing == "clean"


async def test_a_session_that_its_backend_has_forgotten_is_made_anew_once(site: Replicas) -> None:
    session = await site.open(0, path="/moving")
    await site.works(0, session)
    await site.works(1, session)
    streams = [await site.listen(at, session) for at in (0, 1)]
    for each in site.servers:
        each.sessions.clear()
    before = await site.metric("reinitializations_total", pool="moving", result="done")

    answers = await asyncio.gather(*(site.call(at, session) for at in (0, 1) * AT_ONCE))

    assert [answer.status for answer in answers] == [200] * 2 * AT_ONCE
    ((name, upstream),) = {
        (answer.json["result"]["server"], answer.json["result"]["session"]) for answer in answers
    }
    session.server, session.upstream = name, upstream
    site.said.add(upstream)
    assert await site.metric("reinitializations_total", pool="moving", result="done") == before + 1
    made = [seen for seen in site.received() if b'"initialize"' in seen.body]
    assert len([seen for seen in made if f'"id": {session.number},'.encode() in seen.body]) == 2
    for client, _ in streams:
        assert (await client.rest()).framing == "clean"
    # Those that were refused by the old session have arrived twice.
    site.expect(*(site.counted() - site.expected).elements())
    served = [
        seen for seen in site.received() if seen.head.one("mcp-session-id") == upstream.encode() and seen.body
    ]
    calls = [seen.body for seen in served if b"tools/call" in seen.body]
    assert len(calls) == len(set(calls)) == 2 * AT_ONCE


async def test_a_call_that_may_have_run_is_not_repeated(site: Replicas) -> None:
    session = await site.open(0, path="/moving")
    await site.works(1, session)
    backend = site.backend_of(session)

    async def hang(request: Seen, conn: Conn) -> None:
        await conn.until(lambda: bool(conn.closed_by))

    tell, server(backend).tool = server(backend).tool, hang
    site.received()
    pending = asyncio.create_task(site.call(1, session))
    await backend.arrived()
    await stop(backend)
    answer = await pending
    server(backend).tool = tell
    assert (answer.status, answer.reason) == (502, "upstream_lost")
    site.expect(f"POST {answer.json['id']}")
    await revived(site, session, 1)


async def test_without_another_backend_it_is_503_until_there_is_one(site: Replicas) -> None:
    session = await site.open(0, path="/moving")
    await site.works(1, session)
    for backend in site.backends:
        await stop(backend)
    for at in (0, 1):
        await site.refused(at, session, 503, "backend_unavailable")
    assert await site.metric("reinitializations_total", pool="moving", result="failed") > 0
    (new,) = site.others(session)
    new.listen()
    await revived(site, session, 0, 1)


async def test_without_the_registry_nobody_makes_a_session_anew(site: Replicas) -> None:
    session = await site.open(0, path="/moving")
    await site.works(1, session)
    await stop(site.backend_of(session))
    assert site.redis is not None
    site.redis.freeze()
    try:
        for at in (0, 1):
            await site.unavailable(at, session)
    finally:
        site.redis.thaw()
    await site.settled()
    await revived(site, session, 1, 0)


async def test_a_refused_initialize_leaves_nothing_behind(site: Replicas) -> None:
    session = await site.open(0, path="/moving")
    await site.works(1, session)
    (new,) = site.others(session)
    good = server(new)
    await stop(site.backend_of(session))
    new.handler = json_answer(status=500)
    try:
        for at in (0, 1):
            await site.refused(at, session, 503, "backend_unavailable")
            site.expect(f"POST {session.number}")
    finally:
        new.handler = good
    await revived(site, session, 0, 1)
