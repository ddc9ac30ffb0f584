"""The routing decision, row by row: heads and bodies as bytes in, a plan or a rejection out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.envelope import EnvelopeError
from mcp_proxy.replies import TABLE
from mcp_proxy.routing import Aim, Era, Plan, plan_delete, plan_get
from mcp_proxy.wire import Rejection
from tests.unit.messages import (
    INVALID,
    LEGACY,
    MISMATCH,
    MODERN,
    UNKNOWN,
    head,
    message,
    modern,
    post,
    refused,
)

# --- rows 1 to 3: initialize ----------------------------------------------------------------------


@pytest.mark.parametrize("pv", [None, *LEGACY])
def test_row_1_initialize_may_go_anywhere_and_its_session_is_learnt(pv: str | None) -> None:
    outcome = post(message("initialize"), **({} if pv is None else {"pv": pv}))

    assert outcome == Plan(Era.LEGACY, Aim.NEW_SESSION, repeatable=True)


def test_row_1_initialize_may_claim_a_version_without_a_header() -> None:
    # clients learn the version from its answer; they cannot mirror it yet
    assert post(message("initialize", claim="2025-11-25")) == Plan(
        Era.LEGACY, Aim.NEW_SESSION, repeatable=True
    )


def test_row_2_initialize_with_a_session_sticks_to_it() -> None:
    assert post(message("initialize"), sid="s1") == Plan(Era.LEGACY, Aim.SESSION)


def test_an_initialize_notification_is_not_the_start_of_a_session() -> None:

    outcome = post(message("initialize", id=None))

    assert isinstance(outcome, Rejection) or outcome.aim is Aim.ANY


# --- rows 4 to 8: the session era -----------------------------------------------------------------


@pytest.mark.parametrize("pv", [None, *LEGACY])
@pytest.mark.parametrize(
    "body",
    [
        message("tools/call", name="echo"),
        message("tools/list"),
        message("vendor/unheard-of"),
        message("notifications/initialized", id=None),
        {"jsonrpc": "2.0", "id": 3, "result": {}},
        {"jsonrpc": "2.0", "id": 3, "error": {"code": -1, "message": "no"}},
    ],
)
def test_rows_4_and_6_whatever_names_a_session_goes_to_its_owner(pv: str | None, body: object) -> None:
    outcome = post(body, sid="s1", **({} if pv is None else {"pv": pv}))

    assert outcome == Plan(Era.LEGACY, Aim.SESSION)


@pytest.mark.parametrize("pv", [None, *LEGACY])
@pytest.mark.parametrize(
    "body",
    [
        message("tools/list"),
        message("tools/call", name="echo"),
        message("notifications/initialized", id=None),
        {"jsonrpc": "2.0", "id": 3, "result": {}},
    ],
)
def test_row_7_without_a_session_any_backend_will_do(pv: str | None, body: object) -> None:
    outcome = post(body, **({} if pv is None else {"pv": pv}))

    assert outcome == Plan(Era.LEGACY, Aim.ANY)


def test_row_7_the_session_era_repeats_nothing() -> None:
    outcome = post(message("tools/list"), pv="2025-11-25")

    assert isinstance(outcome, Plan)
    assert not outcome.repeatable


@pytest.mark.parametrize("fields", [{}, {"pv": "2025-03-26"}])
def test_row_8_batches_belong_to_2025_03_26(fields: dict[str, str]) -> None:
    batch = [message("tools/list"), message("notifications/cancelled", id=None)]

    assert post(batch, sid="s1", **fields) == Plan(Era.LEGACY, Aim.SESSION)
    assert post(batch, **fields) == Plan(Era.LEGACY, Aim.ANY)


@pytest.mark.parametrize("pv", [*(pv for pv in LEGACY if pv != "2025-03-26"), MODERN, *UNKNOWN])
def test_row_8_other_revisions_have_no_batches(pv: str) -> None:
    assert refused(post([message("tools/list")], pv=pv, sid="s1")) == INVALID


@pytest.mark.parametrize(
    "claims",
    [
        (MODERN, None),
        (None, MODERN),
        (MODERN, MODERN),
    ],
)
def test_row_8_every_message_of_a_batch_must_be_of_its_era(claims: tuple[str | None, ...]) -> None:
    batch = [message("tools/list", claim=claim) for claim in claims]

    assert refused(post(batch, pv="2025-03-26")) == (400, -32020, b"null")


def test_row_8_messages_of_two_eras_are_not_even_read_as_a_batch() -> None:
    with pytest.raises(EnvelopeError):
        post([message("tools/list", claim=claim) for claim in ("2025-03-26", MODERN)], pv="2025-03-26")


# --- rows 16 to 25: the modern era ----------------------------------------------------------------


def test_row_16_discover_goes_wherever_it_can_be_answered() -> None:
    assert modern("server/discover") == Plan(Era.MODERN, Aim.ANY, repeatable=True, discover=True)


@pytest.mark.parametrize(
    "method",
    [
        "tools/list",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
        "resources/read",
        "prompts/get",
        "completion/complete",
    ],
)
def test_row_17_reads_may_be_repeated(method: str) -> None:
    assert modern(method) == Plan(Era.MODERN, Aim.ANY, repeatable=True)


@pytest.mark.parametrize("member", ["requestState", "inputResponses"])
@pytest.mark.parametrize("method", ["resources/read", "prompts/get"])
def test_row_17_a_read_that_continues_another_is_not_repeated(method: str, member: str) -> None:
    assert modern(method, **{member: None}) == Plan(Era.MODERN, Aim.ANY)


def test_row_18_a_tool_call_is_never_repeated() -> None:
    assert modern("tools/call") == Plan(Era.MODERN, Aim.ANY)
    assert modern("tools/call", requestState="x") == Plan(Era.MODERN, Aim.ANY)


@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
def test_row_19_tasks_may_leave_their_name_header_out(method: str) -> None:
    body = message(method, claim=MODERN, taskId="t1")

    assert post(body, pv=MODERN, mcp_method=method) == Plan(Era.MODERN, Aim.ANY)
    assert post(body, pv=MODERN, mcp_method=method, mcp_name="t1") == Plan(Era.MODERN, Aim.ANY)
    assert post(body, pv=MODERN, mcp_method=method, mcp_name="=?base64?dDE=?=") == Plan(Era.MODERN, Aim.ANY)


@pytest.mark.parametrize("params", [{"taskId": "t1"}, {}])
@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
def test_row_19_a_name_header_that_is_there_must_match(method: str, params: dict[str, str]) -> None:
    body = message(method, claim=MODERN, **params)

    assert refused(post(body, pv=MODERN, mcp_method=method, mcp_name="t2")) == MISMATCH


def test_row_20_a_listen_request_opens_a_stream_anywhere() -> None:
    assert modern("subscriptions/listen") == Plan(Era.MODERN, Aim.ANY, repeatable=True, listens=True)


@pytest.mark.parametrize("method", ["vendor/do", "tasks/list", "ping", "x"])
def test_row_21_unknown_methods_pass_and_are_not_repeated(method: str) -> None:
    assert modern(method) == Plan(Era.MODERN, Aim.ANY)


def test_row_21_an_unknown_method_may_carry_a_name_header() -> None:
    body = message("vendor/do", claim=MODERN, thing="x")

    assert post(body, pv=MODERN, mcp_method="vendor/do", mcp_name="x") == Plan(Era.MODERN, Aim.ANY)
    assert refused(post(body, pv=MODERN, mcp_method="vendor/do", mcp_name="=?base64?!?=")) == MISMATCH


@pytest.mark.parametrize("claim", [None, MODERN])
@pytest.mark.parametrize("fields", [{}, {"mcp_method": "notifications/cancelled"}])
def test_row_22_a_notification_needs_no_mirrors(claim: str | None, fields: dict[str, str]) -> None:
    body = message("notifications/cancelled", id=None, claim=claim)

    assert post(body, pv=MODERN, **fields) == Plan(Era.MODERN, Aim.ANY)


def test_row_22_a_notification_is_held_to_the_headers_that_it_sends() -> None:
    body = message("notifications/cancelled", id=None)

    assert refused(post(body, pv=MODERN, mcp_method="tools/list")) == (400, -32020, b"null")


@pytest.mark.parametrize("method", ["tools/list", "subscriptions/listen", "server/discover"])
def test_row_22_a_notification_is_not_the_request_whose_name_it_bears(method: str) -> None:

    assert post(message(method, id=None, claim=MODERN), pv=MODERN) == Plan(Era.MODERN, Aim.ANY)


@pytest.mark.parametrize("pv", [MODERN, "2027-01-01"])
@pytest.mark.parametrize("outcome", [{"result": {}}, {"error": {"code": -1, "message": "no"}}])
def test_row_23_clients_send_no_responses(pv: str, outcome: dict[str, object]) -> None:
    # the id is the backend's; echoed, it would answer one of the client's own calls
    assert refused(post({"jsonrpc": "2.0", "id": 1, **outcome}, pv=pv)) == INVALID


def test_row_24_a_modern_initialize_makes_no_session() -> None:
    assert modern("initialize") == Plan(Era.MODERN, Aim.ANY)


@pytest.mark.parametrize("method", ["tools/call", "initialize"])
def test_row_25_a_session_means_nothing_in_the_modern_era(method: str) -> None:
    mirrored = {"mcp_name": "echo"} if method == "tools/call" else {}
    body = message(method, claim=MODERN, name="echo")

    assert post(body, pv=MODERN, sid="s1", mcp_method=method, **mirrored) == Plan(Era.MODERN, Aim.ANY)


# --- rows 9 to 15: GET and DELETE -----------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, *({"pv": pv} for pv in LEGACY), {"last_event_id": "7"}])
def test_rows_9_and_10_a_get_with_a_session_opens_its_stream(fields: dict[str, str]) -> None:
    assert plan_get(head(sid="s1", **fields)) == Plan(Era.LEGACY, Aim.SESSION, listens=True)


@pytest.mark.parametrize("fields", [{}, {"pv": "2025-11-25"}, {"last_event_id": "7"}])
def test_rows_11_and_12_a_get_without_a_session_is_answered_here(fields: dict[str, str]) -> None:
    # stateless servers leave it hanging, and clients try again on 400 but not on 405
    outcome = plan_get(head(**fields))

    assert refused(outcome) == (405, -32600, b"null")
    assert isinstance(outcome, Rejection)
    assert [name for name, _ in outcome.extra] == [b"allow"]
    assert b"POST" in outcome.extra[0][1]


@pytest.mark.parametrize("pv", [MODERN, *UNKNOWN])
@pytest.mark.parametrize("plan", [plan_get, plan_delete])
def test_row_13_the_modern_era_has_post_only(plan: Any, pv: str) -> None:
    outcome = plan(head(pv=pv, sid="s1"))

    assert refused(outcome) == (405, -32600, b"null")
    assert b"GET" not in outcome.extra[0][1]
    assert b"DELETE" not in outcome.extra[0][1]


@pytest.mark.parametrize("fields", [{}, *({"pv": pv} for pv in LEGACY)])
def test_rows_14_and_15_a_delete_goes_to_the_owner_of_its_session(fields: dict[str, str]) -> None:
    assert plan_delete(head(sid="s1", **fields)) == Plan(Era.LEGACY, Aim.SESSION, ends_session=True)


def test_row_15_a_delete_without_a_session_is_a_bad_request() -> None:
    assert refused(plan_delete(head())) == (400, -32600, b"null")


# --- whatever comes -------------------------------------------------------------------------------

_versions = st.sampled_from([None, MODERN, *LEGACY, *UNKNOWN])
_methods = st.sampled_from(["initialize", "tools/list", "tools/call", "server/discover", "vendor/x"])


@settings(deadline=None)
@given(
    _methods, _versions, _versions, st.sampled_from([None, "s1"]), st.sampled_from([None, 1]), st.booleans()
)
def test_a_session_is_used_or_learnt_only_if_header_and_body_both_allow_it(
    method: str, pv: str | None, claim: str | None, sid: str | None, id: int | None, is_mirrored: bool
) -> None:
    fields = {key: value for key, value in {"pv": pv, "sid": sid}.items() if value is not None}
    if is_mirrored:
        fields["mcp_method"] = method

    outcome = post(message(method, claim=claim, id=id), **fields)

    if isinstance(outcome, Rejection):
        assert outcome.reason in TABLE
        assert outcome.id == (b"null" if id is None else b"1")
    elif outcome.aim is not Aim.ANY:
        assert outcome.era is Era.LEGACY
        assert pv is None or pv in LEGACY
        assert claim is None or claim == pv or method == "initialize"
    elif outcome.era is Era.MODERN:
        assert pv is not None
        assert pv not in LEGACY
        assert claim is None or claim == pv
