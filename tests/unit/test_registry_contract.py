"""The contract of every registry: Redis itself, and the fake that other tests use instead of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import ENDED, Listed, Registry, SessionKey, SessionRecord
from tests.tools import PATIENCE_S
from tests.tools.redis_server import RedisServer
from tests.unit.fakes import until
from tests.unit.redis_registry import replica
from tests.unit.registries import FakeRegistry, Shelf

RECORD = SessionRecord("one", principal="p", upstream_id=b"up", initialize=b"{}", created_s=7)
MOVED = SessionRecord("two", principal="p", upstream_id=b"up2", generation=1)
A, B, C = (SessionKey("/mcp", session_id).name for session_id in (b"a", b"b", b"c"))
TTL_S = 60.0


class Pair:
    """Two replicas' ways to one registry, and what the second one heard."""

    def __init__(self, one: Registry, other: Registry, news: list[str]) -> None:
        self.one = one
        self.other = other
        self.news = news

    async def heard(self, *names: str) -> None:
        await until(lambda: self.news == list(names), 0.005)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as redis:
        yield redis


@pytest.fixture(params=["redis", "fake"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        if request.param == "fake":
            shelf = Shelf(TTL_S)
            one, other, news = FakeRegistry(shelf), FakeRegistry(shelf), list[str]()
            other.on_change = news.append
            yield Pair(one, other, news)
        else:
            server: RedisServer = request.getfixturevalue("server")
            server.flush()
            first = await stack.enter_async_context(replica(server.url, ttl_s=TTL_S))
            second = await stack.enter_async_context(replica(server.url, ttl_s=TTL_S))
            yield Pair(first.registry, second.registry, second.changes)


async def test_there_is_nothing_until_it_is_created(pair: Pair) -> None:
    assert await pair.one.fetch(A) is None
    assert await pair.one.refresh(A) is None
    assert await pair.one.show(A) is None
    assert await pair.one.create(A, RECORD) is True

    assert await pair.other.fetch(A) == RECORD
    assert await pair.other.refresh(A) == RECORD
    assert await pair.other.fetch(B) is None
    assert pair.news == []


async def test_what_exists_is_never_created_again(pair: Pair) -> None:
    await pair.one.create(A, RECORD)

    assert await pair.other.create(A, MOVED) is False

    assert await pair.one.fetch(A) == RECORD


async def test_an_end_leaves_a_tombstone_and_is_told(pair: Pair) -> None:
    await pair.one.create(A, RECORD)

    await pair.one.end(A)

    assert await pair.other.fetch(A) is ENDED
    assert await pair.other.refresh(A) is ENDED
    assert await pair.other.show(A) is None
    await pair.heard(A)


async def test_an_end_of_the_unknown_leaves_a_tombstone_too(pair: Pair) -> None:
    await pair.one.end(A)

    assert await pair.other.fetch(A) is ENDED
    assert await pair.other.replace(A, None, RECORD) is False
    assert await pair.other.restore(Listed(A, "", RECORD, None)) is False
    assert await pair.other.create(A, RECORD) is True
    assert await pair.one.fetch(A) == RECORD


async def test_an_id_that_is_issued_again_is_told(pair: Pair) -> None:
    """Replicas remember ends by themselves, and would refuse the new session."""
    again: list[str] = []
    pair.other.on_revive = again.append
    await pair.one.create(A, RECORD)
    await pair.one.create(B, RECORD)
    await pair.one.end(A)
    await pair.one.create(A, MOVED)
    await pair.one.end(B)
    await pair.heard(A, B)
    assert again == [A]


async def test_a_move_needs_exactly_what_is_there_and_is_told(pair: Pair) -> None:
    assert await pair.one.replace(A, RECORD, MOVED) is False, "nothing is there"
    await pair.one.create(A, RECORD)
    assert await pair.one.replace(A, MOVED, RECORD) is False
    assert await pair.one.replace(A, None, MOVED) is False

    assert await pair.one.replace(A, RECORD, MOVED) is True

    assert await pair.other.fetch(A) == MOVED
    await pair.heard(A)


async def test_what_was_lost_is_written_again_once(pair: Pair) -> None:
    assert await pair.one.replace(A, None, RECORD) is True
    assert await pair.other.replace(A, None, MOVED) is False

    assert await pair.other.fetch(A) == RECORD


async def test_a_claim_has_one_holder_who_alone_can_give_it_back(pair: Pair) -> None:
    assert await pair.one.claim(A, "1", 30.0) is True
    assert await pair.other.claim(A, "2", 30.0) is False
    assert await pair.one.claim(A, "1", 30.0) is True, "the answer to its holder may have been lost"
    assert await pair.other.claim(A, "2", 30.0) is False
    assert await pair.other.claim(B, "2", 30.0) is True
    await pair.other.disclaim(A, "2")
    assert await pair.other.claim(A, "2", 30.0) is False

    await pair.one.disclaim(A, "1")

    assert await pair.other.claim(A, "2", 30.0) is True
    await pair.one.disclaim(C, "1")


async def test_pages_show_each_session_and_no_tombstone(pair: Pair) -> None:
    names = sorted(SessionKey("/mcp", b"%d" % number).name for number in range(25))
    for name in names:
        await pair.one.create(name, RECORD)
    await pair.one.end(names.pop(3))

    found: list[str] = []
    cursor = ""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            page = await pair.other.page(cursor, 10)
            found += [listed.name for listed in page.sessions]
            assert all((listed.record, listed.route) == (RECORD, "") for listed in page.sessions)
            cursor = page.cursor
            if not cursor:
                break
    assert sorted(set(found)) == names


async def test_a_session_is_shown_with_its_time(pair: Pair) -> None:
    await pair.one.create(A, RECORD)

    shown = await pair.other.show(A)

    assert shown is not None
    assert (shown.name, shown.record) == (A, RECORD)
    assert shown.expires_s is not None
    assert 0 < shown.expires_s <= TTL_S


async def test_a_backup_comes_back_where_there_is_nothing(pair: Pair) -> None:
    assert await pair.one.restore(Listed(A, "", RECORD, 20.0)) is True
    assert await pair.one.restore(Listed(A, "", MOVED, 20.0)) is False
    assert await pair.one.restore(Listed(B, "", RECORD, 0.0)) is False
    assert await pair.one.restore(Listed(C, "", RECORD, TTL_S * 100)) is True

    assert await pair.other.fetch(A) == RECORD
    assert await pair.other.fetch(B) is None
    left = [shown.expires_s for name in (A, C) if (shown := await pair.other.show(name)) is not None]
    assert [
        seconds is not None and seconds <= limit for seconds, limit in zip(left, (20.0, TTL_S), strict=True)
    ] == [
        True,
        True,
    ]


async def test_a_cursor_of_somebody_else_is_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match="cursor"):
        await pair.one.page("../x", 10)


async def test_what_works_is_healthy(pair: Pair) -> None:
    assert pair.one.health()[0] is True


async def test_after_the_close_nothing_is_answered(pair: Pair) -> None:
    await pair.one.aclose()
    await pair.one.aclose()

    operations: list[Callable[[], object]] = [
        lambda: pair.one.fetch(A),
        lambda: pair.one.create(A, RECORD),
        lambda: pair.one.end(A),
    ]
    for operation in operations:
        with pytest.raises(StoreError):
            await operation()  # type: ignore[misc]
