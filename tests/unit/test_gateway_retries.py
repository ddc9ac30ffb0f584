"""Where a request goes, and when it may go a second time: never if it may have run."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_proxy import clock
from mcp_proxy.errors import Fault, Phase
from mcp_proxy.gateway import DISCOVER_HEAD_S, REPEAT_LIMIT
from tests.unit.gatehouse import JSON, Gatehouse, initialize, legacy, modern

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
    [
        ("lost", 502, "upstream_lost"),
        ("invalid", 502, "upstream_invalid"),
        ("timeout", 504, "upstream_timeout"),
    ],
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
