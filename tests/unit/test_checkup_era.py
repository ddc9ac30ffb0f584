"""Which backends speak 2026-07-28: who is asked when, and what is said when they differ."""

from __future__ import annotations

import json
import logging

import pytest

from mcp_proxy import __version__
from mcp_proxy.checkup import AT_ONCE, ERA_S, LOOK_S, NAMES_LIMIT, UNTOLD_S
from mcp_proxy.clock import TICK_S
from tests.unit.checkups import EVERY_S, LEGACY, MODERN, Clinic, rule
from tests.unit.fakes import settle


async def test_the_question_is_well_formed_and_makes_no_session() -> None:
    clinic = Clinic("a", era=True)
    outgoing = (await clinic.take()).outgoing
    assert (outgoing.method, outgoing.target) == (b"POST", b"/mcp")
    assert list(outgoing.headers) == [
        (b"content-type", b"application/json"),
        (b"accept", b"application/json, text/event-stream"),
        (b"accept-encoding", b"identity"),
        (b"user-agent", f"mcp-proxy/{__version__}".encode()),
        (b"mcp-protocol-version", b"2026-07-28"),
        (b"mcp-method", b"server/discover"),
        (b"mcp-session-id", b"none"),
    ]
    assert json.loads(outgoing.body) == {
        "jsonrpc": "2.0",
        "id": "mcp-proxy",
        "method": "server/discover",
        "params": {
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {},
                "io.modelcontextprotocol/clientInfo": {"name": "mcp-proxy", "version": __version__},
            }
        },
    }


async def test_it_carries_the_credentials_of_the_pool() -> None:
    clinic = Clinic("a", era=True, authorization=b"Bearer secret")
    assert (await clinic.take()).outgoing.headers[-1] == (b"authorization", b"Bearer secret")


async def test_all_are_asked_at_once_and_then_in_turn() -> None:
    clinic = Clinic("ab", era=True)
    taken = await clinic.taken(TICK_S)
    taken["a"].answer(200, MODERN)
    taken["b"].answer(404, LEGACY)
    await settle()
    assert (clinic["a"].is_modern, clinic["b"].is_modern) == (True, False)
    assert await clinic.taken(ERA_S - TICK_S) == {}
    assert set(await clinic.taken(UNTOLD_S + TICK_S)) == {"a", "b"}


@pytest.mark.parametrize("what", ["timeout", "refused", "500", "401", "redirect"])
async def test_what_was_known_stays_when_there_is_no_telling_answer(what: str) -> None:
    clinic = Clinic("a", era=True)
    (await clinic.taken(TICK_S))["a"].answer(200, MODERN)
    attempt = (await clinic.taken(ERA_S + UNTOLD_S))["a"]
    if what in ("timeout", "refused"):
        attempt.fail(what)
    else:
        attempt.answer({"500": 500, "401": 401, "redirect": 307}[what], LEGACY)
    await settle()
    assert clinic["a"].is_modern is True
    assert (clinic["a"].unreachable_since_s is None) is (what != "refused")


async def test_one_whose_era_is_not_known_is_asked_more_often() -> None:
    """It is starting."""
    clinic = Clinic("a", era=True)
    (await clinic.taken(TICK_S))["a"].answer(503, b"")
    for _ in range(3):
        attempt = (await clinic.taken(UNTOLD_S))["a"]
        attempt.answer(503, b"")
    (await clinic.taken(UNTOLD_S))["a"].answer(200, MODERN)
    await settle()
    assert clinic["a"].is_modern is True
    assert await clinic.taken(ERA_S - UNTOLD_S) == {}


async def test_one_that_comes_is_asked_soon() -> None:
    clinic = Clinic("a", era=True)
    (await clinic.taken(TICK_S))["a"].answer(200, MODERN)
    clinic.come("b")
    assert set(await clinic.taken(LOOK_S)) == {"b"}


async def test_one_that_comes_back_is_asked_soon() -> None:
    """With another version, perhaps."""
    clinic = Clinic("ab", era=True)
    for attempt in (await clinic.taken(TICK_S)).values():
        attempt.answer(404, LEGACY)
    await settle()
    clinic.pool.refused(clinic["a"])
    assert await clinic.taken(LOOK_S) == {}
    clinic.pool.reached(clinic["a"])
    (await clinic.taken(LOOK_S))["a"].answer(200, MODERN)
    await settle()
    assert clinic["a"].is_modern is True
    assert await clinic.taken(LOOK_S) == {}, "once"


async def test_one_that_comes_back_while_it_is_asked_is_asked_again() -> None:
    clinic = Clinic("a", era=True)
    before = (await clinic.taken(TICK_S))["a"]
    clinic.pool.refused(clinic["a"])
    clinic.pool.reached(clinic["a"])
    after = (await clinic.taken(LOOK_S))["a"]
    assert before.is_cancelled
    after.answer(200, MODERN)
    await settle()
    assert clinic["a"].is_modern is True


async def test_many_that_come_together_are_asked_a_bounded_number_at_once() -> None:
    clinic = Clinic(AT_ONCE + 5, era=True)
    first = await clinic.taken(1.0)
    assert len(first) == AT_ONCE
    for attempt in first.values():
        attempt.answer(200, MODERN)
    await settle()
    assert len(await clinic.taken(1.0)) == 5


async def test_a_check_with_discover_asks_for_the_era_too() -> None:
    clinic = Clinic("a", rule("discover", fall=1), era=True)
    (await clinic.taken(TICK_S))["a"].answer(200, MODERN)
    await settle()
    assert (clinic["a"].is_modern, clinic["a"].is_healthy) == (True, True)
    (await clinic.taken(EVERY_S))["a"].answer(404, LEGACY)
    await settle()
    assert clinic["a"].is_modern is False
    (await clinic.taken(EVERY_S))["a"].answer(500, MODERN)
    await settle()
    assert (clinic["a"].is_modern, clinic["a"].is_healthy) == (False, False)


async def test_other_checks_and_the_question_for_the_era_are_independent() -> None:
    clinic = Clinic("a", rule("tcp"), era=True)
    (await clinic.taken())["a"].answer(200, MODERN)
    await clinic.wait()
    assert clinic.probes() == [2]
    assert clinic.attempts == []


# --- when they differ -----------------------------------------------------------------------------


async def answered(clinic: Clinic, **eras: bool | None) -> None:
    """Everybody is asked again, and answers so."""
    bodies = {True: (200, MODERN), False: (400, LEGACY), None: (503, b"")}
    for host, attempt in (await clinic.taken(ERA_S + UNTOLD_S)).items():
        attempt.answer(*bodies[eras[host]])
    await clinic.wait(LOOK_S + TICK_S)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [record.getMessage() for record in caplog.records if "2026" in record.getMessage()]
    said += [record.getMessage() for record in caplog.records if "agree" in record.getMessage()]
    caplog.clear()
    return said


async def test_backends_that_differ_are_named_once_and_so_is_the_end_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "mcp_proxy")
    clinic = Clinic("abc", era=True)
    await answered(clinic, a=False, b=False, c=False)
    assert lines(caplog) == []
    assert clinic.checkup.disagreement() == ""
    for _ in range(2):
        await answered(clinic, a=True, b=False, c=False)
        assert clinic.checkup.disagreement() == "2026-07-28 is spoken by 1 and not by 2 of its backends"
    assert lines(caplog) == [
        "pool pool: backends differ: 2026-07-28 is spoken by http://a:8000/mcp "
        "but not by http://b:8000/mcp, http://c:8000/mcp"
    ]
    await answered(clinic, a=True, b=True, c=False)
    assert len(lines(caplog)) == 1
    await answered(clinic, a=True, b=True, c=True)
    assert lines(caplog) == ["pool pool: backends agree about their era again"]
    assert clinic.checkup.disagreement() == ""


async def test_those_of_unknown_era_are_counted_when_others_differ() -> None:
    clinic = Clinic("abc", era=True)
    await answered(clinic, a=True, b=None, c=None)
    assert clinic.checkup.disagreement() == ""
    await answered(clinic, a=True, b=False, c=None)
    assert (
        clinic.checkup.disagreement()
        == "2026-07-28 is spoken by 1 and not by 1 of its backends, of 1 it is not known"
    )


async def test_one_that_leaves_is_no_disagreement() -> None:
    clinic = Clinic("ab", era=True)
    await answered(clinic, a=True, b=False)
    assert clinic.checkup.disagreement()
    clinic.pool.drain(clinic["b"], "operator", 3600.0)
    assert clinic.checkup.disagreement() == ""


async def test_a_line_names_so_many_and_counts_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    clinic = Clinic(NAMES_LIMIT + 3, era=True)
    for host, attempt in (await clinic.taken(1.0)).items():
        attempt.answer(*((200, MODERN) if host == "0" else (400, LEGACY)))
    await clinic.wait(LOOK_S + TICK_S)
    (line,) = lines(caplog)
    assert line.count("http://") == 1 + NAMES_LIMIT
    assert line.endswith(f"http://{NAMES_LIMIT}:8000/mcp and 2 more")


async def test_nobody_differs_where_nobody_asks() -> None:
    clinic = Clinic("ab", rule())
    clinic.pool.learn_era(clinic["a"], True)
    clinic.pool.learn_era(clinic["b"], False)
    assert clinic.checkup.disagreement() == ""
