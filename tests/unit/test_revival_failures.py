"""While a session is made anew something fails: a backend, the registry, another replica, the client."""

from __future__ import annotations

import pytest

from mcp_proxy.errors import Fault
from mcp_proxy.sessions import ENDED, SessionKey, SessionRecord
from tests.unit.fakes import settle, until
from tests.unit.gatehouse import JSON, SESSION, legacy
from tests.unit.registries import ROUTE, Shelf
from tests.unit.revivals import (
    TURNS,
    SharedHouse,
    fields,
    house_of,
    is_goodbye,
    is_initialize,
    revived,
)

# --- backends that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ending", ["refused", "lost", "timeout", "500", "400", "no session", "bad session", "error", "too long"]
)
async def test_the_next_backend_is_asked_when_one_cannot(ending: str) -> None:
    house = house_of()
    ours, owner = await house.begin()
    client = await house.ask_lost(ours, owner)
    first = await house.one()
    if ending in ("refused", "lost", "timeout"):
        first.fail(ending)
    elif ending in ("500", "400"):
        first.answer(int(ending), b"{}", (SESSION, b"throw-away"))
    elif ending == "no session":
        first.answer(200, b"{}")
    elif ending == "bad session":
        first.answer(200, b"{}", (SESSION, b"a b"))
    elif ending == "error":
        first.answer(200, b'{"jsonrpc":"2.0","id":7,"error":{"code":-1,"message":"no"}}')
    else:
        first.head(200, [JSON, (SESSION, b"u1")])
        first.body(b"x" * 200_000, b"x" * 200_000)
    await settle(TURNS)
    goodbyes = [attempt for attempt in house.attempts if attempt.outgoing.method == b"DELETE"]
    for attempt in goodbyes:
        assert (attempt.backend, ending) == (first.backend, "too long") or ending == "error"
        house.attempts.remove(attempt)
        attempt.answer(200, b"")
    second_backend = await revived(house, b"u3")
    assert second_backend not in (owner, first.backend)
    (await house.one()).answer(200, b"{}", (SESSION, b"u3"))
    assert (client.reply.status, client.reply.one(SESSION)) == (200, ours)
    assert house.stored(ours).backend == second_backend
    await settle(TURNS)
    house.assert_quiet()


@pytest.mark.parametrize("ending", ["refused", "lost", "500"])
async def test_what_two_backends_refuse_is_a_503_and_the_session_stays(ending: str) -> None:
    house = SharedHouse(5, reinitializes=True)
    ours, owner = await house.begin()
    client = await house.ask_lost(ours, owner)
    for _ in range(2):
        attempt = await house.one()
        assert is_initialize(attempt)
        if ending == "500":
            attempt.answer(500, b"{}")
        else:
            attempt.fail(ending)
    await settle(TURNS)
    assert house.attempts == []
    assert client.verdict == (503, "backend_unavailable")
    assert client.reply.one(b"retry-after") is not None
    assert ("reinitialized", "pool", "failed") in house.journal.events
    assert house.stored(ours).backend == owner
    assert house.shelf.claims == {}, "another may try at once"
    again = await house.ask_lost(ours, owner)
    await revived(house)
    (await house.one()).answer(200, b"{}")
    assert again.reply.status == 200
    await settle(TURNS)
    house.assert_quiet()


async def test_without_another_backend_it_is_a_503() -> None:
    house = SharedHouse(1, reinitializes=True)
    ours, owner = await house.begin()
    client = await house.ask_lost(ours, owner)
    assert client.verdict == (503, "backend_unavailable")
    assert house.attempts == []
    assert house.stored(ours).generation == 0
    house.assert_quiet()


@pytest.mark.parametrize("ending", ["500", "404", "lost", "refused"])
async def test_a_backend_session_that_could_not_be_begun_is_ended(ending: str) -> None:
    """It answered initialize, and failed at notifications/initialized."""
    house = house_of()
    ours, owner = await house.begin()
    client = await house.ask_lost(ours, owner)
    first = await house.one()
    first.answer(200, b"{}", (SESSION, b"u2"))
    second = await house.one()
    if ending in ("500", "404"):
        second.answer(int(ending), b"{}")
    else:
        second.fail(ending)
    await settle(TURNS)
    goodbye = next(attempt for attempt in house.attempts if attempt.outgoing.method == b"DELETE")
    assert goodbye.backend == first.backend
    assert is_goodbye(goodbye, b"u2")
    house.attempts.remove(goodbye)
    goodbye.answer(200, b"")
    assert await revived(house, b"u3") != first.backend
    (await house.one()).answer(200, b"{}")
    assert client.reply.status == 200
    await settle(TURNS)
    house.assert_quiet()


# --- the registry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["claim", "fetch", "replace"])
async def test_a_registry_that_fails_in_the_middle_is_a_503(operation: str) -> None:
    house = house_of()
    ours, owner = await house.begin()
    house.registry.failing.add(operation)
    client = await house.ask_lost(ours, owner)
    if operation == "replace":
        where = await revived(house)
        goodbye = await house.one()
        assert goodbye.backend == where
        assert is_goodbye(goodbye, b"u2"), "nobody will use it"
        goodbye.answer(200, b"")
    await settle(TURNS)
    assert house.attempts == []
    assert client.verdict == (503, "store_unavailable")
    assert any(event[0] == "store_error" for event in house.journal.events)
    house.registry.failing.clear()
    assert house.stored(ours).generation == 0
    await settle(TURNS)
    house.assert_quiet()


async def test_whoever_was_quicker_wins_and_the_other_backend_session_is_ended() -> None:
    """Its claim had run out while it was at work."""
    house = house_of()
    ours, owner = await house.begin()
    house.registry.is_deaf = True
    other = next(backend.id for backend in house.backends if backend.id != owner)
    client = await house.ask_lost(ours, owner)
    old = house.stored(ours)
    moved = SessionRecord(other, "", b"u9", 1, old.initialize, old.created_s)
    first = await house.one()
    first.answer(200, b"{}", (SESSION, b"u2"))
    second = await house.one()
    house.shelf.write(SessionKey(ROUTE, ours).name, moved)
    second.answer(202, b"")
    await settle(TURNS)
    goodbye = next(attempt for attempt in house.attempts if attempt.outgoing.method == b"DELETE")
    assert goodbye.backend == first.backend
    assert is_goodbye(goodbye, b"u2")
    goodbye.answer(200, b"")
    (attempt,) = [attempt for attempt in house.attempts if attempt is not goodbye]
    assert (attempt.backend, fields(attempt)[SESSION]) == (other, b"u9")
    attempt.answer(200, b"{}", (SESSION, b"u9"))
    assert (client.reply.status, client.reply.one(SESSION)) == (200, ours)
    await settle(TURNS)
    house.assert_quiet()


async def test_a_session_that_ends_while_it_is_made_anew_is_over() -> None:
    house = house_of()
    ours, owner = await house.begin()
    client = await house.ask_lost(ours, owner)
    first = await house.one()
    first.answer(200, b"{}", (SESSION, b"u2"))
    house.shelf.write(SessionKey(ROUTE, ours).name, ENDED)
    house.shelf.announce(SessionKey(ROUTE, ours).name)
    (await house.one()).answer(202, b"")
    await settle(TURNS)
    goodbye = house.take()
    assert (goodbye.backend, is_goodbye(goodbye, b"u2")) == (first.backend, True)
    goodbye.answer(200, b"")
    await settle(TURNS)
    assert client.verdict == (404, "session_not_found")
    house.assert_quiet()


async def test_two_replicas_make_a_session_anew_once() -> None:
    shelf = Shelf(ttl_s=1000.0)
    one, two = house_of(shelf=shelf), house_of(shelf=shelf)
    ours, owner = await one.begin()
    first, second = await one.ask_lost(ours, owner), await two.ask_lost(ours, owner)
    await settle(TURNS)
    assert two.attempts == [], "the other has the claim"
    assert second.reply.outcome == ""
    where = await revived(one)
    (await one.one()).answer(200, b"{}", (SESSION, b"u2"))
    assert first.reply.status == 200
    await until(lambda: two.attempts, 0.01)
    attempt = two.take()
    assert (attempt.backend, attempt.outgoing.body) == (where, legacy("tools/call"))
    assert fields(attempt)[SESSION] == b"u2"
    attempt.answer(200, b"{}", (SESSION, b"u2"))
    assert (second.reply.status, second.reply.one(SESSION)) == (200, ours)
    for house in (one, two):
        await settle(TURNS)
        house.assert_quiet()


async def test_a_replica_that_dies_with_the_claim_is_replaced() -> None:
    shelf = Shelf(ttl_s=1000.0)
    one, two = house_of(shelf=shelf), house_of(shelf=shelf)
    ours, owner = await one.begin()
    await one.ask_lost(ours, owner)
    assert is_initialize(await one.one())
    client = await two.ask_lost(ours, owner)
    shelf.at_s += 60.0
    await until(lambda: two.attempts, 0.01)
    await revived(two, b"u3")
    (await two.one()).answer(200, b"{}", (SESSION, b"u3"))
    assert (client.reply.status, client.reply.one(SESSION)) == (200, ours)
    await one.gateway.aclose()


# --- clients that leave, and the end --------------------------------------------------------------


async def test_a_client_that_leaves_does_not_stop_it() -> None:
    house = house_of()
    ours, owner = await house.begin()
    client = await house.ask_lost(ours, owner)
    client.leave()
    assert house.record.ended_by is Fault.CLIENT
    where = await revived(house)
    await settle(TURNS)
    assert house.attempts == [], "nobody waits for an answer"
    assert house.stored(ours).backend == where
    await settle(TURNS)
    house.assert_quiet()


async def test_of_two_that_wait_one_may_leave() -> None:
    house = house_of()
    ours, owner = await house.begin()
    first = await house.ask_lost(ours, owner)
    second = house.call(ours)
    house.attempts.pop().fail("refused")
    first.leave()
    await revived(house)
    (await house.one()).answer(200, b"{}")
    assert second.reply.status == 200
    await settle(TURNS)
    house.assert_quiet()


async def test_a_drain_ends_those_who_wait() -> None:
    house = house_of()
    ours, owner = await house.begin()
    client = await house.ask_lost(ours, owner)
    await house.one()
    await house.gateway.aclose()
    assert client.verdict == (503, "draining")
    assert not house.gateway.live
    assert len(house.tasks) == 0
    assert [record.status for record in house.journal.records] == [503]
