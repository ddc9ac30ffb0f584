"""What the registry in memory promises beyond the contract of every store."""

from __future__ import annotations

import pytest

from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import Listed, SessionKey, SessionRecord
from mcp_proxy.sessions.memory import ENDED_S, SWEEP_LIMIT, MemoryStore
from mcp_proxy.sessions.names import Names

TTL_S = 1000.0

KEY = SessionKey("/main", b"s1")
OWNER = SessionRecord("http://a:80/mcp", "someone")
OTHER = SessionRecord("http://b:80/mcp")


class Clock:
    def __init__(self) -> None:
        self.at_s = 5000.0

    def __call__(self) -> float:
        return self.at_s


class Seen:
    """A Watcher that counts."""

    def __init__(self) -> None:
        self.known: dict[SessionKey, SessionRecord] = {}
        self.forgotten: list[SessionKey] = []

    def learnt(self, key: SessionKey, record: SessionRecord) -> None:
        assert key not in self.known
        self.known[key] = record

    def forgot(self, key: SessionKey, record: SessionRecord, *, is_over: bool) -> None:
        assert self.known.pop(key) == record
        self.forgotten.append(key)


class Rig:
    def __init__(self, ttl_s: float | None = TTL_S, limit: int = 1000) -> None:
        self.clock = Clock()
        self.seen = Seen()
        self.store = MemoryStore(ttl_s, self.seen, limit, clock=self.clock)

    def wait(self, seconds: float) -> None:
        """Nothing is swept away."""
        self.clock.at_s += seconds

    def sweep(self) -> None:
        self.store.sweep(self.clock.at_s)


def backup(key: SessionKey, record: SessionRecord = OWNER, expires_s: float | None = None) -> Listed:
    return Listed(key.name, key.route, record, expires_s)


# --- what is over but was not swept away ----------------------------------------------------------


def over() -> Rig:
    rig = Rig(limit=1)
    rig.store.create(KEY, OWNER)
    rig.wait(TTL_S)
    return rig


def test_what_is_over_is_unknown_before_it_is_swept_away() -> None:
    rig = over()

    assert rig.store.get(KEY, OWNER.principal) is None
    rig.sweep()

    assert rig.seen.forgotten == [KEY]
    assert rig.store.count("/main") == 0


def test_what_is_over_is_neither_listed_nor_shown_nor_moved_nor_touched() -> None:
    rig = over()

    rig.store.touch(KEY)

    assert rig.store.page("", 10) == ([], "")
    assert rig.store.show(KEY.name) is None
    assert rig.store.move(KEY, OWNER, OTHER) is False


def test_what_is_over_was_not_ended_by_who_ends_it() -> None:
    assert over().store.end(KEY.name) is False


def test_what_is_over_can_be_created_again_before_it_is_swept_away() -> None:
    rig = over()

    assert rig.store.create(KEY, OTHER) is True
    assert rig.seen.forgotten == [KEY]
    assert rig.store.count("/main") == 1


def test_what_is_over_can_be_restored_before_it_is_swept_away() -> None:
    rig = over()

    assert rig.store.restore([backup(KEY, OTHER)]) == 1
    assert rig.store.get(KEY, OTHER.principal) == OTHER


def test_what_is_over_takes_no_room() -> None:
    assert over().store.create(SessionKey("/main", b"s2"), OTHER) is True


def test_somebody_else_does_not_even_sweep_away_what_is_over() -> None:
    rig = over()

    assert rig.store.get(KEY, "someone else") is None

    assert rig.seen.forgotten == []


def test_without_a_ttl_nothing_expires_and_nobody_says_when() -> None:
    rig = Rig(ttl_s=None)
    rig.store.create(KEY, OWNER)

    rig.wait(1e12)
    rig.sweep()

    assert rig.store.get(KEY, OWNER.principal) == OWNER
    (listed,) = rig.store.page("", 10).sessions
    assert listed.expires_s is None


# --- bounds ---------------------------------------------------------------------------------------


def test_a_full_registry_refuses_new_sessions_and_keeps_the_old() -> None:
    rig = Rig(limit=2)
    keys = [SessionKey(route, b"s") for route in ("/main", "/other", "/third")]
    assert rig.store.create(keys[0], OWNER)
    assert rig.store.restore([backup(keys[1])]) == 1

    with pytest.raises(StoreError, match="full"):
        rig.store.create(keys[2], OWNER)
    with pytest.raises(StoreError, match="full"):
        rig.store.restore([backup(keys[2])])
    assert rig.store.create(keys[0], OTHER) is False
    assert rig.store.restore([backup(keys[0]), backup(keys[1])]) == 0
    assert rig.seen.forgotten == []
    assert rig.store.get(keys[0], OWNER.principal) == OWNER

    rig.store.delete(keys[0])
    assert rig.store.create(keys[2], OWNER) is True


def test_a_sweep_forgets_the_oldest_and_not_more_than_its_limit() -> None:
    rig = Rig(limit=2 * SWEEP_LIMIT)
    count = SWEEP_LIMIT + 10
    for number in range(count):
        rig.store.create(SessionKey("/main", b"%d" % number), OWNER)
    rig.sweep()
    assert rig.seen.forgotten == []

    rig.wait(TTL_S)
    rig.sweep()
    assert [int(key.session_id) for key in rig.seen.forgotten] == list(range(SWEEP_LIMIT))
    rig.sweep()
    assert rig.store.count("/main") == 0


def test_dormant_sessions_are_swept_away_in_the_order_of_their_time() -> None:
    rig = Rig()
    keys = [SessionKey("/main", b"%d" % number) for number in range(5)]
    rig.store.restore([backup(key, expires_s=50.0 - 10 * index) for index, key in enumerate(keys)])

    rig.wait(25.0)
    rig.sweep()

    assert {listed.name for listed in rig.store.page("", 10).sessions} == {key.name for key in keys[:3]}
    assert rig.store.count("/main") == 3
    assert rig.seen.forgotten == []


def test_sessions_that_were_restored_and_ended_leave_nothing_behind() -> None:
    rig = Rig(limit=3)
    for number in range(50):
        key = SessionKey("/main", b"%d" % number)
        assert rig.store.restore([backup(key)]) == 1
        rig.store.delete(key)

    assert rig.store.count("/main") == 0
    assert len(rig.store._dormant_due) <= 6


def test_an_ended_session_can_be_restored_when_its_end_was_forgotten() -> None:
    rig = Rig(ttl_s=10 * ENDED_S)
    rig.store.create(KEY, OWNER)
    rig.store.delete(KEY)
    rig.wait(ENDED_S - 1.0)
    rig.sweep()
    assert rig.store.restore([backup(KEY)]) == 0

    rig.wait(1.0)
    rig.sweep()

    assert rig.store.restore([backup(KEY)]) == 1


# --- dormant sessions -----------------------------------------------------------------------------


def test_nobody_hears_of_a_dormant_session_until_its_client_comes() -> None:
    rig = Rig()
    rig.store.restore([backup(KEY)])
    assert rig.seen.known == {}
    assert rig.store.count("/main") == 1

    rig.store.get(KEY, OWNER.principal)

    assert rig.seen.known == {KEY: OWNER}
    assert rig.store.count("/main") == 1


def test_a_dormant_session_without_a_route_counts_for_its_route_once_its_client_comes() -> None:
    rig = Rig()
    rig.store.restore([Listed(KEY.name, "", OWNER, None)])
    assert rig.store.count("/main") == 0

    rig.store.get(KEY, OWNER.principal)

    (listed,) = rig.store.page("", 10).sessions
    assert (listed.route, rig.store.count("/main"), rig.store.count("")) == ("/main", 1, 0)


def test_a_dormant_session_that_is_over_does_not_wake() -> None:
    rig = Rig()
    rig.store.restore([backup(KEY, expires_s=10.0)])
    rig.wait(10.0)

    assert rig.store.get(KEY, OWNER.principal) is None
    assert rig.seen.known == {}


def test_a_session_that_woke_is_not_swept_away_at_its_former_time() -> None:
    rig = Rig()
    rig.store.restore([backup(KEY, expires_s=10.0)])
    rig.store.get(KEY, OWNER.principal)

    rig.wait(500.0)
    rig.sweep()

    assert rig.store.get(KEY, OWNER.principal) == OWNER


# --- the index ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 10, 1000])
def test_names_are_walked_through_in_their_order(limit: int) -> None:
    names: Names[int] = Names()
    expected = sorted(SessionKey("/", b"%d" % number).name for number in range(300))
    for number, name in enumerate(reversed(expected)):
        names.add(name, number)

    walked: list[str] = []
    while page := names.after(walked[-1] if walked else "", limit):
        walked += [name for name, _ in page]
        assert len(page) <= limit

    assert walked == expected
    assert len(names) == 300
