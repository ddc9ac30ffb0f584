"""The registry in memory under any order of events, beside a model that looks at everything."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import SessionKey, SessionRecord
from mcp_proxy.sessions.memory import ENDED_S
from tests.unit.test_memory_store import OTHER, TTL_S, Rig, backup

_KEYS = st.builds(SessionKey, st.sampled_from(["/main", "/other"]), st.sampled_from([b"1", b"2", b"3"]))
_PRINCIPALS = st.sampled_from(["", "someone"])


class MemoryAgainstModel(RuleBasedStateMachine):
    """A model that knows every record and its time, and looks at all of them at every step."""

    LIMIT = 4

    @initialize()
    def begin(self) -> None:
        self.rig = Rig(limit=self.LIMIT)
        self.store = self.rig.store
        self.records: dict[SessionKey, SessionRecord] = {}
        self.due: dict[SessionKey, float] = {}
        self.awake: set[SessionKey] = set()
        self.ended: set[SessionKey] = set()
        self.made = 0

    def remove(self, key: SessionKey) -> None:
        del self.records[key]
        del self.due[key]
        self.awake.discard(key)

    def use(self, key: SessionKey) -> None:
        self.due[key] = self.rig.clock.at_s + TTL_S
        self.awake.add(key)

    def record(self, principal: str) -> SessionRecord:
        self.made += 1
        return SessionRecord(str(self.made), principal)

    @rule(key=_KEYS, principal=_PRINCIPALS)
    def create(self, key: SessionKey, principal: str) -> None:
        record = self.record(principal)
        if key not in self.records and len(self.records) == self.LIMIT:
            with pytest.raises(StoreError):
                self.store.create(key, record)
            return
        assert self.store.create(key, record) is (key not in self.records)
        if key not in self.records:
            self.records[key] = record
            self.ended.discard(key)
            self.use(key)

    @rule(key=_KEYS, principal=_PRINCIPALS)
    def get(self, key: SessionKey, principal: str) -> None:
        record = self.records.get(key)
        expected = record if record is not None and record.principal == principal else None
        assert self.store.get(key, principal) == expected
        if expected is not None:
            self.use(key)

    @rule(key=_KEYS)
    def touch(self, key: SessionKey) -> None:
        self.store.touch(key)
        if key in self.awake:
            self.use(key)

    @rule(key=_KEYS, is_stale=st.booleans())
    def move(self, key: SessionKey, is_stale: bool) -> None:
        old = self.records.get(key)
        if old is None or is_stale:
            assert self.store.move(key, SessionRecord("stale", "nobody"), OTHER) is False
            return
        new = SessionRecord(old.backend + "'", old.principal, generation=old.generation + 1)
        assert self.store.move(key, old, new) is True
        if key not in self.awake:
            self.use(key)
        self.records[key] = new

    @rule(key=_KEYS, by_name=st.booleans())
    def end(self, key: SessionKey, by_name: bool) -> None:
        if by_name:
            assert self.store.end(key.name) is (key in self.records)
        else:
            self.store.delete(key)
        if key in self.records:
            self.remove(key)
            self.ended.add(key)

    @rule(key=_KEYS, principal=_PRINCIPALS, expires_s=st.sampled_from([None, 0.0, 1.0, 2 * TTL_S]))
    def restore(self, key: SessionKey, principal: str, expires_s: float | None) -> None:
        record = self.record(principal)
        is_new = key not in self.records and key not in self.ended and expires_s != 0.0
        if is_new and len(self.records) == self.LIMIT:
            with pytest.raises(StoreError):
                self.store.restore([backup(key, record, expires_s)])
            return
        assert self.store.restore([backup(key, record, expires_s)]) == is_new
        if is_new:
            self.records[key] = record
            self.due[key] = self.rig.clock.at_s + min(TTL_S, expires_s or TTL_S)

    @rule(seconds=st.sampled_from([0.5, 1.0, TTL_S / 2, TTL_S]))
    def wait(self, seconds: float) -> None:
        self.rig.wait(seconds)
        self.rig.sweep()
        for key in [key for key, due_s in self.due.items() if due_s <= self.rig.clock.at_s]:
            self.remove(key)
        if self.rig.clock.at_s > 5000.0 + ENDED_S / 2:
            self.begin()  # before ends are forgotten

    @invariant()
    def agrees(self) -> None:
        assert self.rig.seen.known == {key: self.records[key] for key in self.awake}
        shown = {listed.name: listed.record for listed in self.store.page("", 10).sessions}
        assert shown == {key.name: record for key, record in self.records.items()}
        counts = Counter(key.route for key in self.records)
        assert all(self.store.count(route) == counts[route] for route in ("/main", "/other"))


TestMemoryAgainstModel = MemoryAgainstModel.TestCase
TestMemoryAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
