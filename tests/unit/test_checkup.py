"""Active checks: when, how many, what is sent, and what becomes of the results."""

from __future__ import annotations

import asyncio

import pytest

from mcp_proxy import __version__
from mcp_proxy.checkup import AT_ONCE, LOOK_S
from mcp_proxy.clock import TICK_S
from tests.unit.checkups import EVERY_S, MODERN, Clinic, rule
from tests.unit.fakes import settle, until

# --- when -----------------------------------------------------------------------------------------


async def test_each_backend_is_checked_once_in_a_round() -> None:
    clinic = Clinic("abc", rule())
    for round in range(1, 5):
        await clinic.wait()
        assert clinic.probes() == [round] * 3


async def test_the_checks_of_many_backends_are_spread_over_the_round() -> None:
    clinic = Clinic(500, rule())
    await clinic.wait(TICK_S)
    ticks = []
    for _ in range(round(2 * EVERY_S / TICK_S)):
        before = sum(clinic.probes())
        await clinic.wait(TICK_S)
        ticks.append(sum(clinic.probes()) - before)
    assert clinic.probes() == [2] * 500
    assert max(ticks) <= 2 * 500 * TICK_S / EVERY_S


async def test_one_that_comes_is_checked_within_a_round() -> None:
    clinic = Clinic("a", rule())
    await clinic.wait()
    clinic.come("b")
    await clinic.wait(LOOK_S + EVERY_S)
    assert clinic.transports["b"].probes >= 1


async def test_a_check_that_takes_long_is_not_joined_by_a_second() -> None:
    clinic = Clinic("a", rule())
    gate = clinic.transports["a"].gate = asyncio.Event()
    await clinic.wait(10 * EVERY_S)
    assert clinic.probes() == [1]
    gate.set()
    await clinic.wait()
    assert clinic.probes() == [2]


async def test_no_more_than_a_bounded_number_runs_at_once_and_nobody_is_left_out() -> None:
    clinic = Clinic(AT_ONCE + 9, rule())
    gate = asyncio.Event()
    for transport in clinic.transports.values():
        transport.gate = gate
    await clinic.wait(3 * EVERY_S)
    assert sum(clinic.probes()) == AT_ONCE == len(clinic.tasks)
    gate.set()
    await settle()
    await clinic.wait()
    assert min(clinic.probes()) >= 1


async def test_nothing_runs_on_for_a_backend_that_has_left() -> None:
    clinic = Clinic("ab", rule())
    clinic.transports["a"].gate = asyncio.Event()
    await clinic.wait()
    assert len(clinic.tasks) == 1
    await clinic.leave("a")
    await clinic.wait(LOOK_S)
    assert len(clinic.tasks) == 0
    await clinic.wait(3 * EVERY_S)
    assert clinic.transports["a"].probes == 1
    assert clinic.transports["b"].probes >= 3


async def test_a_backend_that_leaves_and_comes_again_is_a_new_one() -> None:
    clinic = Clinic("ab", rule(fall=2))
    clinic.transports["a"].is_up = False
    await clinic.wait()
    await clinic.leave("a")
    clinic.come("a")
    clinic.transports["a"].is_up = False
    await clinic.wait(LOOK_S + TICK_S)
    failures = clinic.transports["a"].probes
    while failures == clinic.transports["a"].probes:
        await clinic.wait(TICK_S)
    assert clinic["a"].is_healthy is (failures + 1 < 2)


async def test_a_check_that_ends_after_its_backend_left_says_nothing() -> None:
    clinic = Clinic("ab", rule("/healthz", fall=1))
    await clinic.wait()
    gone = clinic["a"]
    attempt = next(attempt for attempt in clinic.attempts if attempt.backend == "a")
    await clinic.leave("a")
    attempt.answer(500)
    await settle()
    assert gone.is_healthy


async def test_a_connect_that_ends_after_its_backend_left_says_nothing() -> None:
    clinic = Clinic("a", rule(fall=1))
    gate = clinic.transports["a"].gate = asyncio.Event()
    clinic.transports["a"].is_up = False
    await clinic.wait()
    gone = clinic["a"]
    await clinic.leave("a")
    gate.set()
    await settle()
    assert len(clinic.tasks) == 0
    assert (gone.is_healthy, gone.unreachable_since_s) == (True, None)


async def test_a_task_that_begins_after_its_backend_left_does_nothing() -> None:
    clinic = Clinic("a", rule("/healthz"), era=True)
    clinic.checkup.sweep(EVERY_S)
    clinic.checkup.sweep(2 * EVERY_S)
    assert len(clinic.tasks) == 2
    clinic.pool.update([], "discovery")
    clinic.pool.sweep(1e6)
    clinic.pool.sweep(2e6)
    await settle()
    assert clinic.attempts == []


async def test_one_that_is_stopped_checks_nothing_any_more() -> None:
    clinic = Clinic("ab", rule("/healthz"), era=True)
    await clinic.wait()
    assert len(clinic.tasks) == 4
    clinic.checkup.stop()
    clinic.checkup.stop()
    await settle()
    assert len(clinic.tasks) == 0
    assert all(attempt.is_cancelled for attempt in clinic.attempts)


# --- verdicts -------------------------------------------------------------------------------------


async def test_failures_in_a_row_make_it_unhealthy_and_successes_healthy_again() -> None:
    clinic = Clinic("a", rule(fall=3, rise=2))
    seen = []
    for is_up in (True, False, False, True, False, False, False, True, True):
        clinic.transports["a"].is_up = is_up
        await clinic.wait()
        seen.append(clinic["a"].is_healthy)
    assert seen == [True] * 6 + [False, False, True]


async def test_what_is_known_already_has_to_be_disproved() -> None:
    """Of a checkup with other settings, before a reload."""
    clinic = Clinic("a", rule(rise=2))
    clinic.pool.checked(clinic["a"], False)
    await clinic.wait()
    assert not clinic["a"].is_healthy
    await clinic.wait()
    assert clinic["a"].is_healthy


@pytest.mark.parametrize("is_up", [True, False])
async def test_a_connect_tells_the_pool_whether_it_is_there(is_up: bool) -> None:
    clinic = Clinic("a", rule(fall=10))
    if is_up:
        clinic.pool.refused(clinic["a"])
    clinic.transports["a"].is_up = is_up
    await clinic.wait()
    assert (clinic["a"].unreachable_since_s is None) is is_up
    assert clinic.attempts == [], "nothing is sent"


async def test_a_connect_that_could_not_be_tried_is_no_result() -> None:
    clinic = Clinic("a", rule(fall=1))
    clinic.transports["a"].is_up = None
    await clinic.wait(3 * EVERY_S)
    assert clinic.probes() == [3]
    assert clinic["a"].is_healthy
    assert clinic["a"].unreachable_since_s is None


async def test_a_connect_that_takes_too_long_is_a_failure_but_does_not_mean_that_it_is_away() -> None:
    clinic = Clinic("a", rule(fall=1, timeout_s=0.001))
    clinic.transports["a"].gate = asyncio.Event()
    await clinic.wait()
    await until(lambda: not clinic["a"].is_healthy, 0.001)
    assert clinic["a"].unreachable_since_s is None
    await settle()
    assert len(clinic.tasks) == 0


# --- a path ---------------------------------------------------------------------------------------


async def test_a_path_is_asked_for_with_get_and_without_credentials() -> None:
    clinic = Clinic("a", rule("/healthz?deep=1"), authorization=b"Bearer secret")
    outgoing = (await clinic.take()).outgoing
    assert (outgoing.method, outgoing.target, outgoing.body) == (b"GET", b"/healthz?deep=1", b"")
    assert list(outgoing.headers) == [
        (b"accept", b"*/*"),
        (b"accept-encoding", b"identity"),
        (b"user-agent", f"mcp-proxy/{__version__}".encode()),
    ]


@pytest.mark.parametrize("check", ["/mcp", "/mcp/", "/mcp?x=1"])
async def test_the_mcp_path_is_never_asked_for_with_get(check: str) -> None:
    clinic = Clinic("a", rule(check))
    await clinic.wait()
    assert clinic.attempts == []
    assert clinic.probes() == [1]


@pytest.mark.parametrize(
    ("status", "is_well"),
    [
        (200, True),
        (204, True),
        (299, True),
        (301, False),
        (404, False),
        (429, False),
        (500, False),
        (503, False),
    ],
)
async def test_a_path_is_well_with_2xx(status: int, is_well: bool) -> None:
    clinic = Clinic("a", rule("/healthz", fall=1))
    clinic.pool.refused(clinic["a"])
    (await clinic.take()).answer(status)
    await settle()
    assert clinic["a"].is_healthy is is_well
    assert clinic["a"].unreachable_since_s is None, "it answered"


@pytest.mark.parametrize("check", ["/healthz", "discover"])
@pytest.mark.parametrize(
    ("kind", "is_healthy", "is_there"),
    [
        ("refused", False, False), ("unreached", False, False), ("lost", False, True),
        ("invalid", False, True), ("timeout", False, True), ("exhausted", True, True),
        ("unresolved", True, True),
    ],
)  # fmt: skip
async def test_what_a_failure_says(check: str, kind: str, is_healthy: bool, is_there: bool) -> None:
    clinic = Clinic("a", rule(check, fall=1))
    (await clinic.take()).fail(kind)
    await settle()
    assert clinic["a"].is_healthy is is_healthy
    assert (clinic["a"].unreachable_since_s is None) is is_there


async def test_a_connection_that_had_ended_says_nothing() -> None:
    clinic = Clinic("a", rule("/healthz", fall=1))
    (await clinic.take()).fail("lost", stale=True)
    await settle()
    assert clinic["a"].is_healthy


async def test_a_path_that_hangs_is_a_failure() -> None:
    clinic = Clinic("a", rule("/healthz", fall=1, timeout_s=0.001))
    attempt = await clinic.take()
    await until(lambda: not clinic["a"].is_healthy, 0.001)
    assert attempt.is_cancelled
    assert clinic["a"].unreachable_since_s is None


# --- discover -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "is_well"),
    [
        (200, MODERN, True), (200, b"", True), (400, b"no", True), (404, b"", True), (401, b"", True),
        (429, b"", True), (500, MODERN, False), (503, b"", False),
    ],
)  # fmt: skip
async def test_whatever_answers_discover_is_alive_unless_it_says_5xx(
    status: int, body: bytes, is_well: bool
) -> None:
    clinic = Clinic("a", rule("discover", fall=1))
    (await clinic.take()).answer(status, body)
    await settle()
    assert clinic["a"].is_healthy is is_well
    assert clinic["a"].is_modern is None, "nobody asked for the era"
