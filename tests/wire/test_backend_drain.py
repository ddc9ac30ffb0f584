"""Backends that are drained by an operator, behind two proxies with one registry: what their sessions and
streams come to, and who gets what is new.

Rules of this file: backends are processes, and an order goes to every proxy. Nobody waits for a time, but for
what a proxy or a stream says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.tools.client import Client, post
from tests.wire.fronted import Front, case, front, is_unavailable, is_unknown, message, owner
from tests.wire.server_processes import Server, started


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    async with front(tmp_path_factory.mktemp("front")) as running:
        yield running


@pytest.fixture
async def site(shared: Front) -> AsyncIterator[Front]:
    async with case(shared) as running:
        yield running


async def draining(site: Front, servers: list[Server], seconds: float) -> tuple[str, Client]:
    """A session of ``servers[0]``, which is drained from now on, and the session's stream."""
    session = await site.open_on("a")
    client, event = await site.listen(session)
    assert b'"a"' in event
    made = len(servers[0].made)
    await site.drain(servers[0], seconds)
    for _ in range(6):
        assert owner(await site.open()) == "b"
    assert len(servers[0].made) == made, "nothing new for it"
    await site.works(session)
    return session, client


async def test_a_drained_backend_keeps_its_sessions_until_its_time_is_over_and_then_they_end(
    site: Front, tmp_path: Path
) -> None:
    with started(tmp_path, "a", "b") as servers:
        await site.use(servers)
        session, stream = await draining(site, servers, 1.5)
        known = [(await site.status(at))[servers[0].url] for at in (0, 1)]
        assert [each["drain"]["by"] for each in known] == ["operator"] * 2
        assert sum(each["streams"] for each in known) == 1
        assert all(0 < each["drain"]["left_s"] <= 1.5 for each in known)
        assert all(each["drain"]["sessions"] >= each["sessions"] >= 1 for each in known)

        assert (await stream.rest()).framing == "clean"
        await site.until(lambda: is_over(site, session), "the time is over")
        for at in (0, 1):
            assert is_unknown(await site.call(session, at))
        assert owner(await site.open()) == "b"
        before = len(servers[0].entries())
        assert is_unknown(await site.call(session))
        assert len(servers[0].entries()) == before


async def is_over(site: Front, session: str) -> bool:
    return is_unknown(await site.call(session))


async def test_a_client_does_not_notice_that_its_backend_was_drained_where_sessions_are_made_anew(
    site: Front, tmp_path: Path
) -> None:
    with started(tmp_path, "a", "b") as servers:
        await site.use(servers, on_backend_loss="reinitialize")
        session, stream = await draining(site, servers, 1.0)
        made = len(servers[1].made)
        assert (await stream.rest()).framing == "clean"
        again, event = await site.listen(session)
        assert b'"b"' in event
        answers = [await site.call(session, at) for at in (0, 1)]
        assert [answer.status for answer in answers] == [200, 200]
        assert {answer.json["result"]["server"] for answer in answers} == {"b"}
        assert len(servers[1].made) == made + 1, "once for both replicas"
        again.close()


async def test_a_call_in_progress_outlives_the_end_of_the_drain(site: Front, tmp_path: Path) -> None:
    with started(tmp_path, "a", "b") as servers:
        await site.use(servers)
        session = await site.open_on("a")
        calls = [asyncio.create_task(site.call(session, at, "wait")) for at in (0, 1)]
        client, _ = await site.listen(session)
        await site.until(lambda: are_in_flight(site, servers[0]), "both calls are in progress")
        await site.drain(servers[0], 0.5)
        await site.use(servers[1:], goes_on=True)
        assert (await client.rest()).framing == "clean"
        await site.until(lambda: is_over(site, session), "the time is over")
        assert await are_in_flight(site, servers[0]), "it is not forgotten before they have ended"
        async with await Client.connect(servers[0].port) as direct:
            assert (await direct.ask(post(message(1, "release")))).status == 200
        for answer in await asyncio.gather(*calls):
            assert (answer.status, answer.json["result"]["session"]) == (200, session)
        await site.becomes(servers[0], "gone")


async def are_in_flight(site: Front, server: Server) -> bool:
    """A call at each replica."""
    counts: list[int] = [(await site.status(at))[server.url]["inflight"] for at in (0, 1)]
    return min(counts) >= 1


async def test_a_drain_that_is_taken_back_changes_nothing_for_its_sessions(
    site: Front, tmp_path: Path
) -> None:
    with started(tmp_path, "a", "b") as servers:
        await site.use(servers)
        session, stream = await draining(site, servers, 60)
        await site.undrain(servers[0])
        await site.becomes(servers[0], "up")
        assert "a" in {owner(await site.open()) for _ in range(8)}
        await site.works(session)
        stream.close()


async def test_when_all_are_drained_new_sessions_wait_and_old_ones_go_on(site: Front, tmp_path: Path) -> None:
    with started(tmp_path, "a", "b") as servers:
        await site.use(servers)
        sessions = [await site.open_on(name) for name in ("a", "b")]
        for server in servers:
            await site.drain(server, 60)
        made = sum(len(server.made) for server in servers)
        for at in (0, 1):
            answer = await site.initialize(at)
            assert is_unavailable(answer), answer
        for session in sessions:
            await site.works(session)
        assert sum(len(server.made) for server in servers) == made


async def test_a_drained_backend_that_is_killed_while_it_may_come_back_keeps_its_sessions(
    site: Front, tmp_path: Path
) -> None:
    """An operator drains it to start it again: that is what it comes back from."""
    with started(tmp_path, "a", "b", options=("--remembers",)) as servers:
        await site.use(servers, lost_after="1m")
        session, stream = await draining(site, servers, 60)
        servers[0].kill()
        await stream.rest()
        assert is_unavailable(await site.call(session))
        servers[0].start()
        await site.works(session)
        await site.undrain(servers[0])
        await site.works(session)


async def test_a_frozen_backend_that_is_drained_keeps_nobody_waiting_when_its_time_is_over(
    site: Front, tmp_path: Path
) -> None:
    with started(tmp_path, "a", "b") as servers:
        await site.use(servers, on_backend_loss="reinitialize")
        session, stream = await draining(site, servers, 1.0)
        servers[0].freeze()
        assert (await stream.rest()).framing == "clean"
        again, event = await site.listen(session)
        assert b'"b"' in event
        assert (await site.call(session)).json["result"]["server"] == "b"
        await site.use(servers[1:], goes_on=True, on_backend_loss="reinitialize")
        await site.becomes(servers[0], "gone")
        servers[0].thaw()
        again.close()
