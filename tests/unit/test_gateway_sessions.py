"""Sessions: learnt before the client hears of them, pinned while they last, forgotten when they end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mcp_proxy.errors import Fault, Phase
from mcp_proxy.sessions import TOUCHES, SessionRecord
from tests.unit.fakes import settle
from tests.unit.gatehouse import (
    EVENTS,
    HOLD,
    JSON,
    KEY,
    ROUTE,
    SESSION,
    STREAMS,
    Gatehouse,
    initialize,
    legacy,
    modern,
    names,
    slow_house,
)  # fmt: skip

# -- learning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202])
async def test_a_session_is_learnt_from_any_success_and_pinned_to_its_backend(status: int) -> None:
    house = Gatehouse(3)
    client = house.ask(initialize())
    attempt = house.take()
    attempt.answer(status, b"{}", (SESSION, b"s1"))
    assert client.reply.one(SESSION) == b"s1"
    assert house.find(attempt.backend).sessions == 1
    for _ in range(5):
        house.call()
        pinned = house.take()
        assert pinned.backend == attempt.backend
        assert (SESSION, b"s1") in pinned.outgoing.headers
        pinned.answer(200, b"{}")


async def test_a_session_in_an_event_stream_is_learnt_from_its_head() -> None:
    house = Gatehouse(1)
    client = house.ask(initialize())
    house.attempts[0].head(200, [EVENTS, (SESSION, b"s1")])
    assert client.reply.has_started
    assert client.reply.one(SESSION) == b"s1"
    assert house.store.count(ROUTE) == 1
    house.attempts[0].end()
    house.assert_quiet()


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_a_failed_initialize_creates_no_session_and_shows_none(status: int) -> None:
    house = Gatehouse(1)
    client = house.ask(initialize())
    house.attempts[0].answer(status, b"{}", (SESSION, b"throw-away"))
    assert (client.reply.status, client.reply.one(SESSION)) == (status, None)
    assert house.store.count(ROUTE) == 0


@pytest.mark.parametrize("value", [b"", b"a b", b"\xff", b"x" * 513, b"a\tb"])
async def test_an_illegal_session_id_is_a_bad_answer(value: bytes) -> None:
    house = Gatehouse(2)
    client = house.ask(initialize())
    house.attempts[0].head(200, [JSON, (SESSION, value)])
    assert client.verdict == (502, "upstream_invalid")
    assert house.attempts[0].is_cancelled
    assert house.store.count(ROUTE) == 0
    house.assert_quiet()


async def test_a_session_id_that_exists_is_not_overwritten() -> None:
    house = Gatehouse(2)
    owner = house.open_session()
    client = house.ask(initialize())
    house.take().answer(200, b"{}", (SESSION, b"s1"))
    assert client.verdict == (502, "session_conflict")
    assert client.reply.one(SESSION) is None
    house.call()
    assert house.take().backend == owner
    assert [backend.sessions for backend in house.backends].count(1) == 1


@pytest.mark.parametrize(
    "request_",
    [(legacy("tools/list"),), modern("tools/call"), modern("tools/list")],
    ids=["legacy", "tools/call", "tools/list"],
)
async def test_session_ids_on_other_answers_are_not_shown(request_: tuple[Any, ...]) -> None:
    house = Gatehouse(1)
    client = house.ask(*request_)
    house.attempts[0].answer(200, b"{}", (SESSION, b"throw-away"))
    assert (client.reply.status, client.reply.one(SESSION)) == (200, None)
    assert house.store.count(ROUTE) == 0


async def test_an_answer_may_repeat_the_session_id_of_its_request_only() -> None:
    house = Gatehouse(1)
    house.open_session()
    for issued, shown in ((b"s1", b"s1"), (b"other", None)):
        client = house.call()
        house.take().answer(200, b"{}", (SESSION, issued))
        assert client.reply.one(SESSION) == shown


async def test_a_modern_request_takes_no_session_id_to_a_backend() -> None:
    house = Gatehouse(1)
    house.open_session()
    house.ask(*modern("tools/list"), (SESSION, b"s1"))
    assert SESSION not in names(house.take().outgoing.headers)


async def test_an_unknown_or_impossible_session_is_one_and_the_same_404() -> None:
    house = Gatehouse(2)
    house.open_session()
    bodies = set()
    for session in (b"unknown", b"x" * 600, b"a b", b"\x7f"):
        client = house.call(session)
        assert client.verdict == (404, "session_not_found")
        bodies.add(client.reply.body)
    assert len(bodies) == 1
    assert house.attempts == []
    assert house.listen(b"unknown").verdict == (404, "session_not_found")


# -- forgetting --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "is_gone"), [(200, True), (204, True), (404, True), (405, False), (500, False)]
)
async def test_a_delete_ends_the_session_if_its_owner_says_so(status: int, is_gone: bool) -> None:
    house = Gatehouse(2)
    house.open_session()
    client = house.ask(b"", (SESSION, b"s1"), method=b"DELETE")
    house.take().answer(status, b"")
    assert client.reply.status == status
    assert house.store.count(ROUTE) == (0 if is_gone else 1)
    assert sum(backend.sessions for backend in house.backends) == (0 if is_gone else 1)
    assert (house.call().reply.status == 404) is is_gone


async def test_a_session_that_its_owner_does_not_know_any_more_is_forgotten() -> None:
    house = Gatehouse(2)
    house.open_session()
    client = house.call()
    house.take().answer(404, b'{"gone":1}')
    assert (client.reply.status, client.reply.body) == (404, b'{"gone":1}')
    assert house.store.count(ROUTE) == 0


async def test_a_session_stays_while_a_stream_is_open_on_it() -> None:
    house, store = slow_house(ttl_s=TOUCHES * 10.0)
    house.listen()
    await store.answer(SessionRecord(house.backends[0].id))
    house.attempts[0].head(200, [EVENTS])
    for at_s in (0.0, 5.0, 9.9, 10.0, 20.0, 39.9):
        house.gateway.sweep(at_s)
    assert store.touched == [KEY] * 4, "once in a quarter of its time to live"
    house.attempts[0].fail()
    house.gateway.sweep(60.0)
    assert len(store.touched) == 4, "and not any longer"


async def test_a_session_stays_while_a_call_is_running_on_it() -> None:
    """Tools may run for longer than a session lives unused."""
    house, store = slow_house(ttl_s=TOUCHES * 10.0)
    house.call()
    await settle()
    house.gateway.sweep(0.0)
    assert store.touched == [], "whose it is, is not known yet"
    await store.answer(SessionRecord(house.backends[0].id))
    house.gateway.sweep(10.0)
    assert store.touched == [KEY]
    house.attempts[0].answer(200, b"{}")
    house.gateway.sweep(20.0)
    assert store.touched == [KEY]


# -- pools without sessions --------------------------------------------------------------------


async def test_a_pool_that_issues_no_sessions_takes_requests_with_made_up_ones() -> None:
    house = Gatehouse(2)
    house.ask(initialize())
    house.take().answer(200, b"{}")
    client = house.call(b"made-up")
    house.take().answer(200, b"{}")
    assert client.reply.status == 200
    assert house.listen(b"made-up").verdict == (405, "method_not_allowed")
    house.assert_quiet()


@pytest.mark.parametrize(
    "body", [initialize(), b'{"jsonrpc":"2.0","method":"initialize"}'], ids=["request", "notification"]
)
async def test_one_answer_without_a_session_does_not_make_a_stateful_pool_stateless(body: bytes) -> None:
    house = Gatehouse(2)
    house.open_session()
    house.ask(body)
    house.take().answer(202, b"")
    assert house.call(b"unknown").verdict == (404, "session_not_found")


async def test_a_notification_named_initialize_says_nothing_about_the_pool() -> None:
    house = Gatehouse(2)
    house.ask(b'{"jsonrpc":"2.0","method":"initialize"}')
    house.take().answer(202, b"")
    assert house.call(b"unknown").verdict == (404, "session_not_found")


# -- streams -----------------------------------------------------------------------------------


async def test_the_limit_of_streams_is_exact_and_given_back_however_they_end() -> None:
    endings = ["end", "fail", "leave", "refused", "expire", "json", "drain"]
    house = Gatehouse(1)
    house.open_session()
    for ending in endings:
        clients = [house.ask(*modern("subscriptions/listen")) for _ in range(STREAMS)]
        over = house.ask(*modern("subscriptions/listen"))
        assert over.verdict == (503, "overloaded")
        assert house.listen().verdict == (503, "overloaded")
        call = house.ask(*modern("tools/call"))
        house.attempts.pop().answer(200, b"{}")
        assert call.reply.status == 200
        for client, attempt in zip(clients, house.attempts, strict=True):
            assert client.exchange is not None
            if ending not in ("refused", "json"):
                attempt.head(200, [EVENTS])
                attempt.body(b"data: 1\n\n")
            if ending == "end":
                attempt.end()
            elif ending == "fail":
                attempt.fail()
            elif ending == "leave":
                client.leave()
            elif ending == "refused":
                attempt.fail("refused")
            elif ending == "expire":
                client.exchange.expire()
            elif ending == "json":
                attempt.answer(400, b"{}")
            else:
                client.exchange.drain()
        house.assert_quiet()
        house.attempts.clear()


async def test_streams_are_counted_while_they_are_open() -> None:
    house = Gatehouse(1)
    client = house.ask(*modern("tools/call"))
    house.attempts[0].head(200, [EVENTS])
    assert (house.pool.streams, house.backends[0].streams, house.gateway.quotas.streams) == (1, 1, 0)
    client.leave()
    assert house.journal.events == [("opened", "pool"), ("closed", "pool", "client")]
    assert (house.record.is_stream, house.record.ended_by, house.record.phase) == (
        True,
        Fault.CLIENT,
        Phase.BODY,
    )
    house.assert_quiet()


# -- holding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("is_known", [True, False])
async def test_json_is_held_up_to_its_limit(extra: int, is_known: bool) -> None:
    house = Gatehouse(1)
    client = house.ask(*modern("tools/call"))
    size = HOLD + extra
    house.attempts[0].head(200, [JSON], size if is_known else None)
    house.attempts[0].body(b"x" * (size - 1))
    assert client.reply.has_started is (is_known and extra == 1)
    house.attempts[0].body(b"x")
    assert client.reply.has_started is bool(extra)
    house.attempts[0].end()
    assert (client.reply.body, client.reply.outcome) == (b"x" * size, "end" if extra else "answer")
    house.assert_quiet()


async def test_nothing_runs_on_when_everything_is_over() -> None:
    house = Gatehouse(2)
    before = asyncio.all_tasks()
    house.open_session()
    house.call()
    house.take().answer(200, b"{}")
    assert asyncio.all_tasks() == before
