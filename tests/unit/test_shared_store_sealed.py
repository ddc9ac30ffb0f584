"""Session ids that speak for themselves, with and without a registry beside them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mcp_proxy.errors import StoreError
from mcp_proxy.headers import is_session_id
from mcp_proxy.sessions import ENDED, SessionKey, SessionRecord, settled
from mcp_proxy.sessions.shared import SharedStore
from mcp_proxy.tasks import Tasks
from tests.unit.fakes import settle
from tests.unit.registries import FOREIGN, FRESH_S, ROUTE, TTL_S, Replica, Seen, seal

THEIRS = SessionKey(ROUTE, b"their-own")
PLAIN = SessionRecord("one", "alice", created_s=7)
KEPT = SessionRecord("one", "alice", initialize=b'{"method":"initialize"}', created_s=7)
MOVED = SessionRecord("two", "alice", b"u2", 1, b'{"method":"initialize"}', 7)


@pytest.fixture
async def one() -> AsyncIterator[Replica]:
    replica = Replica(sealed=True)
    yield replica
    await replica.aclose()


@pytest.fixture
async def two(one: Replica) -> AsyncIterator[Replica]:
    replica = Replica(one.shelf, sealed=True)
    yield replica
    await replica.aclose()


async def begin(replica: Replica, record: SessionRecord = PLAIN) -> tuple[SessionKey, SessionRecord]:
    key, stored = replica.store.issue(THEIRS, record)
    assert is_session_id(key.session_id)
    assert THEIRS.session_id not in key.session_id
    assert await replica.create(key, stored) is True
    replica.registry.asked.clear()
    return key, stored


def alone() -> tuple[SharedStore, Seen]:
    seen = Seen()
    store = SharedStore("signed", ttl_s=TTL_S, cache_ttl_s=FRESH_S, tasks=Tasks(), watcher=seen, seal=seal())
    return store, seen


# --- without a registry ---------------------------------------------------------------------------


def test_a_sealed_id_is_enough_for_any_replica() -> None:
    one, _ = alone()
    two, seen = alone()
    key, record = one.issue(THEIRS, PLAIN)
    assert one.create(key, record) is True
    assert record.upstream_id == b"their-own"
    for store in (one, two):
        assert store.get(key, "alice") == record
        assert store.reread(key, "alice") == record
        assert store.get(key, FOREIGN) is None
    assert seen.known == [(key, record)]
    assert two.count(ROUTE) == 1


def test_what_is_not_sealed_is_no_session_and_nothing_is_remembered_of_it() -> None:
    store, seen = alone()
    key, _ = store.issue(THEIRS, PLAIN)
    forged = key.session_id[:-1] + (b"A" if key.session_id[-1:] != b"A" else b"B")
    for name in (THEIRS.session_id, b"v1.", forged, b"x" * 512):
        assert store.get(SessionKey(ROUTE, name), "alice") is None
    assert store.get(SessionKey("/other", key.session_id), "alice") is None, "of another route"
    assert (seen.known, store.count(ROUTE)) == ([], 0)


def test_an_end_is_remembered_by_the_replica_that_heard_of_it() -> None:
    store, seen = alone()
    key, record = store.issue(THEIRS, PLAIN)
    store.create(key, record)
    assert store.delete(key) is None
    assert store.get(key, "alice") is None
    assert store.reread(key, "alice") is None
    assert seen.over == [(key, record)]
    assert store.end(key.name) is False


async def test_without_a_registry_there_is_nothing_to_ask_or_to_lose() -> None:
    store, _ = alone()
    key, record = store.issue(THEIRS, PLAIN)
    store.create(key, record)
    store.start()
    store.touch(key)
    store.sweep(1e9)
    assert store.claim(key, 15.0) is True
    store.disclaim(key)
    assert store.restore([]) == 0
    assert store.health() == (True, "signed session ids, no registry")
    assert store.get(key, "alice") == record
    page = await settled(store.page("", 10))
    assert [listed.record for listed in page.sessions] == [record]
    await store.aclose()


def test_two_sessions_of_one_backend_id_have_two_names() -> None:
    store, _ = alone()
    assert store.issue(THEIRS, PLAIN)[0] != store.issue(THEIRS, PLAIN)[0]


def test_an_id_that_cannot_be_sealed_is_refused() -> None:
    store, _ = alone()
    with pytest.raises(StoreError, match="at most"):
        store.issue(SessionKey(ROUTE, b"x" * 512), PLAIN)


# --- with one -------------------------------------------------------------------------------------


async def test_nothing_is_written_of_a_session_that_says_all_itself(one: Replica, two: Replica) -> None:
    key, record = await begin(one)
    assert one.shelf.names == []
    assert one.warm(key, "alice") == record
    assert await two.get(key, "alice") == record
    assert two.asked == ["fetch"], "it may have ended or moved"
    assert two.warm(key, "alice") == record
    assert await two.get(key, FOREIGN) is None
    assert one.shelf.names == []


async def test_what_was_never_sealed_costs_no_question(one: Replica) -> None:
    assert one.warm(THEIRS, "alice") is None
    assert one.asked == []


async def test_what_the_id_has_no_room_for_is_written_down(one: Replica, two: Replica) -> None:
    key, record = await begin(one, KEPT)
    assert one.shelf.read(key.name) == record
    assert await two.get(key, "alice") == record
    assert record.initialize == KEPT.initialize


@pytest.mark.parametrize("record", [PLAIN, KEPT], ids=["plain", "with its initialize"])
@pytest.mark.parametrize("is_known", [True, False], ids=["and it is known", "and it is not known"])
async def test_a_sealed_id_serves_while_the_registry_is_away(
    one: Replica, two: Replica, record: SessionRecord, is_known: bool
) -> None:
    for replica in (one, two):
        replica.registry.is_down = is_known
        replica.registry.failing |= {"create", "fetch", "refresh"}
    key, stored = await begin(one, record)
    for _ in range(5):
        assert await one.get(key, "alice") == stored
        found = await two.get(key, "alice")
        assert found is not None
        assert (found.backend, found.upstream_id) == (stored.backend, stored.upstream_id)
        assert await two.get(key, FOREIGN) is None
        await one.pass_(FRESH_S)
        two.store.sweep(one.shelf.at_s)


@pytest.mark.parametrize("record", [PLAIN, KEPT], ids=["plain", "with its initialize"])
async def test_a_new_session_is_learnt_once(one: Replica, record: SessionRecord) -> None:
    key, stored = await begin(one, record)
    assert one.seen.known == [(key, stored)]
    assert one.seen.over == one.seen.dropped == []


async def test_a_session_that_could_not_be_written_down_lives(one: Replica, two: Replica) -> None:
    one.registry.failing.add("create")
    key, record = await begin(one, KEPT)
    one.registry.failing.clear()
    for _ in range(12):
        found, elsewhere = await one.get(key, "alice"), await two.get(key, "alice")
        assert found is not None
        assert elsewhere is not None
        assert found.upstream_id == elsewhere.upstream_id == b"their-own"
        await one.pass_(FRESH_S * 0.7)
        two.store.sweep(one.shelf.at_s)
        await settle()
    assert one.seen.over == two.seen.over == []
    assert one.seen.known == [(key, record)]


async def test_a_session_whose_memory_was_lost_lives_and_is_written_down_again(
    one: Replica, two: Replica
) -> None:
    key, record = await begin(one, KEPT)
    one.warm(key, "alice")
    one.shelf.lose()
    found = await two.get(key, "alice")
    assert found is not None
    assert (found.backend, found.initialize) == ("one", b"")
    one.shelf.at_s += FRESH_S
    assert await one.get(key, "alice") == record
    assert one.shelf.read(key.name) == record
    assert one.seen.over == []


async def test_an_end_is_known_everywhere(one: Replica, two: Replica) -> None:
    key, _ = await begin(one)
    await two.get(key, "alice")
    await one.end(key)
    await settle(20)
    assert one.shelf.read(key.name) is ENDED
    for replica in (one, two):
        assert await replica.get(key, "alice") is None
        assert len(replica.seen.over) == 1
    three = Replica(one.shelf, sealed=True)
    assert await three.get(key, "alice") is None
    await three.aclose()


@pytest.mark.parametrize("record", [PLAIN, KEPT], ids=["plain", "with its initialize"])
async def test_a_move_is_known_everywhere(one: Replica, two: Replica, record: SessionRecord) -> None:
    key, stored = await begin(one, record)
    await two.get(key, "alice")
    moved = SessionRecord("two", "alice", b"u2", 1, record.initialize, 7)
    assert await settled(two.store.move(key, stored, moved)) is True
    assert await settled(one.store.move(key, stored, moved)) is False
    await settle(20)
    three = Replica(one.shelf, sealed=True)
    for replica in (one, two, three):
        assert await replica.get(key, "alice") == moved
        assert await replica.get(key, FOREIGN) is None
        assert replica.seen.known == [(key, moved)]
    await three.aclose()


async def test_a_move_by_a_replica_that_knows_only_the_id(one: Replica, two: Replica) -> None:
    """What was written down at the beginning is there, but could not be asked for."""
    key, _ = await begin(one, KEPT)
    two.registry.failing.add("fetch")
    seen = await two.get(key, "alice")
    assert seen is not None
    assert await settled(two.store.move(key, seen, MOVED)) in (True, False)
    two.registry.failing.clear()
    await settle(20)
    stored = one.shelf.read(key.name)
    assert isinstance(stored, SessionRecord)
    assert await one.get(key, "alice") == stored
    assert await two.get(key, "alice") == stored


async def test_what_ended_does_not_move(one: Replica, two: Replica) -> None:
    key, record = await begin(one)
    two.registry.is_deaf = True
    await two.get(key, "alice")
    await one.end(key)
    assert await settled(two.store.move(key, record, MOVED)) is False
    assert one.shelf.read(key.name) is ENDED


async def test_an_unused_sealed_session_is_not_asked_about(one: Replica, two: Replica) -> None:
    key, _ = await begin(one)
    await two.get(key, "alice")
    two.registry.asked.clear()
    await two.pass_(FRESH_S)
    assert len(two.asked) <= 1
    await two.pass_(TTL_S / 2)
    assert two.asked == []
    assert two.store.count(ROUTE) == 1


async def test_a_session_that_moved_is_not_found_where_it_was_when_its_record_is_lost(
    one: Replica, two: Replica
) -> None:
    key, record = await begin(one, KEPT)
    moved = SessionRecord("two", "alice", b"u2", 1, record.initialize, 7)
    assert await settled(one.store.move(key, record, moved)) is True
    await settle(20)
    one.shelf.lose()
    one.shelf.at_s += FRESH_S
    assert await one.get(key, "alice") == moved
    assert one.shelf.read(key.name) == moved
    assert await two.get(key, "alice") == moved


async def test_somebody_else_writes_nothing_and_keeps_nothing(one: Replica, two: Replica) -> None:
    key, _ = await begin(one, KEPT)
    left_s = one.shelf.left_s(key.name)
    for _ in range(10):
        assert await two.get(key, FOREIGN) is None
        two.shelf.at_s += FRESH_S / 2
        two.store.sweep(two.shelf.at_s)
        await settle()
    assert one.shelf.left_s(key.name) == left_s - FRESH_S * 5
    assert set(two.asked) == {"fetch"}


async def test_a_replica_alone_shows_what_it_knows_page_by_page() -> None:
    store, _ = alone()
    names = []
    for _ in range(7):
        key, record = store.issue(THEIRS, PLAIN)
        store.create(key, record)
        names.append(key.name)
    found: list[str] = []
    cursor, pages = "", 0
    while pages == 0 or cursor:
        page = await settled(store.page(cursor, 3))
        found += [listed.name for listed in page.sessions]
        assert all(listed.route == ROUTE for listed in page.sessions)
        cursor, pages = page.cursor, pages + 1
    assert (sorted(found), len(found)) == (sorted(names), 7)
    assert store.end(names[0]) is True
    assert store.show(names[0]) is None


@pytest.mark.parametrize("cursor", ["nonsense", "0", "\xe9", "G" * 40, "a" * 41])
def test_a_cursor_that_was_not_issued_is_refused(cursor: str) -> None:
    store, _ = alone()
    with pytest.raises(ValueError, match="cursor"):
        store.page(cursor, 3)
