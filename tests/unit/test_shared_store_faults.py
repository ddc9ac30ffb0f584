"""Shared sessions while the registry is away, has lost something, or says things out of order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import Listed, SessionKey, SessionRecord, settled
from tests.unit.fakes import settle
from tests.unit.registries import FOREIGN, FRESH_S, ROUTE, TTL_S, Replica

KEY = SessionKey(ROUTE, b"s1")
RECORD = SessionRecord("one", "alice", initialize=b"{}")
MOVED = SessionRecord("two", "alice", upstream_id=b"u2", generation=1, initialize=b"{}")
AGAIN = SessionRecord("three", "alice", upstream_id=b"u3", generation=2, initialize=b"{}")


@pytest.fixture
async def one() -> AsyncIterator[Replica]:
    replica = Replica()
    await replica.create(KEY, RECORD)
    replica.registry.asked.clear()
    yield replica
    await replica.aclose()


@pytest.fixture
async def two(one: Replica) -> AsyncIterator[Replica]:
    """Another replica; both know the session."""
    replica = Replica(one.shelf)
    await replica.get(KEY, "alice")
    replica.registry.asked.clear()
    yield replica
    await replica.aclose()


# --- away -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_known", [True, False], ids=["and it is known", "and it is not known"])
async def test_what_was_known_serves_while_the_registry_is_away(one: Replica, is_known: bool) -> None:
    if is_known:
        one.registry.is_down = True
    else:
        one.registry.failing |= {"fetch", "refresh"}
    for _ in range(20):
        assert await one.get(KEY, "alice") == RECORD
        await one.pass_(FRESH_S / 2)
    assert one.seen.known == [(KEY, RECORD)]
    assert is_known is ("fetch" not in one.asked)


async def test_a_known_session_is_to_others_what_an_unknown_one_is_while_the_registry_is_away(
    one: Replica,
) -> None:
    one.registry.is_down = True
    for _ in range(3):
        with pytest.raises(StoreError):
            await one.get(KEY, FOREIGN)
        with pytest.raises(StoreError):
            await one.get(SessionKey(ROUTE, b"unknown"), FOREIGN)
        await one.pass_(FRESH_S / 2)
    assert await one.get(KEY, "alice") == RECORD


async def test_nothing_is_known_of_others_while_the_registry_is_away(one: Replica) -> None:
    one.registry.is_down = True
    with pytest.raises(StoreError):
        await one.get(SessionKey(ROUTE, b"unknown"), "alice")


async def test_what_nobody_has_used_for_its_time_to_live_does_not_serve(one: Replica) -> None:
    one.registry.is_down = True
    await one.pass_(TTL_S + 1.0)
    with pytest.raises(StoreError):
        await one.get(KEY, "alice")
    assert one.store.count(ROUTE) == 0


async def test_doubt_is_not_settled_by_memory(one: Replica) -> None:
    one.registry.is_down = True
    with pytest.raises(StoreError):
        await settled(one.store.reread(KEY, "alice"))
    assert await one.get(KEY, "alice") == RECORD


async def test_a_new_session_that_cannot_be_written_is_none(one: Replica) -> None:
    other = SessionKey(ROUTE, b"s2")
    one.registry.failing.add("create")
    with pytest.raises(StoreError):
        await one.create(other, RECORD)
    one.registry.failing.clear()
    assert await one.get(other, "alice") is None
    assert one.store.count(ROUTE) == 1


@pytest.mark.parametrize("operation", ["claim", "replace", "page", "show", "restore"])
async def test_what_needs_the_registry_fails_without_it(one: Replica, operation: str) -> None:
    one.registry.is_down = True
    work: dict[str, Callable[[], Any]] = {
        "claim": lambda: one.store.claim(KEY, 15.0),
        "replace": lambda: one.store.move(KEY, RECORD, MOVED),
        "page": lambda: one.store.page("", 10),
        "show": lambda: one.store.show(KEY.name),
        "restore": lambda: one.store.restore([Listed(KEY.name, ROUTE, RECORD, None)]),
    }
    with pytest.raises(StoreError):
        await settled(work[operation]())
    one.store.disclaim(KEY)
    await settle()
    assert await one.get(KEY, "alice") == RECORD, "as before"


# --- news that overtake answers -------------------------------------------------------------------


async def test_an_answer_that_was_overtaken_by_an_end_is_not_believed(one: Replica, two: Replica) -> None:
    two.shelf.at_s += FRESH_S
    two.registry.holds.add("fetch")
    asking = asyncio.ensure_future(two.get(KEY, "alice"))
    await settle()
    question = two.registry.take("fetch")
    old = question.do()
    two.registry.holds.clear()
    await one.end(KEY)
    await question.tell(old)
    assert await asking is None
    assert two.seen.known == []


async def test_a_cold_answer_that_was_overtaken_by_a_move_is_asked_for_again(one: Replica) -> None:
    three = Replica(one.shelf)
    three.registry.holds.add("fetch")
    asking = asyncio.ensure_future(three.get(KEY, "alice"))
    await settle()
    question = three.registry.take("fetch")
    old = question.do()
    await settled(one.store.move(KEY, RECORD, MOVED))
    three.registry.holds.clear()
    await question.tell(old)
    assert await asking == MOVED
    assert three.asked == ["fetch", "fetch"]
    await three.aclose()


@pytest.mark.parametrize("change", ["end", "move"])
async def test_a_refresh_that_was_overtaken_says_nothing(one: Replica, two: Replica, change: str) -> None:
    """Its answer is from before the change; and the question that the news began fails."""
    two.registry.holds |= {"refresh", "fetch"}
    two.warm(KEY, "alice")
    await two.pass_(FRESH_S * 0.8)
    question = two.registry.take("refresh")
    old = question.do()
    assert old == RECORD
    if change == "end":
        await one.end(KEY)
    else:
        await settled(one.store.move(KEY, RECORD, MOVED))
    await settle()
    await question.tell(old)
    for held in list(two.registry.held):
        two.registry.held.remove(held)
        await held.fail()
    two.registry.holds.clear()
    two.registry.failing |= {"fetch", "refresh"}
    with pytest.raises(StoreError):
        await two.get(KEY, "alice")
    two.registry.failing.clear()
    assert await two.get(KEY, "alice") == (None if change == "end" else MOVED)


@pytest.mark.parametrize("change", ["end", "move"])
@pytest.mark.parametrize("is_known", [True, False], ids=["and it is known", "and it is not known"])
async def test_what_is_said_to_have_changed_does_not_serve(
    one: Replica, two: Replica, change: str, is_known: bool
) -> None:
    two.registry.failing |= {"fetch", "refresh"}
    if change == "end":
        await one.end(KEY)
    else:
        await settled(one.store.move(KEY, RECORD, MOVED))
    await settle()
    two.registry.is_down = is_known
    for _ in range(3):
        with pytest.raises(StoreError):
            await two.get(KEY, "alice")
        await two.pass_(FRESH_S)
    two.registry.failing.clear()
    two.registry.reset()
    assert await two.get(KEY, "alice") == (None if change == "end" else MOVED)


async def test_news_while_a_question_fails_count(one: Replica, two: Replica) -> None:
    two.shelf.at_s += FRESH_S
    two.registry.holds |= {"fetch", "refresh"}
    asking = asyncio.ensure_future(two.get(KEY, "alice"))
    await settle()
    await settled(one.store.move(KEY, RECORD, MOVED))
    await settle()
    while two.registry.held:
        await two.registry.held.pop(0).fail()
    with pytest.raises(StoreError):
        await asking


async def test_an_end_here_while_the_question_is_out_counts(two: Replica) -> None:
    two.shelf.at_s += FRESH_S
    two.registry.holds.add("fetch")
    asking = asyncio.ensure_future(two.get(KEY, "alice"))
    await settle()
    question = two.registry.take("fetch")
    old = question.do()
    two.registry.holds.clear()
    await two.end(KEY)
    await question.tell(old)
    assert await asking is None
    assert two.warm(KEY, "alice") is None


@pytest.mark.parametrize("change", ["end", "news", "pushed out"])
@pytest.mark.parametrize("turns", range(8))
async def test_a_session_that_goes_as_its_answer_comes_breaks_nothing(change: str, turns: int) -> None:
    """Whoever asked runs on a turn behind the answer."""
    one = Replica()
    three = Replica(one.shelf, limit=1)
    await one.create(KEY, RECORD)
    asking = asyncio.ensure_future(three.get(KEY, "alice"))
    await settle(turns)
    if change == "end":
        await three.end(KEY)
    elif change == "news":
        await one.end(KEY)
    else:
        await three.create(SessionKey(ROUTE, b"third"), RECORD)
    found = await asking
    assert found in ((RECORD,) if change == "pushed out" else (RECORD, None))
    await settle(20)
    assert await three.get(KEY, "alice") == (RECORD if change == "pushed out" else None)
    await one.aclose()
    await three.aclose()


async def test_an_end_here_while_a_question_fails_is_no_session_any_more(two: Replica) -> None:
    two.shelf.at_s += FRESH_S
    two.registry.holds.add("fetch")
    asking = asyncio.ensure_future(two.get(KEY, "alice"))
    await settle()
    await two.end(KEY)
    await two.registry.take("fetch").fail()
    outcome = (await asyncio.gather(asking, return_exceptions=True))[0]
    assert outcome is None or isinstance(outcome, StoreError)
    assert two.warm(KEY, "alice") is None


async def test_a_session_never_goes_back_to_where_it_was(one: Replica, two: Replica) -> None:
    """Two moves are known here, and the answers come in the wrong order."""
    two.registry.holds |= {"fetch", "refresh"}
    await settled(one.store.move(KEY, RECORD, MOVED))
    await settle()
    early = two.registry.held.pop(0)
    middle = early.do()
    await settled(one.store.move(KEY, MOVED, AGAIN))
    await settle()
    late = two.registry.held.pop(0)
    await late.let()
    assert two.warm(KEY, "alice") == AGAIN
    await early.tell(middle)
    assert two.warm(KEY, "alice") == AGAIN
    assert two.seen.known == [(KEY, AGAIN)]
