"""Where a request goes, and when it may go a second time: never if it may have run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mcp_proxy import clock
from mcp_proxy.backends import AVOID_S
from mcp_proxy.errors import Fault, Phase
from mcp_proxy.gateway import DISCOVER_HEAD_S, PIN_RETRY_S, REPEAT_LIMIT
from tests.tools import PATIENCE_S
from tests.unit.fakes import settle
from tests.unit.gatehouse import JSON, Client, Gatehouse, initialize, legacy, modern

ANYWHERE: dict[str, tuple[Any, ...]] = {
    "initialize": (initialize(),),
    "legacy without a session": (legacy("tools/call"),),
    "tools/call": modern("tools/call"),
    "tools/list": modern("tools/list"),
    "server/discover": modern("server/discover"),
    "subscriptions/listen": modern("subscriptions/listen"),
    "an extension": modern("vendor/x"),
}
REPEATABLE = ["initialize", "tools/list", "server/discover", "subscriptions/listen"]
ONCE = [name for name in ANYWHERE if name not in REPEATABLE]


@pytest.mark.parametrize("name", ANYWHERE)
@pytest.mark.parametrize("kind", ["refused", "unreached"])
async def test_a_failed_connect_goes_to_every_backend_once_with_any_method(name: str, kind: str) -> None:
    house = Gatehouse(3)
    client = house.ask(*ANYWHERE[name])
    for number in range(3):
        assert len(house.attempts) == number + 1
        assert client.reply.outcome == ""
        house.attempts[-1].fail(kind)
    assert client.verdict == (503, "backend_unavailable")
    assert client.reply.one(b"retry-after") == b"1"
    assert sorted(house.tried) == sorted(backend.id for backend in house.backends)
    assert {attempt.outgoing.body for attempt in house.attempts} == {ANYWHERE[name][0]}
    assert all(backend.unreachable_since_s is not None for backend in house.backends)
    assert (house.record.attempts, house.record.phase) == (3, Phase.CONNECT)
    assert house.journal.events == [("upstream_failure", "pool", "connect")] * 3
    house.assert_quiet()


@pytest.mark.parametrize("name", ANYWHERE)
async def test_the_second_backend_answers_as_if_it_were_the_first(name: str) -> None:
    house = Gatehouse(2)
    client = house.ask(*ANYWHERE[name])
    house.attempts[0].fail("refused")
    house.attempts[1].answer(200, b'{"ok":1}')
    assert (client.reply.status, client.reply.body) == (200, b'{"ok":1}')
    assert (house.record.attempts, house.record.ended_by) == (2, Fault.NONE)
    house.assert_quiet()


async def test_a_lack_of_descriptors_is_nobody_elses_fault() -> None:
    house = Gatehouse(2)
    client = house.ask(*modern("tools/call"))
    house.attempts[0].fail("exhausted")
    assert client.verdict == (503, "overloaded")
    assert len(house.attempts) == 1
    assert all(backend.unreachable_since_s is None for backend in house.backends)
    house.assert_quiet()


async def test_a_lack_of_descriptors_is_recorded_as_the_fault_of_the_proxy() -> None:
    house = Gatehouse(2)
    house.ask(*modern("tools/call"))
    house.attempts[0].fail("exhausted")
    assert house.record.ended_by is Fault.PROXY


@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("is_stale", [False, True])
@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [("lost", 502, "upstream_lost"), ("invalid", 502, "upstream_invalid"), ("timeout", 504, "upstream_timeout")],
)
async def test_what_may_have_run_is_never_sent_again(
    name: str, is_stale: bool, kind: str, status: int, reason: str
) -> None:
    house = Gatehouse(3)
    client = house.ask(*ANYWHERE[name])
    house.attempts[0].fail(kind, stale=is_stale and kind == "lost")
    assert client.verdict == (status, reason)
    assert len(house.attempts) == 1
    assert client.error["data"]["maybeExecuted"] is True
    assert client.error["data"]["reason"] == reason
    house.assert_quiet()


@pytest.mark.parametrize("name", REPEATABLE)
async def test_what_has_no_effect_is_sent_to_another_backend_within_a_limit(name: str) -> None:
    house = Gatehouse(5)
    client = house.ask(*ANYWHERE[name])
    for attempt in range(5):
        if len(house.attempts) > attempt:
            house.attempts[attempt].fail()
    assert len(house.attempts) == (5 if name == "server/discover" else REPEAT_LIMIT)
    assert len(set(house.tried)) == len(house.tried)
    assert client.verdict == (502, "upstream_lost")
    house.assert_quiet()


@pytest.mark.parametrize("name", REPEATABLE)
async def test_a_stale_connection_is_no_reason_to_leave_the_backend(name: str) -> None:
    house = Gatehouse(2)
    client = house.ask(*ANYWHERE[name])
    house.attempts[0].fail(stale=True)
    assert house.tried[1:] == house.tried[:1]
    assert [attempt.fresh for attempt in house.attempts] == [False, True]
    house.attempts[1].answer(200, b"{}")
    assert client.reply.status == 200
    house.assert_quiet()


@pytest.mark.parametrize("name", ANYWHERE)
async def test_a_broken_body_is_never_asked_for_again(name: str) -> None:
    house = Gatehouse(2)
    client = house.ask(*ANYWHERE[name])
    house.attempts[0].head(200, [JSON])
    house.attempts[0].body(b'{"half":')
    house.attempts[0].fail()
    assert len(house.attempts) == 1
    assert client.verdict == (502, "upstream_lost")
    house.assert_quiet()


async def test_an_answer_to_a_question_is_not_repeated() -> None:
    """``requestState`` and ``inputResponses`` continue something that a backend has begun."""
    for member in ("requestState", "inputResponses"):
        house = Gatehouse(2)
        client = house.ask(*modern("prompts/get", **{member: {}}))
        house.attempts[0].fail()
        assert (len(house.attempts), client.reply.status) == (1, 502)


# -- server/discover ---------------------------------------------------------------------------


async def test_discover_moves_on_from_an_error_until_one_answers() -> None:
    house = Gatehouse(4)
    client = house.ask(*modern("server/discover"))
    house.attempts[0].head(500, [JSON])
    house.attempts[1].head(503, [JSON])
    house.attempts[2].fail()
    house.attempts[3].answer(200, b"{}")
    assert len(set(house.tried)) == 4
    assert [attempt.is_cancelled for attempt in house.attempts] == [True, True, False, False]
    assert (client.reply.status, house.record.attempts) == (200, 4)
    house.assert_quiet()


async def test_the_last_error_of_discover_is_passed_on() -> None:
    house = Gatehouse(2)
    client = house.ask(*modern("server/discover"))
    house.attempts[0].head(500, [JSON])
    house.attempts[1].answer(500, b'{"error":1}')
    assert (client.reply.status, client.reply.body) == (500, b'{"error":1}')
    house.assert_quiet()


async def test_discover_does_not_take_a_refusal_for_a_failure() -> None:
    house = Gatehouse(2)
    client = house.ask(*modern("server/discover"))
    house.attempts[0].answer(404, b"{}")
    assert (client.reply.status, len(house.attempts)) == (404, 1)


async def test_a_slow_discover_moves_on_but_the_last_backend_gets_all_the_time() -> None:
    house = Gatehouse(2)
    client = house.ask(*modern("server/discover"))
    house.gateway.sweep(clock.now() + DISCOVER_HEAD_S - 0.5)
    assert len(house.attempts) == 1
    house.gateway.sweep(clock.now() + DISCOVER_HEAD_S + 0.1)
    assert house.attempts[0].is_cancelled
    house.gateway.sweep(clock.now() + 1e6)
    assert client.reply.outcome == ""
    house.attempts[1].answer(200, b"{}")
    assert client.reply.status == 200
    house.assert_quiet()


@pytest.mark.parametrize("ending", ["leave", "answer", "refused"])
async def test_the_clock_of_a_discover_stops_with_it(ending: str) -> None:
    house = Gatehouse(2)
    client = house.ask(*modern("server/discover"))
    if ending == "leave":
        client.leave()
    elif ending == "answer":
        house.attempts[0].answer(200, b"{}")
    else:
        house.attempts[0].fail("refused")
        house.attempts[1].fail("refused")
    assert len(house.gateway.discover_due) == 0
    house.gateway.sweep(clock.now() + 1e6)
    assert len(house.journal.records) == 1


# -- initialize --------------------------------------------------------------------------------


async def test_a_full_server_is_not_the_last_word_on_a_new_session() -> None:
    house = Gatehouse(2)
    client = house.ask(initialize())
    house.attempts[0].head(503, [JSON])
    house.attempts[1].answer(200, b"{}", (b"mcp-session-id", b"s1"))
    assert (client.reply.status, client.reply.one(b"mcp-session-id")) == (200, b"s1")
    assert house.find(house.tried[1]).sessions == 1
    house.assert_quiet()


@pytest.mark.parametrize("status", [500, 502, 400, 404])
async def test_any_other_answer_to_initialize_is_passed_on(status: int) -> None:
    house = Gatehouse(2)
    client = house.ask(initialize())
    house.attempts[0].answer(status, b'{"error":1}')
    assert (client.reply.status, client.reply.body, len(house.attempts)) == (status, b'{"error":1}', 1)


async def test_a_503_to_anything_else_is_passed_on() -> None:
    for request in (modern("tools/call"), modern("tools/list"), (legacy("ping"),)):
        house = Gatehouse(2)
        client = house.ask(*request)
        house.attempts[0].answer(503, b"busy")
        assert (client.reply.status, client.reply.body, len(house.attempts)) == (503, b"busy", 1)


# -- sessions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tools/call", "tools/list", "ping"])
async def test_a_request_of_a_session_is_sent_once_and_to_its_owner_only(method: str) -> None:
    house = Gatehouse(3)
    owner = house.open_session()
    for _ in range(4):
        client = house.call(method=method)
        attempt = house.take()
        assert attempt.backend == owner
        attempt.fail(stale=True)
        assert house.attempts == []
        assert client.verdict == (502, "upstream_lost")
    house.assert_quiet()


async def test_the_stream_of_a_session_is_opened_again_on_a_fresh_connection() -> None:
    house = Gatehouse(3)
    owner = house.open_session()
    client = house.listen()
    house.attempts[0].fail(stale=True)
    assert [(attempt.backend, attempt.fresh) for attempt in house.attempts] == [(owner, False), (owner, True)]
    house.attempts[1].fail()
    assert (client.reply.status, len(house.attempts)) == (502, 2)
    house.assert_quiet()


async def test_a_delete_is_not_repeated() -> None:
    house = Gatehouse(2)
    house.open_session()
    client = house.ask(b"", (b"mcp-session-id", b"s1"), method=b"DELETE")
    house.attempts[0].fail(stale=True)
    assert (client.verdict, len(house.attempts)) == ((502, "upstream_lost"), 1)


async def _all_refused(house: Gatehouse, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        for number in range(count):
            while len(house.attempts) <= number:
                await asyncio.sleep(0.01)
            house.attempts[number].fail("refused")


async def test_the_owner_of_a_session_gets_a_moment_and_then_it_is_a_503() -> None:
    house = Gatehouse(3)
    owner = house.open_session()
    client = house.call()
    await _all_refused(house, 1 + len(PIN_RETRY_S))
    assert client.verdict == (503, "backend_unavailable")
    assert client.reply.one(b"retry-after") == b"1"
    assert set(house.tried) == {owner}
    assert len(house.tried) == 1 + len(PIN_RETRY_S)
    assert house.store.count("pool") == 1, "it may come back"
    house.assert_quiet()


async def test_the_owner_of_a_session_that_comes_back_in_time_answers() -> None:
    house = Gatehouse(3)
    house.open_session()
    client = house.call()
    await _all_refused(house, 1)
    async with asyncio.timeout(PATIENCE_S):
        while len(house.attempts) < 2:
            await asyncio.sleep(0.01)
    house.attempts[1].answer(200, b"{}")
    assert client.reply.status == 200
    assert all(backend.unreachable_since_s is None for backend in house.backends)
    house.assert_quiet()


async def test_a_client_that_leaves_during_that_moment_ends_it() -> None:
    house = Gatehouse(2)
    house.open_session()
    client = house.call()
    house.attempts[0].fail("refused")
    assert client.exchange is not None
    timer = client.exchange.pending
    client.leave()
    house.assert_quiet()
    assert timer is not None
    assert timer.cancelled()
    assert (house.record.ended_by, house.record.phase) == (Fault.CLIENT, Phase.ROUTE)


async def lost(house: Gatehouse, method: bytes) -> Client:
    owner = house.find(house.open_session())
    for ago_s in (10.1, 5.0, 0.5):
        owner.refused(clock.now() - ago_s)
    client = house.ask(legacy("ping") if method == b"POST" else b"", (b"mcp-session-id", b"s1"), method=method)
    house.take().fail("refused")
    return client


@pytest.mark.parametrize("method", [b"POST", b"GET"])
async def test_a_session_whose_owner_was_unreachable_for_long_is_unknown_for_good(method: bytes) -> None:
    house = Gatehouse(2)
    client = await lost(house, method)
    assert client.verdict == (404, "session_not_found")
    assert (house.store.count("pool"), sum(backend.sessions for backend in house.backends)) == (0, 0)
    again = house.call()
    assert again.verdict == (404, "session_not_found")
    assert again.reply.body == house.call(b"never-known").reply.body, "nothing can be learnt from it"
    assert house.attempts == []
    house.assert_quiet()


async def test_the_delete_of_a_lost_session_is_done() -> None:
    house = Gatehouse(2)
    client = await lost(house, b"DELETE")
    assert (client.reply.status, client.reply.body, house.store.count("pool")) == (204, b"", 0)
    house.assert_quiet()


async def test_two_failures_long_apart_are_not_a_long_failure() -> None:
    """A backend that has failed is looked for until it is back, also without any traffic; so its
    next failure is the first one again, and nobody loses a session for it."""
    house = Gatehouse(2)
    owner = house.find(house.open_session())
    owner.refused(clock.now() - 3600)
    house.gateway.sweep(clock.now())
    await settle()
    assert [transport.probes for transport in house.transports.values() if transport.probes] == [1]
    client = house.call()
    house.attempts[0].fail("refused")
    assert client.verdict != (404, "session_not_found")
    client.leave()
    house.assert_quiet()


async def test_a_backend_that_stays_away_is_looked_for_now_and_then() -> None:
    house = Gatehouse(1)
    backend = house.backends[0]
    transport = house.transports[backend.id]
    transport.is_up = False
    backend.refused(clock.now())
    since_s = backend.unreachable_since_s
    for seconds in (0.0, 0.5, 1.0):
        house.gateway.sweep(clock.now() + seconds)
    await settle()
    assert transport.probes == 0, "not at once"
    for number in range(3):
        house.gateway.sweep(clock.now() + AVOID_S + 0.1)
        house.gateway.sweep(clock.now() + AVOID_S + 0.1)
        await settle()
        assert transport.probes == number + 1, "one at a time"
    assert backend.unreachable_since_s == since_s
    transport.is_up = True
    house.gateway.sweep(clock.now() + AVOID_S + 0.1)
    await settle()
    assert backend.unreachable_since_s is None
    house.assert_quiet()


@pytest.mark.parametrize("kind", ["unresolved", "exhausted", "lost", "invalid", "timeout"])
async def test_only_a_failed_connect_says_that_a_backend_is_away(kind: str) -> None:
    """Not a resolver that fails, not a lack of descriptors, not a broken answer."""
    house = Gatehouse(2)
    house.ask(*modern("tools/call"))
    house.attempts[0].fail(kind)
    assert all(backend.unreachable_since_s is None for backend in house.backends)
