"""The contract of every session store: what operators ask of it. Stores join in ``storerig.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from mcp_proxy.sessions import Listed, Page, SessionKey, SessionRecord
from tests.unit.storerig import KEY, MOVED, OTHER, OWNER, ROUTE, STORES, TTL_S, Rig, backup, memory, opened


@pytest.fixture(params=STORES)
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async with opened(request.param) as made:
        yield made


# --- pages ----------------------------------------------------------------------------------------


async def fill(rig: Rig, count: int) -> set[str]:
    """Names of new sessions."""
    keys = [SessionKey(ROUTE, b"many-%d" % number) for number in range(count)]
    for key in keys:
        assert await rig.create(key)
    return {key.name for key in keys}


async def test_without_sessions_there_is_one_empty_page(rig: Rig) -> None:
    assert await rig.page() == Page([], "")


@pytest.mark.parametrize("limit", [1, 7, 50, 1000])
async def test_the_pages_have_every_session(rig: Rig, limit: int) -> None:
    names = await fill(rig, 50)

    assert {listed.name for listed in await rig.pages(limit)} == names


async def test_a_page_says_what_is_known_of_a_session(rig: Rig) -> None:
    await rig.create()
    await rig.move(OWNER, MOVED)

    (listed,) = await rig.pages()

    assert (listed.name, listed.record) == (KEY.name, MOVED)
    assert listed.route in (ROUTE, "")
    assert listed.expires_s is None or 0 < listed.expires_s <= TTL_S


async def test_a_session_that_stays_is_seen_while_others_come_and_go(rig: Rig) -> None:
    staying = await fill(rig, 40)
    fleeting = [SessionKey(ROUTE, b"fleeting-%d" % number) for number in range(40)]
    for key in fleeting:
        await rig.create(key)
    page = await rig.page(limit=3)
    seen = {listed.name for listed in page.sessions}
    while page.cursor:
        if fleeting:
            await rig.delete(fleeting.pop())
        await rig.create(SessionKey(ROUTE, b"late-%d" % len(seen)))
        page = await rig.page(page.cursor, 3)
        seen |= {listed.name for listed in page.sessions}

    assert staying <= seen


@pytest.mark.parametrize("cursor", ["nonsense", "-1", "0 0", "\0", "é", "f" * 41, "F" * 40, "\n"])
async def test_a_cursor_that_was_not_issued_is_refused(rig: Rig, cursor: str) -> None:
    with pytest.raises(ValueError, match="cursor"):
        await rig.page(cursor)


async def test_what_is_over_is_on_no_page(rig: Rig) -> None:
    await rig.create()
    await rig.create(SessionKey(ROUTE, b"s2"))
    await rig.delete()
    await rig.wait(TTL_S + 1.0)

    assert await rig.pages() == []


# --- by name --------------------------------------------------------------------------------------


async def test_show_says_what_is_known_and_is_no_use(rig: Rig) -> None:
    await rig.create()
    await rig.wait(TTL_S - 1.0)

    listed = await rig.show()
    await rig.wait(2.0)

    assert listed is not None
    assert (listed.name, listed.record) == (KEY.name, OWNER)
    assert await rig.get() is None


async def test_show_of_the_unknown_is_nothing(rig: Rig) -> None:
    assert await rig.show() is None
    await rig.create()
    await rig.delete()
    assert await rig.show() is None


async def test_end_ends_the_session_that_it_names(rig: Rig) -> None:
    await rig.create()
    other = SessionKey(ROUTE, b"s2")
    await rig.create(other)

    assert await rig.end() is True

    assert await rig.get() is None
    assert await rig.get(other) == OWNER
    assert rig.seen.ended == [(KEY, OWNER)]
    assert await rig.end() is False


# --- backups --------------------------------------------------------------------------------------


async def test_a_restored_session_is_found_by_its_client(rig: Rig) -> None:
    assert await rig.restore(backup()) == 1

    assert await rig.get() == OWNER
    assert rig.seen.known == [(KEY, OWNER)]
    assert rig.store.count(ROUTE) == 1


async def test_a_restored_session_is_somebodys(rig: Rig) -> None:
    await rig.restore(backup())

    assert await rig.get(principal="someone else") is None
    assert rig.seen.known == []
    assert await rig.get() == OWNER


async def test_restored_sessions_are_listed_shown_and_ended_by_name(rig: Rig) -> None:
    await rig.restore(backup())

    assert [listed.name for listed in await rig.pages()] == [KEY.name]
    listed = await rig.show()
    assert listed is not None
    assert listed.record == OWNER
    assert await rig.end() is True
    assert await rig.get() is None
    assert await rig.pages() == []


async def test_a_restored_session_can_be_deleted_and_moved(rig: Rig) -> None:
    other = SessionKey(ROUTE, b"s2")
    await rig.restore(backup(), backup(other))

    await rig.delete(other)
    assert await rig.move(OWNER, MOVED) is True

    assert await rig.get(other) is None
    assert await rig.get() == MOVED


async def test_a_restored_session_is_not_created_again(rig: Rig) -> None:
    await rig.restore(backup())

    assert await rig.create(record=OTHER) is False
    assert await rig.get() == OWNER


async def test_a_restored_session_expires_when_its_time_is_up(rig: Rig) -> None:
    other = SessionKey(ROUTE, b"s2")
    await rig.restore(backup(), backup(other, expires_s=10.0))

    await rig.wait(11.0)

    assert await rig.get(other) is None
    assert await rig.show(other.name) is None
    assert await rig.get() == OWNER


async def test_a_restored_session_that_is_used_lives_on(rig: Rig) -> None:
    await rig.restore(backup(expires_s=10.0))
    assert await rig.get() == OWNER

    await rig.wait(TTL_S - 1.0)

    assert await rig.get() == OWNER


async def test_a_restore_never_outlives_the_ttl(rig: Rig) -> None:
    await rig.restore(backup(expires_s=1e9))

    await rig.wait(TTL_S + 1.0)

    assert await rig.get() is None


@pytest.mark.parametrize("record", [OWNER, OTHER, MOVED])
async def test_a_restore_never_overwrites(rig: Rig, record: SessionRecord) -> None:
    await rig.create()

    assert await rig.restore(backup(record=record)) == 0

    assert await rig.get() == OWNER
    assert rig.store.count(ROUTE) == 1
    assert len(await rig.pages()) == 1


async def test_a_restore_does_not_bring_back_what_was_ended(rig: Rig) -> None:
    by_name = SessionKey(ROUTE, b"s2")
    await rig.create()
    await rig.create(by_name)
    saved = await rig.pages()
    await rig.delete()
    await rig.end(by_name.name)

    assert await rig.restore(*saved) == 0

    assert await rig.get() is None
    assert await rig.get(by_name) is None


async def test_of_equal_names_in_a_backup_the_first_counts(rig: Rig) -> None:
    assert await rig.restore(backup(), backup(record=MOVED)) == 1
    assert await rig.restore(backup(record=OTHER)) == 0

    assert await rig.get() == OWNER


async def test_what_is_over_in_a_backup_is_not_restored(rig: Rig) -> None:
    assert await rig.restore(backup(expires_s=0.0)) == 0

    assert await rig.get() is None


async def test_a_backup_of_one_store_is_restored_by_another(rig: Rig) -> None:
    names = await fill(rig, 20)
    saved: Sequence[Listed] = await rig.pages()
    fresh = memory()

    assert await fresh.restore(*saved) == 20

    assert {listed.name for listed in await fresh.pages()} == names
    assert await fresh.get(SessionKey(ROUTE, b"many-7")) == OWNER
