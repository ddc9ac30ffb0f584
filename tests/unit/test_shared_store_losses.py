"""What a registry has lost, or could not say while nobody listened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import ENDED, SessionKey, SessionRecord, settled
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


# --- loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["refresh", "get", "reread", "reset"])
async def test_what_the_registry_lost_is_written_again(one: Replica, how: str) -> None:
    one.warm(KEY, "alice")
    one.shelf.lose()
    if how == "refresh":
        await one.pass_(FRESH_S)
    elif how == "get":
        one.shelf.at_s += FRESH_S
        assert await one.get(KEY, "alice") == RECORD
    elif how == "reread":
        assert await settled(one.store.reread(KEY, "alice")) == RECORD
    else:
        one.registry.reset()
        await settle(20)
    assert one.shelf.read(KEY.name) == RECORD
    assert one.warm(KEY, "alice") == RECORD
    assert one.seen.over == []


async def test_a_session_in_use_outlives_an_outage_that_is_longer_than_its_time_to_live(one: Replica) -> None:
    """The registry let it expire, because it could not be told of its use."""
    one.registry.failing |= {"refresh", "fetch"}
    for _ in range(12):
        one.store.touch(KEY)
        await one.pass_(TTL_S / 5)
    assert one.shelf.read(KEY.name) is None
    one.registry.failing.clear()
    assert await one.get(KEY, "alice") == RECORD
    assert one.shelf.read(KEY.name) == RECORD
    assert one.seen.over == []


async def test_a_session_that_expired_is_not_brought_back(one: Replica, two: Replica) -> None:
    """Nobody has used it for so long, wherever it is known."""
    for replica in (one, two):
        replica.registry.failing |= {"refresh", "fetch"}
    one.shelf.at_s += TTL_S + FRESH_S
    for replica in (one, two):
        replica.registry.failing.clear()
        assert await replica.get(KEY, "alice") is None
    assert one.shelf.read(KEY.name) is None
    assert one.seen.over == two.seen.over == [(KEY, RECORD)]


async def test_whoever_only_looked_for_somebody_elses_session_does_not_bring_it_back(one: Replica) -> None:
    three = Replica(one.shelf)
    assert await three.get(KEY, FOREIGN) is None
    one.shelf.lose()
    one.shelf.at_s += FRESH_S
    assert await three.get(KEY, FOREIGN) is None
    three.registry.reset()
    await settle(20)
    assert one.shelf.read(KEY.name) is None
    await three.aclose()


async def test_a_session_that_was_lost_before_its_first_use_is_brought_back() -> None:
    one = Replica()
    await one.create(KEY, RECORD)
    one.shelf.lose()
    one.shelf.at_s += FRESH_S
    assert await one.get(KEY, "alice") == RECORD
    assert one.shelf.read(KEY.name) == RECORD
    await one.aclose()


async def test_a_session_that_was_ended_is_not_brought_back(one: Replica, two: Replica) -> None:
    two.registry.is_deaf = True
    await one.end(KEY)
    two.registry.reset()
    await settle()
    await two.pass_(FRESH_S)
    assert one.shelf.read(KEY.name) is ENDED
    assert await two.get(KEY, "alice") is None


async def test_of_two_replicas_one_brings_it_back_and_none_an_older_state(one: Replica, two: Replica) -> None:
    two.registry.is_deaf = True
    await settled(one.store.move(KEY, RECORD, MOVED))
    one.shelf.lose()
    two.registry.reset()  # knows the session as it was before it moved, and cannot know better
    await settle(20)
    assert await one.get(KEY, "alice") == MOVED
    one.registry.reset()
    await settle(20)
    assert await settled(one.store.reread(KEY, "alice")) == MOVED
    assert one.shelf.read(KEY.name) == MOVED, "the higher generation is right"
    two.registry.is_deaf = False
    assert await settled(two.store.reread(KEY, "alice")) == MOVED


async def test_a_move_that_the_registry_lost_is_written_again(one: Replica, two: Replica) -> None:
    await settled(one.store.move(KEY, RECORD, MOVED))
    await settle()
    one.shelf.write(KEY.name, RECORD)  # a failover to a replica that had not heard of it
    assert await one.get(KEY, "alice") == MOVED
    one.registry.reset()
    await settle(20)
    assert one.shelf.read(KEY.name) == MOVED
    assert one.warm(KEY, "alice") == MOVED
    await settle()
    assert await two.get(KEY, "alice") == MOVED


async def test_a_rescue_that_fails_costs_nothing(one: Replica) -> None:
    one.warm(KEY, "alice")
    one.shelf.lose()
    one.registry.failing.add("replace")
    one.shelf.at_s += FRESH_S
    assert await one.get(KEY, "alice") == RECORD
    one.registry.failing.clear()
    assert await one.get(KEY, "alice") == RECORD
    assert one.shelf.read(KEY.name) == RECORD


# --- a new connection -----------------------------------------------------------------------------


async def test_after_an_outage_all_that_is_in_use_is_asked_about(one: Replica, two: Replica) -> None:
    """The end was announced while nobody here listened."""
    other = SessionKey(ROUTE, b"idle")
    await one.create(other, RECORD)
    await two.get(KEY, "alice")
    two.registry.is_down = True
    await one.end(KEY)
    assert two.warm(KEY, "alice") == RECORD
    two.registry.reset()
    await settle()
    assert two.seen.over == [(KEY, RECORD)], "its streams end, though nobody asks"
    assert await two.get(KEY, "alice") is None


async def test_after_an_outage_nothing_is_believed_before_it_was_asked_about(two: Replica) -> None:
    two.registry.holds |= {"refresh", "fetch"}
    two.warm(KEY, "alice")
    two.registry.reset()
    asking = asyncio.ensure_future(two.get(KEY, "alice"))
    await settle()
    assert not asking.done()
    two.registry.holds.clear()
    while two.registry.held:
        await two.registry.held.pop(0).let()
    assert await asking == RECORD
    assert two.warm(KEY, "alice") == RECORD


async def test_what_was_changed_stays_so_over_a_reset_that_learns_nothing(one: Replica, two: Replica) -> None:
    two.registry.failing |= {"fetch", "refresh"}
    await settled(one.store.move(KEY, RECORD, MOVED))
    await settle()
    two.registry.reset()
    await settle()
    with pytest.raises(StoreError):
        await two.get(KEY, "alice")


async def test_a_claim_whose_answer_was_lost_can_be_given_back(one: Replica, two: Replica) -> None:
    """The registry carried it out; only its answer did not arrive."""
    one.registry.holds.add("claim")
    claiming = asyncio.ensure_future(settled(one.store.claim(KEY, 15.0)))
    await settle()
    held = one.registry.take("claim")
    held.do()
    await held.fail()
    with pytest.raises(StoreError):
        await claiming
    assert await settled(two.store.claim(KEY, 15.0)) is False
    one.store.disclaim(KEY)
    await settle()
    assert await settled(two.store.claim(KEY, 15.0)) is True


async def test_a_claim_whose_answer_was_lost_can_be_taken_again(one: Replica, two: Replica) -> None:
    one.registry.holds.add("claim")
    claiming = asyncio.ensure_future(settled(one.store.claim(KEY, 15.0)))
    await settle()
    held = one.registry.take("claim")
    held.do()
    await held.fail()
    with pytest.raises(StoreError):
        await claiming
    one.registry.holds.clear()
    assert await settled(two.store.claim(KEY, 15.0)) is False
    assert await settled(one.store.claim(KEY, 15.0)) is True
