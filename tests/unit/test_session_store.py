"""The contract of every session store: what requests ask of it. Stores join in ``storerig.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from mcp_proxy.sessions import SessionKey, settled
from tests.unit.sharedrigs import SHARED, opened_shared
from tests.unit.storerig import KEY, MOVED, OTHER, OWNER, ROUTE, STORES, TTL_S, Rig, memory, opened


@pytest.fixture(params=[*STORES, *SHARED])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    is_shared = request.param in SHARED
    async with opened_shared(request) if is_shared else opened(request.param) as made:
        yield made


# --- created, found, deleted ----------------------------------------------------------------------


async def test_what_was_never_created_is_unknown(rig: Rig) -> None:
    assert await rig.get() is None
    assert await settled(rig.store.reread(KEY, OWNER.principal)) is None
    assert rig.store.count(ROUTE) == 0


async def test_what_was_created_is_found(rig: Rig) -> None:
    assert await rig.create() is True

    assert await rig.get() == OWNER
    assert await settled(rig.store.reread(KEY, OWNER.principal)) == OWNER
    assert await rig.get() == OWNER
    assert rig.store.count(ROUTE) == 1
    assert rig.seen.known == [(KEY, OWNER)]


async def test_what_was_issued_can_be_created_and_found(rig: Rig) -> None:
    key, record = rig.store.issue(KEY, OWNER)
    assert key.route == KEY.route
    assert (record.backend, record.principal) == (OWNER.backend, OWNER.principal)
    assert record.upstream_id or key.session_id == KEY.session_id, "the backend's own id is not lost"

    assert await rig.create(key, record) is True

    assert await rig.get(key) == record


async def test_an_existing_session_is_never_overwritten(rig: Rig) -> None:
    await rig.create()

    assert await rig.create(record=OTHER) is False
    assert await rig.create() is False

    assert await rig.get() == OWNER
    assert rig.store.count(ROUTE) == 1
    assert rig.seen.forgotten == []


async def test_equal_ids_of_two_routes_are_two_sessions(rig: Rig) -> None:
    twin = SessionKey("/other", KEY.session_id)
    await rig.create()
    assert await rig.create(twin, OTHER) is True

    await rig.delete()

    assert await rig.get() is None
    assert await rig.get(twin, OTHER.principal) == OTHER
    assert (rig.store.count(ROUTE), rig.store.count("/other")) == (0, 1)


@pytest.mark.parametrize("session_id", [b"!", b"~" * 512, b"{a}*:?[x]", b"%s\\n", b"/main:s1"])
async def test_every_legal_id_is_a_key_of_its_own(rig: Rig, session_id: bytes) -> None:
    key = SessionKey(ROUTE, session_id)
    await rig.create()

    assert await rig.create(key, OTHER) is True

    assert await rig.get(key, OTHER.principal) == OTHER
    assert await rig.get() == OWNER


async def test_deleting_forgets_and_may_be_done_twice(rig: Rig) -> None:
    await rig.create()

    await rig.delete()
    await rig.delete()

    assert await rig.get() is None
    assert rig.store.count(ROUTE) == 0
    assert rig.seen.forgotten == rig.seen.ended == [(KEY, OWNER)]


async def test_a_deleted_session_may_be_created_again(rig: Rig) -> None:
    await rig.create()
    await rig.delete()

    assert await rig.create(record=OTHER) is True

    assert await rig.get(principal=OTHER.principal) == OTHER
    assert rig.store.count(ROUTE) == 1


async def test_deleting_the_unknown_is_fine(rig: Rig) -> None:
    await rig.delete()

    assert rig.seen.forgotten == []
    assert rig.store.count(ROUTE) == 0


# --- whose it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize("principal", ["", "someone else", "someon", "someone "])
async def test_for_everybody_else_there_is_no_such_session(rig: Rig, principal: str) -> None:
    await rig.create()

    assert await rig.get(principal=principal) is None
    assert await settled(rig.store.reread(KEY, principal)) is None

    assert await rig.get() == OWNER
    assert rig.seen.known == [(KEY, OWNER)]


async def test_somebody_else_does_not_keep_a_session_alive(rig: Rig) -> None:
    await rig.create()
    await rig.wait(TTL_S - 1.0)
    assert await rig.get(principal="someone else") is None

    await rig.wait(2.0)

    assert await rig.get() is None
    assert rig.seen.forgotten == [(KEY, OWNER)]


# --- time -----------------------------------------------------------------------------------------


async def test_a_session_lives_as_long_as_its_ttl(rig: Rig) -> None:
    await rig.create()

    await rig.wait(TTL_S - 1.0)
    assert rig.store.count(ROUTE) == 1

    await rig.wait(2.0)
    assert await rig.get() is None
    assert rig.store.count(ROUTE) == 0
    assert rig.seen.forgotten == [(KEY, OWNER)]
    assert rig.seen.ended == [], "it expired, nobody ended it"


async def test_use_begins_the_ttl_anew(rig: Rig) -> None:
    await rig.create()
    for _ in range(3):
        await rig.wait(TTL_S - 1.0)
        assert await rig.get() == OWNER


async def test_a_touch_begins_the_ttl_anew(rig: Rig) -> None:
    await rig.create()
    for _ in range(12):
        await rig.wait(TTL_S / 4)
        rig.store.touch(KEY)

    assert await rig.get() == OWNER
    assert rig.seen.forgotten == []


async def test_a_touched_session_does_not_keep_others(rig: Rig) -> None:
    other = SessionKey(ROUTE, b"s2")
    await rig.create()
    await rig.create(other)
    for _ in range(5):
        await rig.wait(TTL_S / 4)
        rig.store.touch(KEY)

    assert [key for key, _ in rig.seen.forgotten] == [other]


async def test_touching_the_unknown_is_fine(rig: Rig) -> None:
    rig.store.touch(KEY)

    assert await rig.get() is None
    assert rig.store.count(ROUTE) == 0


# --- moves ----------------------------------------------------------------------------------------


async def test_a_move_replaces_the_record(rig: Rig) -> None:
    await rig.create()

    assert await rig.move(OWNER, MOVED) is True

    assert await rig.get() == MOVED
    assert rig.store.count(ROUTE) == 1
    assert rig.seen.ended == [(KEY, OWNER)]
    assert rig.seen.known == [(KEY, MOVED)]


async def test_only_one_of_two_moves_happens(rig: Rig) -> None:
    await rig.create()
    late = msgspec.structs.replace(MOVED, backend="http://c:80/mcp")

    assert await rig.move(OWNER, MOVED) is True
    assert await rig.move(OWNER, late) is False

    assert await rig.get() == MOVED


async def test_what_ended_is_not_moved(rig: Rig) -> None:
    await rig.create()
    await rig.delete()

    assert await rig.move(OWNER, MOVED) is False

    assert await rig.get() is None
    assert rig.seen.known == []


async def test_whoever_may_claim_a_session_may_give_it_back_and_claim_it_again(rig: Rig) -> None:
    await rig.create()

    assert await settled(rig.store.claim(KEY, 10.0)) is True
    rig.store.disclaim(KEY)
    rig.store.disclaim(KEY)
    assert await settled(rig.store.claim(KEY, 10.0)) is True


# --- the rest -------------------------------------------------------------------------------------


async def test_a_store_that_works_is_healthy_and_says_so_without_addresses(rig: Rig) -> None:
    is_healthy, sentence = rig.store.health()

    assert is_healthy
    assert sentence
    assert "://" not in sentence


async def test_closing_is_not_forgetting_and_may_be_done_twice(rig: Rig) -> None:
    await rig.create()

    await rig.store.aclose()
    await rig.store.aclose()
    rig.store.touch(KEY)

    assert rig.store.count(ROUTE) == 0
    assert rig.seen.forgotten == []


def test_each_store_has_a_name_for_the_metrics() -> None:
    assert memory().store.name == "memory"
