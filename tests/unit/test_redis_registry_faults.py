"""A Redis that dies, hangs, comes late, forgets or gets slow: bounded errors, and never a wrong answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest

from mcp_proxy.clock import now
from mcp_proxy.config.redis_url import parse_url
from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import ENDED, SessionRecord
from mcp_proxy.sessions.redis import RedisRegistry, connect
from mcp_proxy.sessions.remote.breaker import THRESHOLD
from mcp_proxy.sessions.remote.lane import IN_FLIGHT, LinkError
from mcp_proxy.tasks import Tasks
from tests.tools import PATIENCE_S
from tests.tools.fault_proxy import FaultProxy
from tests.tools.redis_server import RedisServer, running
from tests.unit.redis_registry import RECORD, Replica, fails, name, outcomes, replica

A, B = name(1), name(2)
BUDGET_S = 0.25
SLACK_S = 2.0
"""Above the budget: what a busy machine may add before a bound counts as missing. The library's
own defaults would take 4 s and more."""


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


async def opened(one: Replica) -> None:
    """Ask until the breaker opens."""
    for _ in range(THRESHOLD):
        await fails(one.registry.fetch(A))
    assert not one.registry.health()[0]


@contextlib.asynccontextmanager
async def proxied(
    redis: RedisServer, *, budget_s: float = BUDGET_S
) -> AsyncIterator[tuple[FaultProxy, Replica]]:
    """A replica whose way to the server is in the hands of the test."""
    async with (
        FaultProxy(redis.port) as between,
        replica(f"redis://127.0.0.1:{between.port}/0", budget_s=budget_s) as one,
    ):
        yield between, one


async def until_unhealthy(one: Replica) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while one.registry.health()[0]:  # noqa: ASYNC110 - nobody is told of it
            await asyncio.sleep(0.01)


# --- dead -----------------------------------------------------------------------------------------


async def test_a_dead_server_fails_every_operation_and_works_again_when_it_is_back(
    redis: RedisServer,
) -> None:
    async with replica(redis.url) as one:
        await one.registry.create(A, RECORD)
        redis.kill()

        for operation in (
            one.registry.fetch(A),
            one.registry.refresh(A),
            one.registry.create(B, RECORD),
            one.registry.replace(A, RECORD, RECORD),
            one.registry.end(A),
            one.registry.claim(A, "token", 1),
            one.registry.disclaim(A, "token"),
            one.registry.page("", 10),
            one.registry.show(A),
        ):
            await fails(operation)
        ok, sentence = one.registry.health()
        assert not ok
        assert sentence.startswith("redis unreachable for ")
        assert sentence.endswith(" s; known sessions keep working")

        redis.start()
        assert await one.works(lambda: one.registry.fetch(A)) is None
        assert await one.registry.create(A, RECORD) is True
        await one.heard(lambda: one.resets == 3)
        # when it listens again, and when it may be asked again: in either order
        assert one.registry.health() == (True, "redis: connected")


async def test_an_open_breaker_fails_without_asking(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        redis.freeze()
        await opened(one)

        began_s = now()
        for _ in range(1000):
            assert await fails(one.registry.fetch(A)) == "redis is unreachable"
        each_s = (now() - began_s) / 1000
        redis.thaw()

        assert each_s < 0.005


async def test_a_restart_between_operations_is_not_noticed_by_the_next_one(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        await one.registry.create(A, RECORD)
        redis.kill()
        redis.start()
        await one.heard(lambda: one.resets == 2)

        assert await one.works(lambda: one.registry.fetch(A)) is None
        assert one.registry.health()[0]


async def test_a_server_that_forgot_everything_is_believed(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        await one.registry.create(A, RECORD)
        redis.flush()

        assert await one.registry.fetch(A) is None
        assert await one.registry.refresh(A) is None
        assert await one.registry.replace(A, None, RECORD) is True


async def test_a_replica_that_starts_first_works_when_the_server_comes() -> None:
    with running(RedisServer()) as late:
        async with replica(late.url, waits=False) as one:
            await fails(one.registry.fetch(A))
            await fails(one.registry.create(A, RECORD))
            ok, sentence = one.registry.health()
            assert not ok
            assert "not reached yet" in sentence

            late.start()

            assert await one.works(lambda: one.registry.create(A, RECORD)) is True
            await one.heard(lambda: one.resets == 1)
            assert one.registry.health() == (True, "redis: connected")


async def test_an_idle_registry_notices_that_the_server_died(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        redis.kill()
        await until_unhealthy(one)


# --- frozen ---------------------------------------------------------------------------------------


async def test_a_hung_server_costs_no_more_than_the_budget(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        redis.freeze()
        began_s = now()
        failed = await outcomes(*(one.registry.fetch(name(n)) for n in range(100)))
        took_s = now() - began_s
        redis.thaw()

        assert all(isinstance(outcome, StoreError) for outcome in failed)
        assert BUDGET_S * 0.9 < took_s < BUDGET_S + SLACK_S


async def test_what_waits_behind_silent_batches_fails_within_its_own_budget(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        redis.freeze()
        took_s: list[float] = []

        async def ask(of: str) -> None:
            began_s = now()
            await fails(one.registry.fetch(of))
            took_s.append(now() - began_s)

        asking = []
        for n in range(40):  # one batch each, more than may be in flight
            asking.append(asyncio.ensure_future(ask(name(n))))
            await asyncio.sleep(0.002)
        await asyncio.gather(*asking)
        redis.thaw()

        assert len(took_s) == 40
        assert max(took_s) < BUDGET_S + SLACK_S


async def test_answers_that_come_late_are_never_taken_for_others(redis: RedisServer) -> None:
    records = {name(n): SessionRecord(f"backend-{n}") for n in range(50)}
    async with replica(redis.url) as one:
        await outcomes(*(one.registry.create(of, record) for of, record in records.items()))
        names = list(records)
        answered = 0
        for cycle in range(12):
            redis.freeze()
            asked = names[cycle:] + names[:cycle]
            silent = asyncio.gather(*(one.registry.fetch(of) for of in asked[:10]), return_exceptions=True)
            await asyncio.sleep(0.0 if cycle % 2 else BUDGET_S * 0.9)
            redis.thaw()  # its answers race with the deadline
            for of, found in zip(asked[:10], await silent, strict=True):
                assert isinstance(found, StoreError) or found == records[of]
            await one.works(lambda: one.registry.fetch(A))
            for of, outcome in zip(asked, await outcomes(*map(one.registry.fetch, asked)), strict=True):
                assert isinstance(outcome, StoreError) or outcome == records[of]
                answered += outcome == records[of]

    assert answered > 300


async def test_callers_that_leave_never_shift_the_answers_of_others(redis: RedisServer) -> None:
    records = {name(n): SessionRecord(f"backend-{n}") for n in range(30)}
    async with replica(redis.url) as one:
        await outcomes(*(one.registry.create(of, record) for of, record in records.items()))
        for cycle in range(30):
            asked = [asyncio.ensure_future(one.registry.fetch(of)) for of in records]
            for _ in range(cycle % 6):
                await asyncio.sleep(0)
            for fetch in asked[cycle % 3 :: 3]:
                fetch.cancel()
            found = await asyncio.gather(*asked, return_exceptions=True)
            for record, outcome in zip(records.values(), found, strict=True):
                assert isinstance(outcome, asyncio.CancelledError) or outcome == record


@pytest.mark.parametrize("turns", range(3, 12))
async def test_a_pause_of_our_own_is_not_held_against_the_server(redis: RedisServer, turns: int) -> None:
    """``turns`` of the loop after the question was asked; with the third it is on its way."""
    async with replica(redis.url) as one:
        await one.registry.create(A, RECORD)
        asked = asyncio.ensure_future(one.registry.fetch(A))
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(1.5 * BUDGET_S)  # noqa: ASYNC251 - as a process that may not run

        assert await asked == RECORD
        assert one.registry.health()[0]


async def test_a_hung_server_is_used_again_soon_after_it_wakes(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        await one.registry.create(A, RECORD)
        redis.freeze()
        await opened(one)
        redis.thaw()

        began_s = now()
        assert await one.works(lambda: one.registry.fetch(A)) == RECORD
        assert now() - began_s < 2.0 + SLACK_S


async def test_a_silent_subscription_is_made_anew(redis: RedisServer) -> None:
    async with proxied(redis) as (between, one):
        between.down.swallow = True  # no FIN, no RST: a firewall forgot the connection
        await until_unhealthy(one)  # nobody asked for anything
        between.down.swallow = False
        await one.heard(lambda: one.resets == 2)

        await one.works(lambda: one.registry.end(A))
        await one.heard(lambda: A in one.changes)


# --- in between -----------------------------------------------------------------------------------


async def test_a_slow_network_within_the_budget_changes_nothing(redis: RedisServer) -> None:
    async with proxied(redis) as (between, one):
        between.down.latency_s = 0.05
        assert await one.registry.create(A, RECORD) is True
        found = await outcomes(*(one.registry.fetch(A) for _ in range(20)))
        assert found == [RECORD] * 20


async def test_answers_in_single_bytes_are_put_together(redis: RedisServer) -> None:
    async with proxied(redis, budget_s=5.0) as (between, one):
        between.down.slice_bytes = 1
        await one.registry.create(A, RECORD)
        assert await outcomes(*map(one.registry.fetch, (A, B, A))) == [RECORD, None, RECORD]


async def test_a_connection_that_is_cut_in_an_answer_fails_its_batch_alone(redis: RedisServer) -> None:
    async with proxied(redis) as (between, one):
        await outcomes(*(one.registry.create(name(n), SessionRecord(f"backend-{n}")) for n in range(20)))
        between.cut()
        between.down.reset_after = 400  # of every new connection: somewhere in its answers
        found = await outcomes(*(one.registry.fetch(name(n)) for n in range(20)))
        assert all(isinstance(outcome, StoreError) for outcome in found)
        between.down.reset_after = None

        for n in range(20):
            assert await one.works(partial(one.registry.fetch, name(n))) == SessionRecord(f"backend-{n}")


async def test_a_reset_connection_opens_no_breaker(redis: RedisServer) -> None:
    async with proxied(redis) as (between, one):
        await one.registry.create(A, RECORD)
        for _ in range(THRESHOLD * 2):
            between.cut()
            assert await one.works(lambda: one.registry.fetch(A)) == RECORD
            assert one.registry.health()[0]


async def test_a_reset_connection_that_cannot_be_replaced_takes_nobody_s_place(redis: RedisServer) -> None:
    tasks = Tasks()
    async with FaultProxy(redis.port) as between, asyncio.timeout(PATIENCE_S):
        server = connect(parse_url(f"redis://127.0.0.1:{between.port}/0"), tasks)
        for _ in range(3 * IN_FLIGHT):
            assert await server.exchange([("ECHO", "a")]) == [b"a"]
            between.cut()
            between.down.reset_after = 1
            with pytest.raises(LinkError):
                await server.exchange([("ECHO", "b")])
            between.down.reset_after = None
        await server.aclose()
    await tasks.aclose()


async def test_something_else_than_redis_is_not_believed() -> None:
    async def gibberish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(gibberish, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with replica(f"redis://127.0.0.1:{port}", waits=False) as one:
        await fails(one.registry.fetch(A))
        await fails(one.registry.create(A, RECORD))
    listener.close()
    await listener.wait_closed()


# --- a replica instead of a master ----------------------------------------------------------------


async def test_a_replica_is_not_asked_because_it_may_not_know_yet(redis: RedisServer) -> None:
    with RedisServer(f"replicaof 127.0.0.1 {redis.port}") as follower:
        async with replica(follower.url, waits=False) as one:
            assert "replica" in await fails(one.registry.fetch(A))
            await fails(one.registry.create(A, RECORD))


async def test_a_master_that_is_demoted_is_left(redis: RedisServer) -> None:
    with RedisServer() as other:
        async with replica(redis.url) as one:
            await one.registry.create(A, RECORD)
            redis.command("REPLICAOF", "127.0.0.1", other.port)

            assert "READONLY" in await fails(one.registry.create(B, RECORD))
            assert "replica" in await fails(one.registry.fetch(A))

            redis.command("REPLICAOF", "NO", "ONE")
            await one.works(lambda: one.registry.end(A))
            assert await one.registry.fetch(A) is ENDED


# --- what is said ---------------------------------------------------------------------------------


async def test_losing_and_finding_the_server_is_said_once_each(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    redis.command("CONFIG", "SET", "requirepass", "hunter2")
    async with replica(f"redis://:hunter2@127.0.0.1:{redis.port}/0") as one:
        redis.freeze()
        await opened(one)
        for _ in range(50):
            await fails(one.registry.fetch(A))
        redis.thaw()
        await one.works(lambda: one.registry.fetch(A))

    said = [record.getMessage() for record in caplog.records if record.name == "mcp_proxy"]
    where = f"redis://127.0.0.1:{redis.port}/0"
    assert said == [
        f"session registry: connected to {where}",
        f"session registry: redis unreachable ({where}): no answer in time",
        f"session registry: redis is back ({where})",
    ]
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("userinfo", [":wrong-secret", "nobody:wrong-secret", ""])
async def test_a_refused_password_is_an_error_that_does_not_repeat_it(
    redis: RedisServer, caplog: pytest.LogCaptureFixture, userinfo: str
) -> None:
    redis.command("CONFIG", "SET", "requirepass", "hunter2")
    url = f"redis://{userinfo}@127.0.0.1:{redis.port}/0" if userinfo else redis.url
    async with replica(url, waits=False) as one:
        said = [await fails(one.registry.fetch(A)) for _ in range(3)]
        assert any("user or password were refused" in line for line in said)
        shown = f"{said} {one.registry.health()} {caplog.text} {one.registry!r}"
    assert "wrong-secret" not in shown


@pytest.mark.parametrize("url", ["redis://localhost:notaport", "http://x", "redis+sentinel://h"])
def test_a_url_that_cannot_be_used_is_refused_before_anything_is_begun(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        RedisRegistry(url, ttl_s=1, tasks=Tasks())
