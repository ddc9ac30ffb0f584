"""What a replica knows of shared sessions, when it asks, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import SessionKey, SessionRecord, settled
from mcp_proxy.sessions.known import AHEAD
from tests.unit.fakes import settle
from tests.unit.registries import FOREIGN, FRESH_S, ROUTE, TTL_S, Replica

KEY = SessionKey(ROUTE, b"s1")
RECORD = SessionRecord("one", "alice")
MOVED = SessionRecord("two", "alice", upstream_id=b"u2", generation=1)


@pytest.fixture
async def one() -> AsyncIterator[Replica]:
    replica = Replica()
    yield replica
    await replica.aclose()


@pytest.fixture
async def two(one: Replica) -> AsyncIterator[Replica]:
    """Another replica that shares the registry of ``one``."""
    replica = Replica(one.shelf)
    yield replica
    await replica.aclose()


@pytest.fixture
async def made(one: Replica) -> Replica:
    """The same replica, which has just created the session."""
    assert await one.create(KEY, RECORD) is True
    assert one.asked == ["create"]
    return one


# --- how often it asks ----------------------------------------------------------------------------


async def test_a_warm_lookup_asks_nobody(made: Replica) -> None:
    for _ in range(100):
        assert made.warm(KEY, "alice") == RECORD
    assert made.asked == []


async def test_a_cold_lookup_asks_once(made: Replica, two: Replica) -> None:
    assert await two.get(KEY, "alice") == RECORD
    assert two.asked == ["fetch"]
    assert two.warm(KEY, "alice") == RECORD
    assert two.asked == []


async def test_whoever_asks_meanwhile_waits_for_the_same_answer(made: Replica, two: Replica) -> None:
    two.registry.holds.add("fetch")
    asking = [asyncio.ensure_future(two.get(KEY, "alice")) for _ in range(50)]
    await settle()
    assert two.asked == ["fetch"]
    await two.registry.take("fetch").let()
    assert await asyncio.gather(*asking) == [RECORD] * 50
    assert two.asked == []


async def test_a_question_goes_on_when_those_who_asked_leave(made: Replica, two: Replica) -> None:
    two.registry.holds.add("fetch")
    first, second = (asyncio.ensure_future(two.get(KEY, "alice")) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    assert not second.done()
    second.cancel()
    await settle()
    await two.registry.take("fetch").let()
    assert two.warm(KEY, "alice") == RECORD


async def test_a_failure_is_told_to_everybody_who_waits_and_to_nobody_later(two: Replica) -> None:
    two.registry.holds.add("fetch")
    asking = [asyncio.ensure_future(two.get(KEY)) for _ in range(3)]
    await settle()
    await two.registry.take("fetch").fail()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreError] * 3
    assert len({id(outcome) for outcome in outcomes}) == 3, "an exception is raised once"
    two.registry.holds.clear()
    assert await two.get(KEY) is None


async def test_that_there_is_none_is_never_remembered(one: Replica, two: Replica) -> None:
    for _ in range(3):
        assert await two.get(KEY, "alice") is None
    assert two.asked == ["fetch"] * 3
    await one.create(KEY, RECORD)
    assert await two.get(KEY, "alice") == RECORD


async def test_what_is_not_fresh_any_more_is_asked_about(made: Replica) -> None:
    made.shelf.at_s += FRESH_S - 0.001
    assert made.warm(KEY, "alice") == RECORD
    made.shelf.at_s += 0.001
    assert await made.get(KEY, "alice") == RECORD
    assert made.asked == ["fetch"]
    assert made.warm(KEY, "alice") == RECORD


async def test_a_session_in_use_is_asked_about_before_anybody_has_to_wait(made: Replica) -> None:
    for _ in range(30):
        assert made.warm(KEY, "alice") == RECORD
        await made.pass_(FRESH_S / 3, step_s=0.5)
    asked = made.asked
    assert set(asked) == {"refresh"}
    assert len(asked) <= 10 / AHEAD + 1


async def test_a_session_that_nobody_uses_is_not_asked_about(made: Replica) -> None:
    await made.pass_(TTL_S / 2)
    assert made.asked == []


async def test_a_session_is_not_kept_alive_by_being_known(made: Replica) -> None:
    made.warm(KEY, "alice")
    await made.pass_(TTL_S + FRESH_S)
    assert made.asked == ["refresh"]
    assert made.shelf.read(KEY.name) is None
    assert made.store.count(ROUTE) == 0
    assert (made.seen.known, made.seen.dropped, made.seen.over) == ([], [(KEY, RECORD)], [])


async def test_a_touched_session_does_not_expire_at_the_registry(made: Replica) -> None:
    """A stream is open on it, for hours, and there is no other request."""
    for _ in range(12):
        made.store.touch(KEY)
        await made.pass_(TTL_S / 4)
        assert made.shelf.read(KEY.name) == RECORD
    assert made.seen.known == [(KEY, RECORD)]
    assert len(made.asked) <= 13, "an operation per touch is enough"


async def test_a_refresh_that_failed_is_tried_again(made: Replica) -> None:
    made.registry.failing.add("refresh")
    made.store.touch(KEY)
    await made.pass_(TTL_S / 2)
    made.registry.failing.clear()
    await made.pass_(FRESH_S * 2)
    assert made.shelf.left_s(KEY.name) > TTL_S / 2 + FRESH_S


@pytest.mark.parametrize("pause_s", [0.99, 0.9, 0.75, 0.5])
async def test_use_now_and_then_keeps_a_session_wherever_it_comes(
    made: Replica, two: Replica, pause_s: float
) -> None:
    """``TTL_S`` is what a replica promises and ``FRESH_S`` of slack; see the composition root."""
    promised_s = TTL_S - FRESH_S
    made.warm(KEY, "alice")
    for number in range(8):
        for replica in (made, two):
            replica.store.sweep(made.shelf.at_s)
        used = (made, two)[number % 2]
        assert await used.get(KEY, "alice") == RECORD
        until_s = made.shelf.at_s + promised_s * pause_s
        while made.shelf.at_s < until_s:
            made.shelf.at_s += 0.5
            for replica in (made, two):
                replica.store.sweep(made.shelf.at_s)
            await settle()


async def test_a_late_use_within_freshness_counts(made: Replica) -> None:
    """The session is used behind the moment at which it would have been asked about."""
    promised_s = TTL_S - FRESH_S
    await made.pass_(FRESH_S * AHEAD + 1.0)
    assert made.warm(KEY, "alice") == RECORD
    await made.pass_(promised_s - 0.5)
    assert await made.get(KEY, "alice") == RECORD
    await made.pass_(FRESH_S)
    assert await made.get(KEY, "alice") == RECORD


# --- whose it is ----------------------------------------------------------------------------------


async def test_for_everybody_else_there_is_no_such_session(made: Replica, two: Replica) -> None:
    for principal in (FOREIGN, "", "alice "):
        assert await made.get(KEY, principal) is None
        assert await two.get(KEY, principal) is None
        assert await settled(two.store.reread(KEY, principal)) is None
    assert made.warm(KEY, "alice") == RECORD
    assert await two.get(KEY, "alice") == RECORD


async def test_somebody_else_changes_nothing(made: Replica, two: Replica) -> None:
    left_s = made.shelf.left_s(KEY.name)
    for _ in range(20):
        for replica in (made, two):
            assert await replica.get(KEY, FOREIGN) is None
            assert await settled(replica.store.reread(KEY, FOREIGN)) is None
        for replica in (made, two):
            replica.store.sweep(made.shelf.at_s)
        made.shelf.at_s += FRESH_S / 4
        await settle()
    assert made.shelf.left_s(KEY.name) == left_s - FRESH_S * 5
    assert "refresh" not in made.asked + two.asked


async def test_an_id_that_is_issued_to_somebody_else_leaves_nothing_of_the_former(made: Replica) -> None:
    """The registry lost the first session, its backend was restarted and counts from the beginning."""
    made.shelf.lose()
    other = SessionRecord("one", "bob")
    assert await made.create(KEY, other) is True
    assert await made.get(KEY, "alice") is None
    assert made.warm(KEY, "bob") == other
    assert made.seen.known == [(KEY, other)]
    assert made.seen.over == [(KEY, RECORD)]
