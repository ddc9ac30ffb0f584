"""Backends that are killed, frozen and started again, behind two proxies with one registry (B1-B5): what
clients see through nginx, and what the backends have received.

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
from tests.tools.client import Client, get, post
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
            return not any(each["inflight"] or each["streams"] for each in known)

        await site.until(is_quiet, "nothing in flight")
        answers = [await site.call() for _ in range(20)]
        assert [answer.status for answer in answers] == [200] * 20
        executed = Counter(servers[0].received() + servers[1].received())
        assert max(executed.values()) == 1
        assert all(executed[answer.json["id"]] == 1 for answer in answers)


# -- new -------------------------------------------------------------------------------------------


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
