"""Backends that are killed, frozen, started again and drained, behind two proxies with one registry (B1-B5,
and draining): what clients see through nginx, and what the backends have received.

Rules of this file: backends are processes; what they have received stands in their journals, which outlive
them. Nobody waits for a time, but for what a proxy or a stream says.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.tools import PATIENCE_S
from tests.tools.client import Answer, Client, get, post
from tests.wire.fronted import Front, case, front, message, owner
from tests.wire.server_processes import Server, started


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    async with front(tmp_path_factory.mktemp("front")) as running:
        yield running


@pytest.fixture
async def site(shared: Front) -> AsyncIterator[Front]:
    async with case(shared) as running:
        yield running


def is_unavailable(answer: Answer) -> bool:
    """503 that tells the client to come again, by the proxy's own word."""
    told = answer.status, answer.reason, bool(answer.head.one("retry-after"))
    return told == (503, "backend_unavailable", True)


def is_unknown(answer: Answer) -> bool:
    return (answer.status, answer.reason) == (404, "session_not_found")


def by_name(servers: list[Server], session: str) -> tuple[Server, Server]:
    """The owner of the session and the other one."""
    one, other = servers
    return (one, other) if owner(session) == one.name else (other, one)


async def lost(site: Front, session: str) -> None:
    """Call until the session is over; until then the client is told to come again."""
    async with asyncio.timeout(PATIENCE_S):
        while is_unavailable(answer := await site.call(session)):
            pass
    assert is_unknown(answer), answer


# -- killed --------------------------------------------------------------------------------------


async def test_what_no_session_binds_goes_to_the_backend_that_is_left_and_runs_once(
    site: Front, tmp_path: Path
) -> None:
    with started(tmp_path, "a", "b") as (dead, alive):
        await site.use([dead, alive], balance="round_robin")
        dead.kill()
        answers = [await site.call() for _ in range(20)]
        opened = [await site.open() for _ in range(10)]

        assert [answer.status for answer in answers] == [200] * 20
        assert alive.received() == [answer.json["id"] for answer in answers]
        assert {owner(session) for session in opened} == {"b"}
        assert dead.entries() == []
        await site.becomes(dead, "down")


async def test_a_session_outlives_a_restart_of_its_backend_and_nothing_of_it_goes_elsewhere(
    site: Front, tmp_path: Path
) -> None:
    with started(tmp_path, "a", "b", options=("--remembers",)) as servers:
        await site.use(servers, lost_after="1m")
        session = await site.open()
        mine, other = by_name(servers, session)
        await site.works(session)
        mine.kill()
        for at in (0, 1):
            assert is_unavailable(await site.call(session, at))
            stream = await site.ask(get(f"Mcp-Session-Id: {session}"), at, "GET")
            assert is_unavailable(stream)
        mine.start()
        await site.works(session)
        assert other.about(session) == 0


async def test_a_session_whose_backend_stays_away_is_over_for_all_replicas(
    site: Front, tmp_path: Path
) -> None:
    with started(tmp_path, "a", "b", options=("--remembers",)) as servers:
        await site.use(servers, lost_after="1s")
        session = await site.open()
        mine, other = by_name(servers, session)
        before = mine.about(session)
        mine.kill()
        await lost(site, session)
        mine.start()
        await site.becomes(mine, "up")
        for at in (0, 1):
            assert is_unknown(await site.call(session, at)), "it does not come back with its backend"
        assert (mine.about(session), other.about(session)) == (before, 0)
        assert (await site.open()) in mine.made + other.made


async def test_a_backend_that_is_taken_out_and_killed_is_lost_at_once(site: Front, tmp_path: Path) -> None:
    """Nobody expects it back, so ``lost_after`` is not waited for."""
    with started(tmp_path, "a", "b") as servers:
        mine, other = servers
        await site.use(servers, lost_after="1h")
        sessions = [await site.open_on("a") for _ in range(2)]
        await site.use([other], goes_on=True, lost_after="1h")
        for session in sessions:
            await site.works(session)
        mine.kill()
        for at, session in enumerate(sessions):
            assert is_unknown(await site.call(session, at))
        await site.becomes(mine, "gone")
        for session in sessions:
            assert is_unknown(await site.call(session))
            assert other.about(session) == 0


async def test_sessions_of_a_killed_backend_go_on_at_another_one_where_that_is_wanted(
    site: Front, tmp_path: Path
) -> None:
    with started(tmp_path, "a", "b") as servers:
        await site.use(servers, lost_after="100ms", on_backend_loss="reinitialize")
        session = await site.open_on("a")
        servers[0].kill()

        async def is_served() -> bool:
            answer = await site.call(session)
            assert answer.status == 200 or is_unavailable(answer), answer
            return answer.status == 200

        await site.until(is_served, "the session goes on")
        answers = [await site.call(session, at) for at in (0, 1)]
        assert {answer.json["result"]["server"] for answer in answers} == {"b"}
        assert len({answer.json["result"]["session"] for answer in answers}) == 1, "it was made anew once"
        assert len(servers[1].made) == 1


# -- at the wrong moment ---------------------------------------------------------------------------


async def test_connections_that_end_behind_their_answer_make_nobody_run_a_call_twice(
    site: Front, tmp_path: Path
) -> None:
    """Neither the proxies nor nginx repeat what may have run."""
    with started(tmp_path, "a", "b") as servers:
        await site.use(servers, health={"eject": "off"})

        async def caller(first: int) -> list[tuple[int, int]]:
            client = await site.client()
            answers = []
            for number in range(first, first + 50):
                answer = await client.ask(post(message(number, "leave")))
                answers.append((number, answer.status))
            return answers

        told = [each for part in await asyncio.gather(*(caller(n * 50) for n in range(10))) for each in part]
        executed = Counter(servers[0].received() + servers[1].received())
        assert {status for _, status in told} <= {200, 502}
        assert set(executed.values()) == {1}
        assert all(executed[number] == 1 for number, status in told if status == 200)


async def test_a_frozen_backend_is_a_504_that_is_not_repeated_and_its_sessions_outlive_it(
    site: Front, tmp_path: Path
) -> None:
    with started(tmp_path, "a", "b") as servers:
        await site.use(servers, timeouts={"response_head": "500ms"}, health={"eject": "off"})
        session = await site.open()
        mine, other = by_name(servers, session)
        await site.works(session)
        mine.freeze()
        answers = [await site.call(session, at) for at in (0, 1)]
        mine.thaw()

        for answer in answers:
            assert (answer.status, answer.reason) == (504, "upstream_timeout")
            assert answer.json["error"]["data"]["maybeExecuted"] is True
        await site.works(session)
        executed = Counter(mine.received())
        assert all(executed[answer.json["id"]] <= 1 for answer in answers)
        assert other.about(session) == 0


async def test_a_thousand_requests_that_clients_give_up_behind_nginx_leave_nothing_in_the_pool(
    site: Front, tmp_path: Path
) -> None:
    with started(tmp_path, "a", "b") as servers:
        await site.use(servers)

        async def cancelled() -> None:
            for _ in range(100):
                client = await Client.connect(site.port)
                await client.send_apart([post(message(next(site.numbers), "hang"))])
                client.reset()

        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(cancelled() for _ in range(10)))

        async def is_quiet() -> bool:
            known = [each for at in (0, 1) for each in (await site.status(at)).values()]
            return sum(each["inflight"] + each["streams"] for each in known) == 0

        await site.until(is_quiet, "nothing in flight")
        answers = [await site.call() for _ in range(20)]
        assert [answer.status for answer in answers] == [200] * 20
        executed = Counter(servers[0].received() + servers[1].received())
        assert max(executed.values()) == 1
        assert all(executed[answer.json["id"]] == 1 for answer in answers)


# -- drained ---------------------------------------------------------------------------------------


async def drained(site: Front, servers: list[Server], seconds: float) -> tuple[str, Client]:
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
        session, stream = await drained(site, servers, 1.5)
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
        session, stream = await drained(site, servers, 1.0)
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
        session, stream = await drained(site, servers, 60)
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
        session, stream = await drained(site, servers, 60)
        servers[0].kill()
        await stream.rest()
        assert is_unavailable(await site.call(session))
        servers[0].start()
        await site.works(session)
        await site.undrain(servers[0])
        await site.works(session)


async def test_a_replica_that_hears_of_a_backend_a_moment_later_serves_its_sessions(
    site: Front, tmp_path: Path
) -> None:
    """A reload reaches no two replicas at the same time."""
    with started(tmp_path, "a", "b") as servers:
        await site.use(servers[:1])
        first, second = site.sites
        await first.reload(site.config(servers))
        sessions = [await site.open(0) for _ in range(2)]
        session = next(each for each in sessions if owner(each) == "b")
        answer, _ = await asyncio.gather(site.call(session, 1), second.reload(site.config(servers)))
        assert answer.status == 200, answer
        assert answer.json["result"] == {"server": "b", "session": session}
