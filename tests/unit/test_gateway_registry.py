"""A session registry that needs time, fails, or disagrees."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_proxy.errors import Fault, Phase, StoreError
from mcp_proxy.sessions import SessionKey, SessionRecord
from mcp_proxy.sessions.memory import MemoryStore
from tests.unit.fakes import settle
from tests.unit.gatehouse import (
    JSON,
    KEY,
    SESSION,
    Gatehouse,
    initialize,
    legacy,
    modern,
    slow_house,
)

# -- a registry that needs time ----------------------------------------------------------------


async def test_a_lookup_that_takes_time_leads_to_the_owner() -> None:
    house, store = slow_house()
    client = house.call()
    await settle()
    assert (house.attempts, client.reply.outcome) == ([], "")
    await store.answer(SessionRecord(house.backends[1].id))
    assert house.tried == [house.backends[1].id]
    house.attempts[0].answer(200, b"{}")
    assert client.reply.status == 200
    house.assert_quiet()


async def test_a_lookup_that_finds_nothing_is_a_404_and_one_that_fails_a_503() -> None:
    house, store = slow_house()
    unknown, failed = house.call(), house.call()
    await settle()
    await store.answer(None)
    await store.fail(StoreError("down"))
    assert unknown.verdict == (404, "session_not_found")
    assert failed.verdict == (503, "store_unavailable")
    assert failed.reply.one(b"retry-after") == b"1"
    assert b'"id": 7' in failed.reply.body or b'"id":7' in failed.reply.body
    assert ("store_error", "get") in house.journal.events
    assert [record.ended_by for record in house.journal.records] == [Fault.CLIENT, Fault.PROXY]
    house.assert_quiet()


@pytest.mark.parametrize("operation", ["get", "create"])
async def test_a_registry_that_fails_in_an_unforeseen_way_does_not_leave_the_client_waiting(
    operation: str,
) -> None:
    house, store = slow_house()
    client = house.call() if operation == "get" else house.ask(initialize())
    if operation == "create":
        house.attempts[0].head(200, [JSON, (SESSION, b"s1")])
    await settle()
    await store.fail(RuntimeError("a bug"))
    assert client.reply.outcome == "answer"
    assert client.reply.status in (500, 503)
    house.assert_quiet()


async def test_a_client_that_leaves_during_the_lookup_ends_it() -> None:
    house, store = slow_house()
    client = house.call()
    await settle()
    client.leave()
    await settle()
    assert store.asked[0][2].cancelled()
    assert (house.record.ended_by, house.record.phase) == (Fault.CLIENT, Phase.ROUTE)
    assert house.attempts == []
    house.assert_quiet()


async def test_a_client_that_leaves_at_the_moment_of_the_answer_is_gone() -> None:
    """The lookup is done, its task has not run on yet."""
    house, store = slow_house()
    for outcome in (SessionRecord(house.backends[0].id), None, StoreError("down")):
        client = house.call()
        await settle()
        future = store.asked.pop(0)[2]
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
        client.leave()
        await settle()
    assert house.attempts == []
    assert [record.ended_by for record in house.journal.records] == [Fault.CLIENT] * 3
    house.assert_quiet()


async def begun(house: Gatehouse) -> Any:
    """An ``initialize`` whose session is being stored."""
    client = house.ask(initialize())
    house.attempts[0].head(200, [JSON, (SESSION, b"s1")], 2)
    await settle()
    assert (client.reply.outcome, client.reply.has_started) == ("", False)
    assert house.attempts[0].is_paused
    return client


async def test_the_session_is_stored_before_the_answer_leaves() -> None:
    house, store = slow_house()
    client = await begun(house)
    house.attempts[0].body(b"{}")
    house.attempts[0].end()
    await settle()
    assert client.reply.outcome == ""
    assert store.asked[0][:2] == ("create", KEY)
    await store.answer(True)
    assert (client.reply.status, client.reply.body, client.reply.one(SESSION)) == (200, b"{}", b"s1")
    house.assert_quiet()


async def test_the_rest_of_the_answer_may_come_after_the_store() -> None:
    house, store = slow_house()
    client = await begun(house)
    await store.answer(True)
    assert not house.attempts[0].is_paused
    house.attempts[0].body(b"{}")
    house.attempts[0].end()
    assert client.reply.body == b"{}"
    house.assert_quiet()


async def test_a_conflict_and_a_failure_show_no_session() -> None:
    for value, verdict in (
        (False, (502, "session_conflict")),
        (StoreError("down"), (503, "store_unavailable")),
    ):
        house, store = slow_house()
        client = await begun(house)
        if isinstance(value, Exception):
            await store.fail(value)
        else:
            await store.answer(value)
            await store.answer(SessionRecord("http://elsewhere.example:80/mcp"))  # who has it, then
        assert client.verdict == verdict
        assert client.reply.one(SESSION) is None
        assert house.attempts[0].is_cancelled
        assert [backend.sessions for backend in house.backends] == [0, 0]
        await goodbyes(house, 0 if value is False else 1)
        house.assert_quiet()


async def test_a_backend_may_issue_its_own_id_again() -> None:
    """It was restarted, and its ids are not random: the client has its session."""
    house, store = slow_house()
    client = await begun(house)
    await store.answer(False)
    await store.answer(SessionRecord(house.attempts[0].backend))
    house.attempts[0].body(b"{}")
    house.attempts[0].end()
    assert (client.reply.status, client.reply.one(SESSION)) == (200, b"s1")
    house.assert_quiet()


async def goodbyes(house: Gatehouse, count: int) -> None:
    """The backend was told to end the session that nobody knows of, and says yes. In a conflict
    it is not told: the session may be somebody's."""
    await settle()
    first, *others = house.attempts
    assert [attempt.outgoing.method for attempt in others] == [b"DELETE"] * count
    for attempt in others:
        assert attempt.backend == first.backend
        assert (SESSION, b"s1") in attempt.outgoing.headers
        assert (attempt.outgoing.target, attempt.outgoing.body) == (b"/mcp", b"")
        attempt.answer(200, b"")
    await settle()


@pytest.mark.parametrize("ending", ["leave", "fail", "expire"])
@pytest.mark.parametrize("outcome", [True, False, StoreError("down")], ids=["stored", "conflict", "failed"])
async def test_an_exchange_that_ends_while_its_session_is_stored(ending: str, outcome: object) -> None:
    """The write is not interrupted; what it leaves, nobody was told of, is taken back."""
    house, store = slow_house()
    client = await begun(house)
    if ending == "leave":
        client.leave()
        assert house.attempts[0].is_cancelled
        assert (house.record.ended_by, house.record.phase) == (Fault.CLIENT, Phase.HEAD)
    elif ending == "fail":
        house.attempts[0].fail()
        assert client.verdict == (502, "upstream_lost")
    else:
        client.exchange.expire()
        assert client.verdict == (503, "draining")
    if isinstance(outcome, Exception):
        await store.fail(outcome)
    else:
        await store.answer(outcome)
    assert len(house.journal.records) == 1
    if outcome is True:
        assert [asked[:2] for asked in store.asked] == [("delete", KEY)]
        await store.answer(None)
    assert store.asked == []
    assert [backend.sessions for backend in house.backends] == [0, 0]
    await goodbyes(house, 0 if outcome is False else 1)
    house.assert_quiet()


@pytest.mark.parametrize("status", [200, 204, 404])
async def test_the_end_of_a_session_is_written_down_before_the_client_hears_of_it(status: int) -> None:
    house, store = slow_house()
    client = house.ask(b"", (SESSION, b"s1"), method=b"DELETE")
    await store.answer(SessionRecord(house.backends[0].id))
    house.attempts[0].answer(status, b"bye")
    await settle()
    assert [asked[:2] for asked in store.asked] == [("delete", KEY)]
    assert (client.reply.has_started, client.reply.outcome) == (False, "")
    await store.answer(None)
    assert store.finished == ["get", "delete"]
    assert (client.reply.status, client.reply.body) == (status, b"bye")
    house.assert_quiet()


@pytest.mark.parametrize("status", [400, 405, 500])
async def test_a_deletion_that_the_backend_refuses_ends_nothing(status: int) -> None:
    house, store = slow_house()
    client = house.ask(b"", (SESSION, b"s1"), method=b"DELETE")
    await store.answer(SessionRecord(house.backends[0].id))
    house.attempts[0].answer(status, b"no")
    assert (store.asked, client.reply.status, client.reply.body) == ([], status, b"no")
    house.assert_quiet()


@pytest.mark.parametrize("ending", ["leave", "expire"])
async def test_an_end_is_written_down_even_if_nobody_waits_for_it(ending: str) -> None:
    house, store = slow_house()
    client = house.ask(b"", (SESSION, b"s1"), method=b"DELETE")
    await store.answer(SessionRecord(house.backends[0].id))
    house.attempts[0].answer(204, b"")
    await settle()
    if ending == "leave":
        client.leave()
    else:
        client.exchange.expire()  # type: ignore[union-attr]
        assert client.verdict == (503, "draining")
    await store.answer(None)
    assert store.finished == ["get", "delete"]
    assert len(house.journal.records) == 1
    house.assert_quiet()


async def test_a_deletion_that_fails_does_not_change_the_answer() -> None:
    class Failing(MemoryStore):
        def delete(self, key: SessionKey) -> None:
            raise StoreError("down")

    house = Gatehouse(2, store=lambda house: Failing(None, house.watch))
    house.open_session()
    client = house.ask(b"", (SESSION, b"s1"), method=b"DELETE")
    house.take().answer(204, b"")
    assert client.reply.status == 204
    assert ("store_error", "delete") in house.journal.events
    house.assert_quiet()


async def test_a_registry_that_fails_at_once_is_a_503() -> None:
    class Failing(MemoryStore):
        def get(self, key: SessionKey, principal: str) -> SessionRecord | None:
            raise StoreError("down")

        def create(self, key: SessionKey, record: SessionRecord) -> bool:
            raise StoreError("full")

    house = Gatehouse(2, store=lambda house: Failing(None, house.watch))
    assert house.call().verdict == (503, "store_unavailable")
    client = house.ask(initialize())
    house.attempts[0].head(200, [JSON, (SESSION, b"s1")])
    assert client.verdict == (503, "store_unavailable")
    assert house.attempts[0].is_cancelled
    await goodbyes(house, 1)
    house.assert_quiet()


async def test_sessionless_traffic_does_not_ask_the_registry() -> None:
    house, store = slow_house()
    for request in (modern("tools/call"), (legacy("ping"),), modern("subscriptions/listen")):
        house.ask(*request)
    await settle()
    assert (store.asked, len(house.attempts)) == ([], 3)
    for attempt in house.attempts:
        attempt.answer(200, b"{}")


async def test_a_slow_deletion_that_fails_is_counted_and_changes_no_answer() -> None:
    house, store = slow_house()
    client = house.ask(b"", (SESSION, b"s1"), method=b"DELETE")
    await store.answer(SessionRecord(house.backends[0].id))
    house.attempts[0].answer(200, b"")
    await settle()
    assert client.reply.outcome == "", "it may still come to be acknowledged"
    await store.fail(StoreError("down"))
    assert client.reply.status == 200
    assert ("store_error", "delete") in house.journal.events
    house.assert_quiet()


async def test_the_answer_to_a_goodbye_interests_nobody() -> None:
    for ending in ("answer", "stream", "fail", "refused"):
        house, store = slow_house()
        await begun(house)
        await store.fail(StoreError("down"))
        await settle()
        goodbye = house.attempts[1]
        if ending == "answer":
            goodbye.answer(404, b"{}")
        elif ending == "stream":
            goodbye.head(200, [JSON])
            goodbye.body(b"x" * 5000)
            goodbye.end()
        else:
            goodbye.fail("lost" if ending == "fail" else "refused")
        await settle()
        assert len(house.journal.records) == 1
        house.assert_quiet()
