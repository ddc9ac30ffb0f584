"""What the registry in memory promises beyond the contract of every registry."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mcp_proxy import clock
from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import SessionKey, SessionRecord
from mcp_proxy.sessions.memory import MemoryStore

TTL_S = 1000.0

KEY = SessionKey("main", b"s1")
OWNER = SessionRecord("http://a:80/mcp", "someone")
OTHER = SessionRecord("http://b:80/mcp")

Forgotten = list[tuple[SessionKey, SessionRecord]]


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
            for key in self.records:
                self.get(key)  # held, so used in the future; back to the present

    @invariant()
    def agrees(self) -> None:
        assert self.forgotten == self.gone
        for pool in ("main", "other"):
            assert self.store.count(pool) == sum(key.pool == pool for key in self.records)


TestMemoryAgainstModel = MemoryAgainstModel.TestCase
TestMemoryAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
