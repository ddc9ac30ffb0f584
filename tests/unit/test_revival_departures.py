"""Sessions that are made anew while backends leave, and what the pool learns from it."""

from __future__ import annotations

import pytest

from mcp_proxy import clock
from mcp_proxy.backends.ejection import Rule
from tests.unit.departing import pass_time, wire, without
from tests.unit.fakes import settle
from tests.unit.gatehouse import (
    SESSION,
)  # fmt: skip
from tests.unit.revivals import TURNS, house_of, is_initialize, revived

# --- sessions are made anew ----------------------------------------------------------------------


async def test_a_backend_that_leaves_while_it_makes_a_session_anew_costs_nobody_a_500(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = house_of(drain_s=0.0)
    wire(house)
    session, owner = await house.begin()
    client = await house.ask_lost(session, owner)
    first = await house.one()
    assert is_initialize(first)
    first.answer(200, b'{"result":{}}', (SESSION, b"u2"))
    without(house, house.find(first.backend), house.find(owner))
    house.pool.sweep(clock.now())

    await settle(TURNS)
    for attempt in [attempt for attempt in house.attempts if not attempt.is_over]:
        attempt.fail()
    await settle(TURNS)
    for attempt in [attempt for attempt in house.attempts if not attempt.is_over]:
        attempt.fail()
    await settle(TURNS)

    assert client.reply.status in (200, 503), client.verdict
    assert [line.message for line in caplog.records if line.levelname == "ERROR"] == []
    house.attempts.clear()
    house.assert_quiet()


async def test_what_a_session_made_anew_says_about_its_backend_is_heard() -> None:
    """A refused connect keeps the next request from going there."""
    house = house_of()
    session, owner = await house.begin()
    client = await house.ask_lost(session, owner)
    first = await house.one()
    first.fail("refused")
    await settle(TURNS)

    refused = house.find(first.backend)
    assert refused.standing.value == "poor"
    assert refused.unreachable_since_s is not None

    third = await revived(house)
    (await house.one()).answer(200, b"{}")
    assert client.reply.status == 200
    assert third not in (owner, refused.id)
    house.assert_quiet()


async def test_a_trial_by_a_session_made_anew_has_a_verdict() -> None:
    house = house_of(eject=Rule(1, 0.0, 0.5))
    session, owner = await house.begin()
    others = [backend for backend in house.backends if backend.id != owner]
    house.pool.answered(others[0], 500)
    house.pool.sweep(clock.now() + 1.0)
    assert others[0].standing.value == "trial"
    await house.ask_lost(session, owner)

    assert await revived(house) == others[0].id

    assert others[0].standing.value == "good"
    (await house.one()).answer(200, b"{}")
    await settle(TURNS)
    house.assert_quiet()


async def test_a_drained_backend_that_disowns_a_session_does_not_get_it_again() -> None:
    house = house_of()
    wire(house)
    session, owner = await house.begin()
    house.pool.drain(house.find(owner), "operator")
    client = house.call(session)
    await settle(TURNS)
    house.take().answer(404, b"{}")
    await settle(TURNS)

    assert await revived(house) != owner
    (await house.one()).answer(200, b"{}")
    assert client.reply.status == 200
    house.assert_quiet()


async def test_sessions_of_a_pool_that_is_all_drained_wait_for_a_backend() -> None:
    house = house_of()
    wire(house)
    session, _ = await house.begin()
    for backend in house.backends:
        house.pool.drain(backend, "operator", 0.0)
    await pass_time(house)

    client = house.call(session)
    await settle(TURNS)

    assert client.verdict == (503, "backend_unavailable")
    assert house.stored(session).backend, "it may be made anew later"
    assert house.attempts == []
    house.assert_quiet()
