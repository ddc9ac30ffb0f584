"""What is done, counted and said when the registry fails; and what is kept of a session."""

from __future__ import annotations

import gc
import logging

import pytest

from mcp_proxy.errors import StoreError
from mcp_proxy.keeper import QUIET_S
from mcp_proxy.policy import Principal
from mcp_proxy.sessions import INITIALIZE_LIMIT, TOUCHES, SessionKey, SessionRecord, Watcher
from mcp_proxy.sessions.memory import MemoryStore
from tests.unit.fakes import settle
from tests.unit.gatehouse import (
    EVENTS,
    JSON,
    KEY,
    ROUTE,
    SESSION,
    USER,
    Gatehouse,
    by_header,
    initialize,
    legacy,
    message,
    slow_house,
)  # fmt: skip
from tests.unit.revivals import TURNS, SharedHouse


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


class Failing(MemoryStore):
    """Fails at everything that asks."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__(None, watcher)

    def get(self, key: SessionKey, principal: str) -> SessionRecord | None:
        raise StoreError("away")


async def test_every_failure_is_counted_and_few_are_told(caplog: pytest.LogCaptureFixture) -> None:
    house = Gatehouse(1, store=lambda house: Failing(house.watch))
    for _ in range(50):
        assert house.call().verdict == (503, "store_unavailable")
    assert house.journal.events.count(("store_error", "get")) == 50
    assert house.journal.events.count(("lookup", "memory", "error")) == 50
    (line,) = warnings(caplog)
    assert "away" in line
    assert "s1" not in line
    assert QUIET_S == 5.0


# --- lookups --------------------------------------------------------------------------------------


async def test_lookups_are_counted_by_what_they_cost() -> None:
    house = SharedHouse(1)
    ours, _ = await house.begin()
    house.call(ours)
    house.take().answer(200, b"{}")
    house.shelf.at_s += 1000.0 / 2
    house.call(ours)
    await settle(TURNS)
    house.take().answer(200, b"{}")
    house.call(b"unknown")
    await settle(TURNS)
    assert [event[2] for event in house.journal.events if event[0] == "lookup"] == ["hit", "cold", "miss"]
    assert {event[1] for event in house.journal.events if event[0] == "lookup"} == {"redis"}
    house.assert_quiet()


# --- whose session it is --------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("other", [b"mallory", None])
async def test_a_session_belongs_to_the_principal_that_created_it(shared: bool, other: bytes | None) -> None:
    house = SharedHouse(2, identify=by_header) if shared else Gatehouse(2, identify=by_header)
    house.ask(initialize(), (USER, b"alice"))
    house.take().answer(200, b"{}", (SESSION, b"s1"))
    await settle(TURNS)
    theirs = [(SESSION, b"s1")] if other is None else [(SESSION, b"s1"), (USER, other)]
    for method in (b"POST", b"GET", b"DELETE"):
        client = house.ask(legacy("ping") if method == b"POST" else b"", *theirs, method=method)
        unknown = house.ask(
            legacy("ping") if method == b"POST" else b"", (SESSION, b"never"), *theirs[1:], method=method
        )
        await settle(TURNS)
        assert client.verdict == unknown.verdict == (404, "session_not_found")
        assert client.reply.body == unknown.reply.body
        assert client.reply.headers == unknown.reply.headers
    assert house.attempts == []
    mine = house.ask(legacy("ping"), (SESSION, b"s1"), (USER, b"alice"))
    await settle(TURNS)
    house.take().answer(200, b"{}")
    assert mine.reply.status == 200
    house.assert_quiet()


async def test_a_backend_that_gives_one_principals_session_to_another_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = Gatehouse(1, identify=by_header)
    house.ask(initialize(), (USER, b"alice"))
    house.take().answer(200, b"{}", (SESSION, b"s1"))
    client = house.ask(initialize(), (USER, b"mallory"))
    house.take().answer(200, b"{}", (SESSION, b"s1"))
    assert client.verdict == (502, "session_conflict")
    assert client.reply.one(SESSION) is None
    assert "security" in caplog.text
    assert "s1" not in caplog.text.replace("sessions", "")
    assert house.ask(legacy("ping"), (SESSION, b"s1"), (USER, b"mallory")).verdict == (
        404,
        "session_not_found",
    )


async def test_the_digest_of_a_principal_is_kept_and_not_its_name() -> None:
    house = SharedHouse(1, identify=by_header)
    await house.begin(b"s1", (USER, b"alice"))
    assert house.stored(b"s1").principal == Principal("test", "alice").digest
    assert "alice" not in repr(house.stored(b"s1"))


# --- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reinitializes", [True, False])
async def test_the_initialize_is_kept_where_it_may_be_needed(reinitializes: bool) -> None:
    house = SharedHouse(1, reinitializes=reinitializes)
    ours, owner = await house.begin()
    record = house.stored(ours)
    assert record.initialize == (initialize() if reinitializes else b"")
    assert (record.backend, record.generation, record.upstream_id) == (owner, 0, b"")
    assert record.created_s > 1_600_000_000


@pytest.mark.parametrize("extra", [0, 1])
async def test_an_initialize_is_kept_up_to_its_limit(extra: int, caplog: pytest.LogCaptureFixture) -> None:
    house = SharedHouse(1, reinitializes=True)
    short = message("initialize", {"x": ""})
    body = message("initialize", {"x": "y" * (INITIALIZE_LIMIT - len(short) + extra)})
    assert len(body) == INITIALIZE_LIMIT + extra
    house.ask(body)
    house.take().answer(200, b"{}", (SESSION, b"s1"))
    await settle(TURNS)
    assert house.stored(b"s1").initialize == (b"" if extra else body)
    assert bool(warnings(caplog)) is bool(extra)
    assert all("yyy" not in line for line in warnings(caplog))


# --- doubt ----------------------------------------------------------------------------------------


async def test_a_404_waits_for_the_registry_and_passes_then() -> None:
    house, store = slow_house()
    client = house.call()
    await settle()
    await store.answer(SessionRecord(house.backends[0].id))
    house.attempts[0].answer(404, b'{"gone":1}', (SESSION, b"throw-away"))
    await settle()
    assert [asked[:2] for asked in store.asked] == [("reread", KEY)]
    assert client.reply.outcome == ""
    await store.answer(SessionRecord(house.backends[0].id))
    assert (client.reply.status, client.reply.body, client.reply.one(SESSION)) == (404, b'{"gone":1}', None)
    assert [asked[:2] for asked in store.asked] == [("delete", KEY)]
    await store.answer(None)
    house.assert_quiet()


@pytest.mark.parametrize("outcome", ["none", "fails", "bug"])
async def test_a_404_passes_whatever_the_registry_says(outcome: str) -> None:
    house, store = slow_house()
    client = house.call()
    await settle()
    await store.answer(SessionRecord(house.backends[0].id))
    house.attempts[0].answer(404, b"gone")
    await settle()
    if outcome == "none":
        await store.answer(None)
    else:
        await store.fail(StoreError("down") if outcome == "fails" else RuntimeError("a bug"))
    assert client.reply.status == (500 if outcome == "bug" else 404)
    assert (("store_error", "get") in house.journal.events) is (outcome == "fails")
    while store.asked:
        await store.answer(None)
    house.assert_quiet()


@pytest.mark.parametrize("ending", ["leave", "expire", "fail"])
async def test_an_exchange_that_ends_in_doubt_asks_for_nothing_more(ending: str) -> None:
    house, store = slow_house()
    client = house.call()
    await settle()
    await store.answer(SessionRecord(house.backends[0].id))
    house.attempts[0].head(404, [JSON], 10)
    await settle()
    if ending == "leave":
        client.leave()
    elif ending == "expire":
        client.exchange.expire()  # type: ignore[union-attr]
    else:
        house.attempts[0].fail()
    await settle()
    assert store.asked[0][2].cancelled()
    assert len(store.asked) == 1
    assert len(house.journal.records) == 1
    house.assert_quiet()


# --- use ------------------------------------------------------------------------------------------


async def test_what_is_open_is_touched_often_enough() -> None:
    house, store = slow_house(ttl_s=100.0)
    house.listen()
    await settle()
    await store.answer(SessionRecord(house.backends[0].id))
    house.attempts[0].head(200, [EVENTS])
    for second in range(1000):
        house.gateway.sweep(float(second))
    assert len(store.touched) == 10 * TOUCHES
    assert set(store.touched) == {KEY}


async def test_what_names_no_session_is_not_touched() -> None:
    house, store = slow_house(ttl_s=100.0)
    house.ask(legacy("ping"))
    house.ask(initialize())
    for second in range(0, 1000, 10):
        house.gateway.sweep(float(second))
    assert store.touched == []
    assert KEY.route == ROUTE


@pytest.mark.parametrize("doubts", [False, True])
async def test_a_client_that_leaves_before_its_question_begins_leaves_nothing_behind(doubts: bool) -> None:
    """In the same turn. Whatever is never awaited would be a warning, and so a failure here."""
    house = SharedHouse(2)
    ours, _ = await house.begin()
    if doubts:
        client = house.call(ours)
        house.take().answer(404, b"who?")
    else:
        client = house.call(b"cold")
    client.leave()
    gc.collect()
    await settle(TURNS)
    assert house.attempts == []
    house.assert_quiet()
