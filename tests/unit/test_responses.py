"""What of a backend's head reaches the client, and what is refused instead."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_proxy.headers import read_facts
from mcp_proxy.responses import adapt
from mcp_proxy.wire import Fields, Header, Rejection

BACKEND = "http://10.0.0.1:8000/mcp"
JSON = (b"content-type", b"application/json")
SESSION = (b"mcp-session-id", b"s1")


def adapted(*lines: Header, status: int = 200, **given: Any) -> Fields | Rejection:
    received = Fields(lines)
    facts = read_facts(received)
    context: dict[str, Any] = {"has_credentials": False, "origin": None, "theirs": b"s1", "ours": b"s1"}
    headers = facts.changed or received
    outcome = adapt(status, headers, facts, backend=BACKEND, route="/weather/mcp", **(context | given))
    assert received == list(lines), "the block may be delivered again with another response"
    return outcome


def test_a_head_that_names_nothing_of_ours_passes_as_it_is() -> None:
    received = Fields([JSON, SESSION, (b"x-a", b"1"), (b"x-a", b"2")])
    facts = read_facts(received)

    outcome = adapt(
        200,
        received,
        facts,
        backend=BACKEND,
        route="/mcp",
        has_credentials=False,
        origin=None,
        theirs=b"s1",
        ours=b"s1",
    )

    assert outcome is received


# --- sessions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 202, 400, 404, 405, 500])
@pytest.mark.parametrize("theirs", [None, b"s2", b"", b"S1"])
@pytest.mark.parametrize("ours", [None, b"s1", b"s2", b"sealed"])
def test_no_session_but_the_expected_one_is_ever_passed_on(
    status: int, theirs: bytes | None, ours: bytes | None
) -> None:
    # servers put throw-away ids on errors, and some clients adopt whatever they see
    assert adapted(JSON, SESSION, (b"x-a", b"1"), status=status, theirs=theirs, ours=ours) == [
        JSON,
        (b"x-a", b"1"),
    ]


def test_the_expected_session_is_passed_on() -> None:
    assert adapted(JSON, SESSION, status=404) == [JSON, SESSION]


@pytest.mark.parametrize("status", [200, 202, 400, 404, 405, 500])
def test_a_session_is_passed_on_under_the_name_that_its_client_knows(status: int) -> None:
    outcome = adapted(JSON, SESSION, (b"x-a", b"1"), status=status, ours=b"sealed")

    assert isinstance(outcome, Fields)
    assert sorted(outcome) == sorted([JSON, (b"x-a", b"1"), (b"mcp-session-id", b"sealed")])


def test_a_client_that_named_no_session_is_told_none() -> None:
    assert adapted(JSON, SESSION, ours=None) == [JSON]


def test_a_head_without_a_session_gets_none() -> None:
    assert adapted(JSON, ours=b"sealed") == [JSON]


def test_a_renamed_head_is_kept_for_one_session_and_not_for_another() -> None:
    """The block comes again with the next answer; that of another session may be the same block."""
    received = Fields([JSON, SESSION, (b"x-a", b"1")])
    facts = read_facts(received)

    first = facts.named(received, b"one")
    second = facts.named(received, b"two")

    assert first == [JSON, (b"mcp-session-id", b"one"), (b"x-a", b"1")]
    assert second == [JSON, (b"mcp-session-id", b"two"), (b"x-a", b"1")]
    assert facts.named(received, b"two") is second
    assert facts.named(received, b"one") == first
    assert received == [JSON, SESSION, (b"x-a", b"1")]


# --- credentials ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_a_backend_that_refuses_our_credentials_starts_no_authorization_flow(status: int) -> None:
    outcome = adapted(
        (b"www-authenticate", b"Bearer resource_metadata=x"), status=status, has_credentials=True
    )

    assert isinstance(outcome, Rejection)
    assert outcome.reason == "credentials_refused"


@pytest.mark.parametrize("status", [401, 403])
def test_a_backend_may_ask_the_client_for_credentials_of_its_own(status: int) -> None:
    challenge = (b"www-authenticate", b"Bearer resource_metadata=x")

    assert adapted(challenge, status=status) == [challenge]


@pytest.mark.parametrize("status", [200, 400, 404, 402, 407])
def test_other_answers_to_our_credentials_pass(status: int) -> None:
    assert adapted(JSON, status=status, has_credentials=True) == [JSON]


# --- redirects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_the_endpoint_points_to_the_route(status: int) -> None:
    outcome = adapted((b"location", b"http://10.0.0.1:8000/mcp?x=1"), JSON, status=status)

    assert isinstance(outcome, Fields)
    assert sorted(outcome) == [JSON, (b"location", b"/weather/mcp?x=1")]


@pytest.mark.parametrize("location", [b"http://10.0.0.2/", b"/mcp/", b"//evil.com/mcp"])
@pytest.mark.parametrize("status", [300, 302, 307, 399])
def test_a_redirect_to_elsewhere_is_refused_without_telling_where(status: int, location: bytes) -> None:
    outcome = adapted((b"location", location), status=status)

    assert isinstance(outcome, Rejection)
    assert outcome.reason == "upstream_invalid"
    assert location.decode() not in outcome.detail


@pytest.mark.parametrize("status", [200, 201, 202, 404])
def test_a_location_that_is_no_redirect_is_dropped_unless_it_is_ours(status: int) -> None:
    assert adapted(JSON, (b"location", b"http://10.0.0.1:8000/jobs/1"), status=status) == [JSON]
    assert adapted(JSON, (b"location", b"/mcp"), status=status) == [JSON, (b"location", b"/weather/mcp")]


def test_a_redirect_without_a_location_passes() -> None:
    assert adapted(JSON, status=304) == [JSON]


# --- browsers -------------------------------------------------------------------------------------


def test_an_allowed_page_may_read_the_answer() -> None:
    outcome = adapted(JSON, (b"vary", b"accept"), origin=b"http://localhost:5173")

    assert isinstance(outcome, Fields)
    assert outcome[:2] == [JSON, (b"vary", b"accept")]
    assert dict(outcome[2:])[b"access-control-allow-origin"] == b"http://localhost:5173"
    assert (b"vary", b"Origin") in outcome


def test_everything_at_once() -> None:
    outcome = adapted(
        (b"content-type", b"text/event-stream"),
        SESSION,
        (b"location", b"mcp"),
        status=308,
        theirs=None,
        origin=b"http://localhost",
    )

    assert isinstance(outcome, Fields)
    fields: dict[bytes, bytes] = dict(outcome)
    assert b"mcp-session-id" not in fields
    assert fields[b"location"] == b"/weather/mcp"
    assert fields[b"access-control-allow-origin"] == b"http://localhost"
    assert fields[b"x-accel-buffering"] == b"no"
