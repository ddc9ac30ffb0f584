"""How shared sessions end and move, what is pushed out, and what operators see and do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import ENDED, Listed, SessionKey, SessionRecord, settled
from tests.unit.fakes import settle
from tests.unit.registries import FRESH_S, ROUTE, TTL_S, Replica, Shelf

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


# --- ends -----------------------------------------------------------------------------------------


async def test_what_was_ended_here_is_over_at_once(made: Replica) -> None:
    made.registry.holds.add("end")
    deletion = asyncio.ensure_future(made.end(KEY))
    await settle()
    assert made.warm(KEY, "alice") is None
    assert made.store.reread(KEY, "alice") is None
    assert made.seen.over == [(KEY, RECORD)]
    await made.registry.take("end").let()
    await deletion
    assert made.shelf.read(KEY.name) is ENDED
    assert made.asked == ["end"]


async def test_what_was_ended_elsewhere_is_over_as_soon_as_it_is_heard(made: Replica, two: Replica) -> None:
    await two.get(KEY, "alice")
    await made.end(KEY)
    await settle()
    assert two.seen.over == [(KEY, RECORD)], "its streams end, though nobody asks"
    assert two.warm(KEY, "alice") is None
    assert two.store.count(ROUTE) == 0


async def test_an_end_that_was_not_heard_of_is_found_when_it_is_asked_about(
    made: Replica, two: Replica
) -> None:
    await two.get(KEY, "alice")
    two.registry.is_deaf = True
    await made.end(KEY)
    assert two.warm(KEY, "alice") == RECORD, "for so long as its word holds"
    two.shelf.at_s += FRESH_S
    assert await two.get(KEY, "alice") is None
    assert two.warm(KEY, "alice") is None, "an end is remembered"


async def test_a_delete_that_the_registry_misses_is_told_until_it_is_heard(
    made: Replica, two: Replica
) -> None:
    await two.get(KEY, "alice")
    made.registry.is_down = True
    with pytest.raises(StoreError):
        await made.end(KEY)
    assert made.warm(KEY, "alice") is None, "not even while nobody can be asked"
    await made.pass_(5.0)
    assert made.asked == ["end"], "it is known to be away"
    made.registry.failing.add("end")
    made.registry.is_down = False
    await made.pass_(3.0)
    tries = made.asked
    assert set(tries) == {"end"}
    assert 2 <= len(tries) <= 4, "about one in a second"
    made.registry.failing.clear()
    await made.pass_(2.0)
    assert made.shelf.read(KEY.name) is ENDED
    assert two.seen.over == [(KEY, RECORD)]
    made.registry.asked.clear()
    await made.pass_(5.0)
    assert made.asked == [], "told is told"


async def test_an_end_that_was_not_told_does_not_end_a_later_session_of_that_id(made: Replica) -> None:
    made.registry.failing.add("end")
    with pytest.raises(StoreError):
        await made.end(KEY)
    made.shelf.lose()
    made.registry.failing.clear()
    assert await made.create(KEY, RECORD) is True
    await made.pass_(5.0)
    assert made.warm(KEY, "alice") == RECORD
    assert made.shelf.read(KEY.name) == RECORD


async def test_a_session_may_be_created_where_one_was_ended(made: Replica) -> None:
    await made.end(KEY)
    assert await made.create(KEY, RECORD) is True
    await settle()
    assert made.warm(KEY, "alice") == RECORD


async def test_a_session_may_be_created_elsewhere_where_one_was_ended_here(
    made: Replica, two: Replica
) -> None:
    await made.end(KEY)
    assert await made.get(KEY, "alice") is None
    assert await two.create(KEY, RECORD) is True
    await settle()
    assert await made.get(KEY, "alice") == RECORD


# --- moves and claims -----------------------------------------------------------------------------


async def test_a_move_is_known_everywhere_and_ends_what_was_open(made: Replica, two: Replica) -> None:
    await two.get(KEY, "alice")
    assert await settled(made.store.move(KEY, RECORD, MOVED)) is True
    await settle()
    for replica in (made, two):
        assert replica.warm(KEY, "alice") == MOVED
        assert (replica.seen.known, replica.seen.over) == ([(KEY, MOVED)], [(KEY, RECORD)])


async def test_of_two_moves_one_happens(made: Replica, two: Replica) -> None:
    await two.get(KEY, "alice")
    theirs = SessionRecord("three", "alice", upstream_id=b"u3", generation=1)
    won = await asyncio.gather(
        settled(made.store.move(KEY, RECORD, MOVED)), settled(two.store.move(KEY, RECORD, theirs))
    )
    assert sorted(won) == [False, True]
    await settle()
    winner = (MOVED, theirs)[won.index(True)]
    for replica in (made, two):
        assert await replica.get(KEY, "alice") == winner


async def test_what_ended_is_not_moved(made: Replica, two: Replica) -> None:
    two.registry.is_deaf = True
    await two.get(KEY, "alice")
    await made.end(KEY)
    assert await settled(two.store.move(KEY, RECORD, MOVED)) is False
    assert await two.get(KEY, "alice") is None


async def test_what_is_ended_here_while_it_moves_stays_ended(made: Replica) -> None:
    """The move was carried out first, its answer comes last."""
    made.registry.holds.add("replace")
    moving = asyncio.ensure_future(settled(made.store.move(KEY, RECORD, MOVED)))
    await settle()
    held = made.registry.take("replace")
    answer = held.do()
    await made.end(KEY)
    await settle(20)
    await held.tell(answer)
    assert await moving is False, "whoever moves it must end what it began"
    assert made.warm(KEY, "alice") is None
    assert made.seen.known == []
    assert made.shelf.read(KEY.name) is ENDED


async def test_a_claim_is_held_by_one_replica(made: Replica, two: Replica) -> None:
    assert await settled(made.store.claim(KEY, 15.0)) is True
    assert await settled(two.store.claim(KEY, 15.0)) is False
    two.store.disclaim(KEY)
    await settle()
    assert await settled(two.store.claim(KEY, 15.0)) is False, "it was not its own"
    made.store.disclaim(KEY)
    await settle()
    assert await settled(two.store.claim(KEY, 15.0)) is True
    made.shelf.at_s += 15.0
    assert await settled(made.store.claim(KEY, 15.0)) is True, "whoever died with it does not keep it"


async def test_a_late_disclaim_does_not_take_the_claim_of_another(made: Replica, two: Replica) -> None:
    await settled(made.store.claim(KEY, 15.0))
    made.shelf.at_s += 15.0
    assert await settled(two.store.claim(KEY, 15.0)) is True
    made.store.disclaim(KEY)
    await settle()
    assert await settled(made.store.claim(KEY, 15.0)) is False


# --- the bound ------------------------------------------------------------------------------------


def keys(count: int) -> list[SessionKey]:
    return [SessionKey(ROUTE, b"k%d" % number) for number in range(count)]


async def test_the_least_recently_used_is_pushed_out_and_comes_back_for_one_operation() -> None:
    one = Replica(limit=3)
    first, second, *others = keys(4)
    for key in (first, second, others[0]):
        await one.create(key, RECORD)
    one.warm(first, "alice")
    await one.create(others[1], RECORD)
    assert one.store.count(ROUTE) == 3
    assert one.seen.dropped == [(second, RECORD)]
    assert one.seen.over == []
    one.registry.asked.clear()
    assert one.warm(first, "alice") == RECORD
    assert await one.get(second, "alice") == RECORD
    assert one.asked == ["fetch"]
    await one.aclose()


async def test_a_session_in_use_that_was_pushed_out_does_not_expire() -> None:
    one = Replica(limit=3)
    busy, *others = keys(4)
    for key in (busy, *others):
        await one.create(key, RECORD)
    for _ in range(8):
        one.store.touch(busy)
        one.store.touch(busy)
        await one.pass_(TTL_S / 4)
    assert isinstance(one.shelf.read(busy.name), SessionRecord)
    assert [name for operation, name in one.registry.asked if operation == "refresh"].count(busy.name) == 8
    await one.aclose()


async def test_touching_what_is_over_or_unknown_is_nothing(made: Replica) -> None:
    await made.end(KEY)
    made.store.touch(KEY)
    made.registry.asked.clear()
    await made.pass_(3.0)
    assert made.asked == []
    made.store.touch(SessionKey(ROUTE, b"unknown"))
    await made.pass_(3.0)
    assert made.shelf.read(SessionKey(ROUTE, b"unknown").name) is None


# --- operators ------------------------------------------------------------------------------------


async def test_operators_see_what_the_registry_has_and_the_route_where_it_is_known(
    made: Replica, two: Replica
) -> None:
    page = await settled(made.store.page("", 10))
    assert [(listed.name, listed.record) for listed in page.sessions] == [(KEY.name, RECORD)]
    here, there = [await settled(replica.store.show(KEY.name)) for replica in (made, two)]
    assert here == Listed(KEY.name, ROUTE, RECORD, TTL_S)
    assert there == Listed(KEY.name, "", RECORD, TTL_S)
    assert await settled(made.store.show("0" * 40)) is None


@pytest.mark.parametrize("who", ["made", "two"])
async def test_an_operator_ends_a_session_by_name_from_anywhere(
    made: Replica, two: Replica, who: str
) -> None:
    acting = {"made": made, "two": two}[who]
    assert await settled(acting.store.end(KEY.name)) is True
    await settle()
    assert made.shelf.read(KEY.name) is ENDED
    assert made.seen.over == [(KEY, RECORD)]
    assert made.warm(KEY, "alice") is None
    assert await two.get(KEY, "alice") is None
    assert await settled(acting.store.end(KEY.name)) is False
    assert await settled(acting.store.end("0" * 40)) is False


async def test_a_backup_comes_back_but_not_what_was_ended(made: Replica, two: Replica) -> None:
    other = SessionKey(ROUTE, b"s2")
    await made.create(other, RECORD)
    page = await settled(made.store.page("", 10))
    await made.end(other)
    made.shelf.lose(KEY.name)
    assert await settled(two.store.restore(page.sessions)) == 1
    assert await two.get(KEY, "alice") == RECORD
    assert await two.get(other, "alice") is None


# --- begin and end --------------------------------------------------------------------------------


async def test_starting_twice_is_starting_and_health_is_that_of_the_registry(one: Replica) -> None:
    one.store.start()
    assert one.registry.starts == 1
    assert one.store.health() == (True, "up")
    one.registry.is_down = True
    assert one.store.health() == (False, "down")


@pytest.mark.parametrize("first", ["tasks", "store"])
async def test_a_question_that_is_out_when_it_closes_is_never_answered_with_no_such_session(
    one: Replica, two: Replica, first: str
) -> None:
    await one.create(KEY, RECORD)
    two.registry.holds.add("fetch")
    asking = asyncio.ensure_future(two.get(KEY, "alice"))
    await settle()
    closing: list[Callable[[], object]] = [two.tasks.aclose, two.store.aclose]
    for close in closing if first == "tasks" else closing[::-1]:
        await close()  # type: ignore[misc]
    with pytest.raises(StoreError):
        await asking
    await two.store.aclose()


async def test_a_registry_that_fails_in_an_unforeseen_way_has_not_said_that_there_is_no_session(
    made: Replica, two: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    two.registry.holds.add("fetch")
    asking = asyncio.ensure_future(two.get(KEY, "alice"))
    await settle()
    await two.registry.take("fetch").fail(RuntimeError("a bug"))
    with pytest.raises(StoreError):
        await asking
    assert "a bug" in caplog.text
    two.registry.holds.clear()
    assert await two.get(KEY, "alice") == RECORD


async def test_two_shelves_are_two_worlds(made: Replica) -> None:
    other = Replica(Shelf())
    assert await other.get(KEY, "alice") is None
    await other.aclose()
