"""The contract of every session registry, and what the one in memory adds.

The tests of the contract use the fixture ``rig`` only. A registry joins them by a parameter of
that fixture: a store, and how to let its time pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mcp_proxy import clock
from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import SessionKey, SessionRecord, SessionStore
from mcp_proxy.sessions.memory import MemoryStore

T = TypeVar("T")

TTL_S = 1000.0

KEY = SessionKey("main", b"s1")
OWNER = SessionRecord("http://a:80/mcp", "someone")
OTHER = SessionRecord("http://b:80/mcp")

Forgotten = list[tuple[SessionKey, SessionRecord]]


class Rig:
    """A store, what it forgot, and its time."""

    def __init__(
        self, store: SessionStore, forgotten: Forgotten, pass_time: Callable[[float], Awaitable[None] | None]
    ) -> None:
        self.store = store
        self.forgotten = forgotten
        self._pass_time = pass_time

    async def get(self, key: SessionKey = KEY) -> SessionRecord | None:
        return await settled(self.store.get(key))

    async def create(self, key: SessionKey = KEY, record: SessionRecord = OWNER) -> bool:
        return await settled(self.store.create(key, record))

    async def delete(self, key: SessionKey = KEY) -> None:
        await settled(self.store.delete(key))

    async def wait(self, seconds: float) -> None:
        """Let the store believe that so much time has passed, and do what it does then."""
        await settled(self._pass_time(seconds))


async def settled(value: T | Awaitable[T]) -> T:
    return await value if isinstance(value, Awaitable) else value


def memory() -> Rig:
    forgotten: Forgotten = []
    store = MemoryStore(TTL_S, lambda key, record: forgotten.append((key, record)))
    return Rig(store, forgotten, lambda seconds: store.sweep(clock.now() + seconds))


@pytest.fixture(params=[memory])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    made: Rig = request.param()
    yield made
    await made.store.aclose()


# --- the contract ---------------------------------------------------------------------------------


async def test_what_was_never_created_is_unknown(rig: Rig) -> None:
    assert await rig.get() is None
    assert rig.store.count("main") == 0


async def test_what_was_created_is_found(rig: Rig) -> None:
    assert await rig.create() is True

    assert await rig.get() == OWNER
    assert await rig.get() == OWNER
    assert rig.store.count("main") == 1


async def test_an_existing_session_is_never_overwritten(rig: Rig) -> None:
    await rig.create()

    assert await rig.create(record=OTHER) is False
    assert await rig.create() is False

    assert await rig.get() == OWNER
    assert rig.store.count("main") == 1
    assert rig.forgotten == []


async def test_equal_ids_of_two_pools_are_two_sessions(rig: Rig) -> None:
    twin = SessionKey("other", KEY.session_id)
    await rig.create()
    assert await rig.create(twin, OTHER) is True

    await rig.delete()

    assert await rig.get() is None
    assert await rig.get(twin) == OTHER
    assert (rig.store.count("main"), rig.store.count("other")) == (0, 1)


@pytest.mark.parametrize("session_id", [b"!", b"~" * 512, b"{a}*:?[x]", b"%s\\n", b"main:s1"])
async def test_every_legal_id_is_a_key_of_its_own(rig: Rig, session_id: bytes) -> None:
    key = SessionKey("main", session_id)
    await rig.create()

    assert await rig.create(key, OTHER) is True

    assert await rig.get(key) == OTHER
    assert await rig.get() == OWNER


async def test_deleting_forgets_and_may_be_done_twice(rig: Rig) -> None:
    await rig.create()

    await rig.delete()
    await rig.delete()

    assert await rig.get() is None
    assert rig.store.count("main") == 0
    assert rig.forgotten == [(KEY, OWNER)]


async def test_a_deleted_session_may_be_created_again(rig: Rig) -> None:
    await rig.create()
    await rig.delete()

    assert await rig.create(record=OTHER) is True

    assert await rig.get() == OTHER
    assert rig.store.count("main") == 1


async def test_deleting_the_unknown_is_fine(rig: Rig) -> None:
    await rig.delete()

    assert rig.forgotten == []
    assert rig.store.count("main") == 0


async def test_a_session_lives_as_long_as_its_ttl(rig: Rig) -> None:
    await rig.create()

    await rig.wait(TTL_S - 1.0)
    assert rig.store.count("main") == 1

    await rig.wait(TTL_S + 1.0)
    assert await rig.get() is None
    assert rig.store.count("main") == 0
    assert rig.forgotten == [(KEY, OWNER)]


async def test_an_open_stream_keeps_its_session(rig: Rig) -> None:
    await rig.create()
    rig.store.hold(KEY)

    await rig.wait(10 * TTL_S)

    assert await rig.get() == OWNER
    assert rig.forgotten == []


async def test_the_ttl_starts_when_the_last_stream_ends(rig: Rig) -> None:
    await rig.create()
    rig.store.hold(KEY)
    rig.store.hold(KEY)
    rig.store.release(KEY)
    await rig.wait(10 * TTL_S)
    assert rig.store.count("main") == 1

    rig.store.release(KEY)
    await rig.wait(TTL_S - 1.0)
    assert rig.store.count("main") == 1

    await rig.wait(TTL_S + 1.0)
    assert rig.forgotten == [(KEY, OWNER)]


async def test_a_held_session_does_not_keep_others(rig: Rig) -> None:
    other = SessionKey("main", b"s2")
    await rig.create()
    await rig.create(other)
    rig.store.hold(KEY)

    await rig.wait(TTL_S + 1.0)

    assert [key for key, _ in rig.forgotten] == [other]


async def test_a_held_session_can_be_deleted(rig: Rig) -> None:
    await rig.create()
    rig.store.hold(KEY)

    await rig.delete()
    rig.store.release(KEY)

    assert await rig.get() is None
    assert rig.forgotten == [(KEY, OWNER)]


async def test_holding_and_releasing_the_unknown_is_fine(rig: Rig) -> None:
    rig.store.hold(KEY)
    rig.store.release(KEY)

    assert await rig.get() is None
    assert rig.store.count("main") == 0


async def test_the_end_of_an_old_stream_means_nothing_to_a_new_session(rig: Rig) -> None:

    await rig.create()
    rig.store.hold(KEY)
    await rig.delete()
    await rig.create(record=OTHER)
    rig.store.release(KEY)

    await rig.wait(TTL_S + 1.0)

    assert [record for _, record in rig.forgotten] == [OWNER, OTHER]
    assert rig.store.count("main") == 0


async def test_closing_is_not_forgetting_and_may_be_done_twice(rig: Rig) -> None:
    await rig.create()
    rig.store.hold(KEY)

    await rig.store.aclose()
    await rig.store.aclose()
    rig.store.release(KEY)

    assert rig.store.count("main") == 0
    assert rig.forgotten == []


def test_each_store_has_a_name_for_the_metrics() -> None:
    assert memory().store.name == "memory"


# --- memory only ----------------------------------------------------------------------------------


def until_later() -> float:
    """The present, once the clock has gone on; it moves in microseconds."""
    at_s = clock.now()
    while clock.now() <= at_s + 1e-6:
        pass
    return clock.now()


def expired(store: MemoryStore) -> None:
    """A session that is over but has not been swept away."""
    store.create(KEY, OWNER)
    until_later()


def test_only_what_was_not_used_expires() -> None:
    forgotten: Forgotten = []
    store = MemoryStore(TTL_S, lambda key, record: forgotten.append((key, record)))
    used, unused = SessionKey("main", b"used"), SessionKey("main", b"unused")
    store.create(used, OWNER)
    store.create(unused, OWNER)
    created_s = until_later()
    until_later()
    store.get(used)

    store.sweep(created_s + TTL_S)

    assert [key for key, _ in forgotten] == [unused]


def test_what_is_over_is_unknown_before_it_is_swept_away() -> None:
    forgotten: Forgotten = []
    store = MemoryStore(1e-7, lambda key, record: forgotten.append((key, record)))
    expired(store)

    assert store.get(KEY) is None
    store.sweep(clock.now())

    assert forgotten == [(KEY, OWNER)]
    assert store.count("main") == 0


def test_what_is_over_can_be_created_again_before_it_is_swept_away() -> None:

    forgotten: Forgotten = []
    store = MemoryStore(1e-7, lambda key, record: forgotten.append((key, record)))
    expired(store)

    assert store.create(KEY, OTHER) is True
    assert forgotten == [(KEY, OWNER)]
    assert store.count("main") == 1


def test_what_is_over_takes_no_room() -> None:
    # fails: it does until the next sweep
    store = MemoryStore(1e-7, lambda key, record: None, limit=1)
    expired(store)

    assert store.create(SessionKey("main", b"s2"), OTHER) is True


def test_what_is_over_stays_while_it_is_held() -> None:
    store = MemoryStore(1e-7, lambda key, record: None)
    store.create(KEY, OWNER)
    store.hold(KEY)

    assert store.get(KEY) == OWNER


def test_without_a_ttl_nothing_expires() -> None:
    store = MemoryStore(None, lambda key, record: None)
    store.create(KEY, OWNER)

    store.sweep(clock.now() + 1e12)

    assert store.get(KEY) == OWNER


def test_a_full_registry_refuses_new_sessions_and_keeps_the_old() -> None:
    forgotten: Forgotten = []
    store = MemoryStore(TTL_S, lambda key, record: forgotten.append((key, record)), limit=2)
    keys = [SessionKey(pool, b"s") for pool in ("main", "other", "third")]
    assert store.create(keys[0], OWNER)
    assert store.create(keys[1], OWNER)

    with pytest.raises(StoreError, match="full"):
        store.create(keys[2], OWNER)
    assert store.create(keys[0], OTHER) is False
    assert forgotten == []
    assert store.get(keys[0]) == OWNER

    store.delete(keys[0])
    assert store.create(keys[2], OWNER) is True


def test_a_sweep_looks_no_further_than_the_first_that_lives() -> None:
    forgotten: Forgotten = []
    store = MemoryStore(TTL_S, lambda key, record: forgotten.append((key, record)))
    for number in range(100):
        store.create(SessionKey("main", b"%d" % number), OWNER)

    store.sweep(clock.now())
    assert forgotten == []

    store.sweep(clock.now() + TTL_S)
    assert [int(key.session_id) for key, _ in forgotten] == list(range(100))


_KEYS = st.builds(SessionKey, st.sampled_from(["main", "other"]), st.sampled_from([b"1", b"2", b"3"]))


class MemoryAgainstModel(RuleBasedStateMachine):
    """Every record that was created is either there or was forgotten once."""

    @initialize()
    def begin(self) -> None:
        self.forgotten: Counter[SessionRecord] = Counter()
        self.store = MemoryStore(TTL_S, self.forget, limit=4)
        self.records: dict[SessionKey, SessionRecord] = {}
        self.streams: Counter[SessionKey] = Counter()
        self.gone: Counter[SessionRecord] = Counter()
        self.created = 0

    def forget(self, key: SessionKey, record: SessionRecord) -> None:
        assert self.records[key] == record
        self.forgotten[record] += 1

    def remove(self, key: SessionKey) -> None:
        self.gone[self.records.pop(key)] += 1
        self.streams.pop(key, None)

    @rule(key=_KEYS)
    def create(self, key: SessionKey) -> None:
        self.created += 1
        record = SessionRecord(str(self.created))
        if key not in self.records and len(self.records) == 4:
            with pytest.raises(StoreError):
                self.store.create(key, record)
        else:
            assert self.store.create(key, record) is (key not in self.records)
            self.records.setdefault(key, record)

    @rule(key=_KEYS)
    def get(self, key: SessionKey) -> None:
        assert self.store.get(key) == self.records.get(key)

    @rule(key=_KEYS)
    def delete(self, key: SessionKey) -> None:
        self.store.delete(key)
        if key in self.records:
            self.remove(key)

    @rule(key=_KEYS)
    def hold(self, key: SessionKey) -> None:
        self.store.hold(key)
        if key in self.records:
            self.streams[key] += 1

    @rule(key=_KEYS)
    def release(self, key: SessionKey) -> None:
        if self.streams[key]:
            self.store.release(key)
            self.streams[key] -= 1

    @rule(is_late=st.booleans())
    def sweep(self, is_late: bool) -> None:
        self.store.sweep(clock.now() + (2 * TTL_S if is_late else 0.0))
        if is_late:
            for key in [key for key in self.records if not self.streams[key]]:
                self.remove(key)

    @invariant()
    def agrees(self) -> None:
        assert self.forgotten == self.gone
        for pool in ("main", "other"):
            assert self.store.count(pool) == sum(key.pool == pool for key in self.records)


TestMemoryAgainstModel = MemoryAgainstModel.TestCase
TestMemoryAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
