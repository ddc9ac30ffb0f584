"""How long the registry took is told once per question that was sent, and for no other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mcp_proxy.clock import now
from mcp_proxy.sessions import Listed
from mcp_proxy.sessions.remote.breaker import THRESHOLD
from tests.tools.redis_server import RedisServer
from tests.unit.redis_registry import MOVED, RECORD, Replica, fails, name, replica

A, B = name(1), name(2)
BUDGET_S = 0.25


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def listening(one: Replica) -> list[tuple[str, float]]:
    """What is told from now on."""
    told: list[tuple[str, float]] = []
    one.registry.on_asked = lambda operation, seconds: told.append((operation, seconds))
    return told


async def test_every_question_says_what_it_was_and_how_long_it_took(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        told = listening(one)
        began_s = now()
        await one.registry.fetch(A)
        await one.registry.create(A, RECORD)
        await one.registry.refresh(A)
        await one.registry.replace(A, RECORD, MOVED)
        await one.registry.claim(A, "token", 1)
        await one.registry.disclaim(A, "token")
        await one.registry.show(A)
        await one.registry.page("", 10)
        await one.registry.end(A)
        await one.registry.restore(Listed(B, "", RECORD, 10.0))
        took_s = now() - began_s

    words = ["get", "create", "refresh", "move", "claim", "claim", "show", "list", "delete", "restore"]
    assert [operation for operation, _ in told] == words
    assert all(seconds > 0 for _, seconds in told)
    assert sum(seconds for _, seconds in told) <= took_s


async def test_a_question_that_nobody_answers_took_the_whole_budget(redis: RedisServer) -> None:
    async with replica(redis.url, budget_s=BUDGET_S) as one:
        told = listening(one)
        redis.freeze()
        await fails(one.registry.fetch(A))
        redis.thaw()

    ((operation, seconds),) = told
    assert operation == "get"
    assert seconds > BUDGET_S * 0.9


async def test_a_question_that_the_server_refuses_took_its_time(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        redis.command("SADD", f"mcp-proxy:session:{A}", "no session")
        told = listening(one)
        await fails(one.registry.fetch(A))

    assert [operation for operation, _ in told] == ["get"]


async def test_what_is_not_asked_because_the_server_is_away_takes_no_time_and_is_not_told(
    redis: RedisServer,
) -> None:
    async with replica(redis.url) as one:
        redis.freeze()
        for _ in range(THRESHOLD):
            await fails(one.registry.fetch(A))
        told = listening(one)
        for _ in range(10):
            await fails(one.registry.fetch(A))
        redis.thaw()

    assert told == []


async def test_a_cursor_that_was_not_issued_is_no_question(redis: RedisServer) -> None:
    async with replica(redis.url) as one:
        told = listening(one)
        with pytest.raises(ValueError, match="cursor"):
            await one.registry.page("?", 10)

    assert told == []
