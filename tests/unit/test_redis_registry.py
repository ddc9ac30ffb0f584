"""Every operation of the registry against a real server: what it answers, and what Redis holds."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator

import pytest

from mcp_proxy.config.redis_url import parse_url
from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import ENDED, INITIALIZE_LIMIT, Listed, SessionRecord
from mcp_proxy.sessions.redis import RedisRegistry, connect
from mcp_proxy.sessions.remote.lane import IN_FLIGHT, LinkError
from mcp_proxy.tasks import Tasks
from tests.tools.redis_server import RedisServer, eventually
from tests.unit.fakes import until
from tests.unit.redis_registry import MOVED, RECORD, fails, name, outcomes, replica, session

A, B = name(1), name(2)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as redis:
        yield redis


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    server.flush()
    server.maxmemory("0")
    return server


# --- sessions -------------------------------------------------------------------------------------


async def test_what_was_created_is_what_every_replica_fetches(redis: RedisServer) -> None:
    async with replica(redis.url) as one, replica(redis.url) as other:
        assert await one.registry.create(A, RECORD) is True

        assert await other.registry.fetch(A) == RECORD
        assert await other.registry.fetch(B) is None


async def test_an_existing_session_is_never_overwritten(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        await one.registry.create(A, RECORD)

        assert await one.registry.create(A, MOVED) is False

        assert await one.registry.fetch(A) == RECORD


async def test_a_creation_is_one_operation_and_so_is_a_look_up(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        redis.forget_calls()
        await one.registry.create(A, RECORD)
        await one.registry.fetch(A)
        await one.registry.refresh(A)

        assert redis.calls() == {"set": 1, "get": 1, "getex": 1}


async def test_a_look_up_changes_nothing_not_even_the_time_to_live(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        await one.registry.create(A, RECORD)
        redis.command("PEXPIRE", session(A), 10_000)

        await one.registry.fetch(A)

        assert redis.command("PTTL", session(A)) <= 10_000


async def test_a_refresh_begins_the_time_to_live_anew(redis: RedisServer) -> None:
    async with replica(redis.url, ttl_s=60) as one:
        await one.registry.create(A, RECORD)
        redis.command("PEXPIRE", session(A), 10_000)

        assert await one.registry.refresh(A) == RECORD

        assert redis.command("PTTL", session(A)) > 50_000


async def test_a_refresh_brings_nothing_back(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        assert await one.registry.refresh(A) is None

        assert redis.keys() == []


async def test_a_move_replaces_exactly_what_was_known_and_tells_all(redis: RedisServer) -> None:
    async with replica(redis.url) as one, replica(redis.url) as other:
        await one.registry.create(A, RECORD)

        assert await one.registry.replace(A, RECORD, MOVED) is True
        assert await other.registry.replace(A, RECORD, MOVED) is False

        assert await other.registry.fetch(A) == MOVED
        await one.heard(lambda: one.changes)
        await other.heard(lambda: other.changes)
        assert one.changes == other.changes == [A]


async def test_of_many_moves_at_once_one_succeeds(redis: RedisServer) -> None:
    async with replica(redis.url) as one, replica(redis.url) as other:
        await one.registry.create(A, RECORD)
        moves = [SessionRecord(f"backend-{n}", generation=1) for n in range(20)]

        won = await outcomes(
            *((one, other)[n % 2].registry.replace(A, RECORD, m) for n, m in enumerate(moves))
        )

        assert won.count(True) == 1
        assert await one.registry.fetch(A) == moves[won.index(True)]


async def test_writing_again_needs_an_empty_place(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        assert await one.registry.replace(A, None, RECORD) is True
        assert await one.registry.replace(A, None, MOVED) is False
        await one.registry.end(A)

        assert await one.registry.replace(A, None, RECORD) is False

        assert await one.registry.fetch(A) is ENDED


async def test_an_end_is_remembered_and_told_to_all(redis: RedisServer) -> None:
    async with replica(redis.url) as one, replica(redis.url) as other:
        await one.registry.create(A, RECORD)

        await one.registry.end(A)

        await other.heard(lambda: other.changes)
        assert other.changes == [A]
        assert await other.registry.fetch(A) is ENDED
        assert await other.registry.refresh(A) is ENDED


@pytest.mark.parametrize(("ttl_s", "at_least_ms"), [(1.0, 590_000), (3600.0, 3_590_000)])
async def test_an_end_is_remembered_longer_than_any_replica_may_hold_the_session(
    redis: RedisServer, ttl_s: float, at_least_ms: int
) -> None:
    async with replica(redis.url, ttl_s=ttl_s) as one:
        await one.registry.end(A)
        assert redis.command("PTTL", session(A)) > at_least_ms

        await one.registry.refresh(A)

        assert redis.command("PTTL", session(A)) > at_least_ms


async def test_a_session_may_be_created_where_one_was_ended(redis: RedisServer) -> None:
    async with replica(redis.url, ttl_s=60) as one:
        await one.registry.end(A)

        assert await one.registry.create(A, RECORD) is True

        assert await one.registry.fetch(A) == RECORD
        assert 0 < redis.command("PTTL", session(A)) <= 60_000


async def test_a_claim_is_held_by_one_until_it_is_given_back_or_expires(redis: RedisServer) -> None:
    async with replica(redis.url) as one, replica(redis.url) as other:
        assert await one.registry.claim(A, "mine", 30) is True
        assert await other.registry.claim(A, "theirs", 30) is False
        await other.registry.disclaim(A, "theirs")
        assert await other.registry.claim(A, "theirs", 30) is False
        assert 0 < redis.command("PTTL", f"mcp-proxy:claim:{A}") <= 30_000

        await one.registry.disclaim(A, "mine")

        assert await other.registry.claim(A, "theirs", 30) is True


async def test_every_key_has_the_prefix_and_expires(redis: RedisServer) -> None:
    async with replica(redis.url, prefix="other:") as one:
        await one.registry.create(A, RECORD)
        await one.registry.create(B, RECORD)
        await one.registry.refresh(A)
        await one.registry.replace(A, RECORD, MOVED)
        await one.registry.end(B)
        await one.registry.refresh(B)
        await one.registry.create(B, RECORD)
        await one.registry.claim(A, "token", 5)
        await one.registry.restore(Listed(name(3), "", RECORD, None))
        await one.registry.restore(Listed(name(4), "", RECORD, 1e12))

    keys = redis.keys()
    assert len(keys) == 5
    assert all(key.startswith("other:") and redis.command("PTTL", key) > 0 for key in keys)


async def test_a_value_is_readable_text_and_says_its_version(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        await one.registry.create(A, SessionRecord("http://10.0.0.1:8000/mcp"))

    value = json.loads(redis.command("GET", session(A)))
    assert value == {"v": 1, "session": {"backend": "http://10.0.0.1:8000/mcp"}}


async def test_a_record_of_any_legal_size_comes_back_as_it_went(redis: RedisServer) -> None:
    record = SessionRecord(
        "b" * 300, "f" * 64, bytes(range(0x21, 0x7F)) * 5, 7, b"\xff" * INITIALIZE_LIMIT, 1 << 40
    )
    async with replica(redis.url) as one:
        await one.registry.create(A, record)

        assert await one.registry.fetch(A) == record
        assert await one.registry.replace(A, record, MOVED)


# --- what cannot be read --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        b'{"v":2,"who":"knows"}',
        b'{"v":2,"session":{"backend":"one"}}',
        b'{"v":1}',
        b'{"v":1,"session":{"backend":5}}',
        b"{}",
        b"",
        b"\x00\xff",
        b"[" * 5000,
        b'{"v":1,"session":{"backend":"' + b"x" * 70_000 + b'"}}',
    ],
)
async def test_a_value_that_cannot_be_read_is_never_an_absent_session(
    redis: RedisServer, value: bytes
) -> None:
    redis.command("SET", session(A), value, "EX", 60)
    async with replica(redis.url) as one:
        assert "cannot be read" in await fails(one.registry.fetch(A))
        assert "cannot be read" in await fails(one.registry.refresh(A))
        assert "cannot be read" in await fails(one.registry.create(A, RECORD))
        assert "cannot be read" in await fails(one.registry.show(A))
        assert await one.registry.replace(A, None, RECORD) is False
        assert one.registry.health()[0]


async def test_values_that_cannot_be_read_are_one_line_in_the_log(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis.command("SET", session(A), '{"v":9}', "EX", 60)
    async with replica(redis.url) as one:
        for _ in range(20):
            await fails(one.registry.fetch(A))

    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "of version 9, this proxy reads version 1" in lines[0]


async def test_a_key_of_another_type_fails_alone(redis: RedisServer) -> None:
    redis.command("LPUSH", session(A), "x")
    async with replica(redis.url) as one:
        await one.registry.create(B, RECORD)

        wrong, right, absent = await outcomes(*map(one.registry.fetch, (A, B, name(3))))

        assert isinstance(wrong, StoreError)
        assert "WRONGTYPE" in str(wrong)
        assert (right, absent) == (RECORD, None)


async def test_a_full_server_refuses_new_sessions_and_serves_the_others(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        await one.registry.create(A, RECORD)
        redis.maxmemory("1")
        for _ in range(20):
            assert "OOM" in await fails(one.registry.create(B, RECORD))

        assert await one.registry.fetch(A) == RECORD
        assert await one.registry.refresh(A) == RECORD
        assert one.registry.health() == (True, "redis: connected")


# --- one batch per tick ---------------------------------------------------------------------------


async def test_operations_of_one_tick_travel_in_one_piece(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        await outcomes(*(one.registry.create(name(n), SessionRecord(f"backend-{n}")) for n in range(100)))
        # Connections that nobody waits for are being opened yet; the subscription stays.
        await until(lambda: len(one.tasks) <= 1, 0.005)
        reads = int(redis.info("stats")["total_reads_processed"])

        found = await outcomes(*(one.registry.fetch(name(n)) for n in range(100)))

        assert found == [SessionRecord(f"backend-{n}") for n in range(100)]
        # One for the batch, one for asking, and the subscription may ask whether it lives.
        assert int(redis.info("stats")["total_reads_processed"]) - reads <= 4
        assert redis.clients("cmd=get") <= 2


async def test_thousands_of_operations_at_once_need_few_connections(redis: RedisServer) -> None:
    async with replica(redis.url, budget_s=5.0) as one:
        await outcomes(*(one.registry.create(name(n), SessionRecord(f"backend-{n}")) for n in range(5000)))

        found = await outcomes(*(one.registry.fetch(name(n)) for n in range(5000)))

        assert found == [SessionRecord(f"backend-{n}") for n in range(5000)]
        assert redis.clients() <= 2 * IN_FLIGHT + 2  # the pool, the subscription, this one


async def test_a_queue_that_is_full_refuses_at_once(redis: RedisServer) -> None:
    async with replica(redis.url, budget_s=10.0) as one:
        found = await outcomes(*(one.registry.fetch(name(n)) for n in range(10_050)))

        refused = [outcome for outcome in found if isinstance(outcome, StoreError)]
        assert 0 < len(refused) <= 50
        assert one.registry.health()[0]


async def test_whoever_finds_all_connections_taken_waits_for_one(redis: RedisServer) -> None:
    tasks = Tasks()
    server = connect(parse_url(redis.url), tasks)
    try:
        found = await outcomes(*(server.exchange([("ECHO", str(n))]) for n in range(10 * IN_FLIGHT)))

        assert found == [[str(n).encode()] for n in range(10 * IN_FLIGHT)]
        assert redis.clients() <= 2 * IN_FLIGHT
    finally:
        await server.aclose()
        await tasks.aclose()


async def test_whoever_waits_for_a_connection_that_is_lost_gets_another(redis: RedisServer) -> None:
    tasks = Tasks()
    server = connect(parse_url(redis.url), tasks)
    try:
        block = [("BLPOP", "nothing", "0")]
        taken = [asyncio.ensure_future(server.exchange(block)) for _ in range(2 * IN_FLIGHT)]
        await until(lambda: redis.clients() == 2 * IN_FLIGHT)
        waiting = [asyncio.ensure_future(server.exchange([("ECHO", str(n))])) for n in range(IN_FLIGHT)]
        await asyncio.sleep(0)
        redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        assert await outcomes(*waiting) == [[str(n).encode()] for n in range(IN_FLIGHT)]
        lost = await asyncio.gather(*taken, return_exceptions=True)
        assert all(isinstance(outcome, LinkError) for outcome in lost)
    finally:
        await server.aclose()
        await tasks.aclose()


async def test_an_operation_whose_caller_left_disturbs_nobody(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        await outcomes(*(one.registry.create(name(n), SessionRecord(f"backend-{n}")) for n in range(10)))
        fetches = [asyncio.ensure_future(one.registry.fetch(name(n))) for n in range(10)]
        await asyncio.sleep(0)
        for fetch in fetches[::2]:
            fetch.cancel()

        found = await asyncio.gather(*fetches[1::2])

        assert found == [SessionRecord(f"backend-{n}") for n in range(1, 10, 2)]


# --- for operators --------------------------------------------------------------------------------


async def test_pages_show_every_session_and_no_tombstone_or_stranger(redis: RedisServer) -> None:
    async with replica(redis.url, prefix="p[a]*:") as one:
        await outcomes(*(one.registry.create(name(n), SessionRecord(f"backend-{n}")) for n in range(250)))
        await one.registry.end(name(7))
        await one.registry.claim(name(8), "token", 60)
        redis.command("SET", "p[a]*:session:stranger", "x", "EX", 60)
        redis.command("SET", f"pa:session:{A}", "x", "EX", 60)
        redis.command("SET", f"p[a]*:session:{name(9)}", "damaged", "EX", 60)
        found: dict[str, Listed] = {}
        cursor, pages = "", 0
        while pages == 0 or cursor:
            page = await one.registry.page(cursor, 20)
            found.update((listed.name, listed) for listed in page.sessions)
            cursor, pages = page.cursor, pages + 1

    assert set(found) == {name(n) for n in range(250) if n not in (7, 9)}
    assert found[name(3)].record == SessionRecord("backend-3")
    assert all(listed.route == "" and 0 < (listed.expires_s or 0) <= 60 for listed in found.values())
    assert pages > 3


@pytest.mark.parametrize("cursor", ["x", "0", "0.", ".-1", "0.99999999999999999999", "*.0", "é.1"])
async def test_a_cursor_that_was_not_issued_here_is_refused(redis: RedisServer, cursor: str) -> None:
    async with replica(redis.url) as one:
        with pytest.raises(ValueError, match="not issued here"):
            await one.registry.page(cursor, 10)


async def test_an_empty_registry_is_one_empty_page(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        assert await one.registry.page("", 10) == ([], "")


async def test_one_session_is_shown_with_the_time_that_it_has_left(redis: RedisServer) -> None:
    async with replica(redis.url, ttl_s=60) as one:
        await one.registry.create(A, RECORD)
        await one.registry.end(B)

        shown = await one.registry.show(A)

        assert shown is not None
        assert (shown.name, shown.record) == (A, RECORD)
        assert 50 < (shown.expires_s or 0) <= 60
        assert await one.registry.show(B) is None
        assert await one.registry.show(name(3)) is None


async def test_a_backup_comes_back_with_its_time_and_never_over_what_is_there(redis: RedisServer) -> None:
    async with replica(redis.url, ttl_s=60) as one:
        await one.registry.create(A, MOVED)
        await one.registry.end(B)

        assert await one.registry.restore(Listed(A, "", RECORD, 30.0)) is False
        assert await one.registry.restore(Listed(B, "", RECORD, 30.0)) is False
        assert await one.registry.restore(Listed(name(3), "/mcp", RECORD, 30.0)) is True
        assert await one.registry.restore(Listed(name(4), "/mcp", RECORD, 0.0)) is False

        assert await one.registry.fetch(A) == MOVED
        assert await one.registry.fetch(B) is ENDED
        assert 20_000 < redis.command("PTTL", session(name(3))) <= 30_000


# --- changes --------------------------------------------------------------------------------------


async def test_only_names_of_sessions_are_taken_for_changes(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        for message in ("", "x", A.upper(), A + "0", A + "\n", "é" * 40, A):
            redis.command("PUBLISH", "mcp-proxy:changes", message)
        redis.command("PUBLISH", "mcp-proxy:changes:other", B)
        redis.command("PUBLISH", "mcp-proxy:changes", B)

        await one.heard(lambda: len(one.changes) >= 2)

        assert one.changes == [A, B]


# --- beginning and end ----------------------------------------------------------------------------


async def test_starting_twice_listens_once(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        one.registry.start()
        await one.registry.end(A)
        await one.registry.end(B)

        await one.heard(lambda: B in one.changes)

        assert one.changes == [A, B]
        assert one.resets == 1


async def test_closing_fails_what_is_under_way_and_all_that_follows(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        waiting = [asyncio.ensure_future(one.registry.fetch(name(n))) for n in range(10)]
        await asyncio.sleep(0)
        await one.registry.aclose()

        assert all(isinstance(outcome, StoreError) for outcome in await outcomes(*waiting))
        assert "closed" in await fails(one.registry.fetch(A))
        await one.registry.aclose()
    await asyncio.to_thread(eventually, lambda: redis.clients() == 0, "all connections to be closed")


async def test_a_registry_that_was_never_started_can_be_closed() -> None:
    tasks = Tasks()
    registry = RedisRegistry("redis://127.0.0.1:1/0", ttl_s=1, tasks=tasks)
    await registry.aclose()
    await tasks.aclose()


async def test_an_operation_before_the_start_is_answered(redis: RedisServer) -> None:
    tasks = Tasks()
    registry = RedisRegistry(redis.url, ttl_s=60, tasks=tasks)

    assert await registry.create(A, RECORD) is True

    await registry.aclose()
    await tasks.aclose()


@pytest.mark.parametrize(
    ("policy", "warns"), [("allkeys-lru", True), ("volatile-ttl", True), ("noeviction", False)]
)
async def test_a_server_that_may_drop_sessions_is_warned_of_once(
    redis: RedisServer, caplog: pytest.LogCaptureFixture, policy: str, warns: bool
) -> None:
    redis.maxmemory("0", policy)
    async with replica(redis.url) as one:
        for n in range(5):
            await one.registry.fetch(name(n))

    lines = [record.getMessage() for record in caplog.records if "noeviction" in record.getMessage()]
    assert len(lines) == warns
    assert all(policy in line for line in lines)
