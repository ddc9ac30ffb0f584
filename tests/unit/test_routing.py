"""The routing decision, row by row: heads and bodies as bytes in, a plan or a rejection out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy.envelope import EnvelopeError, parse
from mcp_proxy.headers import HeaderError, RequestHead, read_request
from mcp_proxy.replies import TABLE
from mcp_proxy.routing import Aim, Era, Plan, plan_delete, plan_get, plan_post
from mcp_proxy.wire import Rejection

MODERN = "2026-07-28"
LEGACY = ("2024-10-07", "2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
UNKNOWN = ("2027-01-01", "", "2025-11-25, 2026-07-28", "2026-07-28 ", "v1")

META_VERSION = "io.modelcontextprotocol/protocolVersion"


def head(**fields: str) -> RequestHead:
    """``mcp_name="x"`` stands for the line ``mcp-name: x``; ``pv`` and ``sid`` for the two common ones."""
    names = {"pv": "mcp-protocol-version", "sid": "mcp-session-id"}
    lines = [
        (names.get(key, key.replace("_", "-")).encode(), value.encode()) for key, value in fields.items()
    ]
    return read_request([(b"host", b"localhost"), *lines])


def message(method: str, *, claim: str | None = None, id: object = 1, **params: Any) -> dict[str, Any]:
    """A request; ``id=None`` makes it a notification. ``claim``: the version in ``_meta``."""
    if claim is not None:
        params["_meta"] = {META_VERSION: claim}
    text: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
    return text if id is None else text | {"id": id}


def post(body: object, **fields: str) -> Plan | Rejection:
    return plan_post(head(**fields), parse(json.dumps(body, ensure_ascii=False).encode()))


def modern(method: str, **params: Any) -> Plan | Rejection:
    """A correct modern request."""
    mirrored = {"mcp_method": method}
    if method in ("tools/call", "prompts/get"):
        mirrored["mcp_name"] = params.setdefault("name", "echo")
    if method == "resources/read":
        mirrored["mcp_name"] = params.setdefault("uri", "file:///a")
    return post(message(method, claim=MODERN, **params), pv=MODERN, **mirrored)


def refused(outcome: Plan | Rejection) -> tuple[int, int | None, bytes]:
    """Status, JSON-RPC code and echoed id."""
    assert isinstance(outcome, Rejection)
    template = TABLE[outcome.reason]
    return template.status, template.code, outcome.id


MISMATCH = (400, -32020, b"1")
INVALID = (400, -32600, b"null")


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


# --- the classifier: header and body must agree ---------------------------------------------------


@pytest.mark.parametrize("pv", [*LEGACY, *UNKNOWN])
def test_a_modern_claim_under_another_header_is_a_mismatch(pv: str) -> None:
    assert refused(post(message("tools/list", claim=MODERN), pv=pv)) == MISMATCH


def test_a_claim_without_any_header_is_a_mismatch() -> None:
    assert refused(post(message("tools/list", claim=MODERN))) == MISMATCH
    assert refused(post(message("tools/list", claim="2025-06-18"), sid="s1")) == MISMATCH


@pytest.mark.parametrize("claim", ["2025-06-18", "", "2026-07-28x", "\uff12026-07-28"])
def test_a_modern_header_over_another_claim_is_a_mismatch(claim: str) -> None:
    outcome = post(message("tools/list", claim=claim), pv=MODERN, mcp_method="tools/list")

    assert refused(outcome) == MISMATCH


def test_a_session_era_claim_that_differs_from_its_header_is_a_mismatch() -> None:
    assert refused(post(message("tools/list", claim="2025-06-18"), pv="2025-11-25")) == MISMATCH


def test_stray_reserved_keys_do_not_make_a_request_modern() -> None:
    body = message("tools/list", _meta={"io.modelcontextprotocol/clientInfo": {"name": "x", "version": "1"}})

    assert post(body, pv="2025-11-25", sid="s1") == Plan(Era.LEGACY, Aim.SESSION)


def test_a_matching_claim_in_the_session_era_changes_nothing() -> None:
    assert post(message("tools/list", claim="2025-11-25"), pv="2025-11-25") == Plan(Era.LEGACY, Aim.ANY)


@pytest.mark.parametrize("pv", UNKNOWN)
def test_an_unknown_version_is_modern_so_that_a_backend_can_name_what_it_supports(pv: str) -> None:
    with_claim = post(message("tools/call", claim=pv, name="echo"), pv=pv, sid="s1")
    bare = post(message("initialize"), pv=pv)

    assert with_claim == bare == Plan(Era.MODERN, Aim.ANY)


def test_an_unknown_version_is_held_to_the_headers_that_it_sends() -> None:
    outcome = post(message("tools/call", name="rm"), pv="2027-01-01", mcp_method="tools/list")

    assert refused(outcome) == MISMATCH


@pytest.mark.parametrize("method", ["tools/list", "initialize", "vendor/x"])
def test_a_modern_request_without_its_claim_is_refused_with_its_id(method: str) -> None:
    # a body-first server would take it for a message of the session era
    outcome = post(message(method), pv=MODERN, mcp_method=method, sid="s1")

    assert refused(outcome) == (400, -32602, b"1")


# --- mirrored headers against the body ------------------------------------------------------------


def call(name: str, *, mcp_name: bytes | None, mcp_method: bytes | None = b"tools/call") -> Plan | Rejection:
    """A modern ``tools/call`` of ``name`` with mirrored headers as given."""
    lines = [(b"host", b"localhost"), (b"mcp-protocol-version", MODERN.encode())]
    if mcp_method is not None:
        lines.append((b"mcp-method", mcp_method))
    if mcp_name is not None:
        lines.append((b"mcp-name", mcp_name))
    body = json.dumps(message("tools/call", claim=MODERN, name=name)).encode()
    return plan_post(read_request(lines), parse(body))


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("echo", b"echo"),
        ("with space", b"with space"),
        ("evil", b"=?base64?ZXZpbA==?="),
        ("München", b"=?base64?TcO8bmNoZW4=?="),
        ("", b""),
        (" edge ", b"=?base64?IGVkZ2Ug?="),
        ("a" * 8000, b"a" * 8000),
    ],
)
def test_a_name_that_its_header_mirrors_passes(name: str, header: bytes) -> None:
    assert call(name, mcp_name=header) == Plan(Era.MODERN, Aim.ANY)


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("delete_all", b"read_file"),
        ("echo", None),
        ("echo", b""),
        ("", b"echo"),
        ("echo", b"Echo"),
        ("a", b"a, b"),
        ("a, b", b"a,b"),
        ("evil", b"=?base64?ZXZpbA=?="),
        ("evil", b"=?base64?ZXZpbA?="),
        ("evil", b"=?base64?ZXZpbB==?="),
        ("evil", b"=?BASE64?ZXZpbA==?="),
        ("evil", b"=?base64?ZXZpbA==?= "),
        ("evil", b"=?base64?ZXZpbA=="),
        ("evil", b"=?base64??="),
        ("??>", b"=?base64?Pz8-?="),
        ("evil", b"=?base64?PT9iYXNlNjQ/WlhacGJBPT0/PQ==?="),
        ("evil", b"=?base64?/////w==?="),
        ("\uff45vil", b"evil"),
        ("tools", b"tool\x73\x00"),
        ("echo", b"echo\t"),
        ("a" * 8193, b"a" * 8193),
    ],
)
def test_a_name_that_its_header_does_not_mirror_is_refused(name: str, header: bytes | None) -> None:
    assert refused(call(name, mcp_name=header)) == MISMATCH


@pytest.mark.parametrize(
    "header", [None, b"", b"tools/list", b"Tools/Call", b"tools/call ", b"tools/call, tools/list"]
)
def test_a_method_that_its_header_does_not_mirror_is_refused(header: bytes | None) -> None:
    assert refused(call("echo", mcp_name=b"echo", mcp_method=header)) == MISMATCH


def test_methods_are_compared_as_bytes() -> None:
    # one Latin-1 byte is not the two bytes that the body has
    body = json.dumps(message("tools/\u00e9", claim=MODERN), ensure_ascii=False).encode()
    lines = [(b"mcp-protocol-version", MODERN.encode()), (b"mcp-method", b"tools/\xe9")]
    outcome: Plan | Rejection
    try:
        outcome = plan_post(read_request(lines), parse(body))
    except HeaderError as error:
        outcome = Rejection(error.reason)

    assert isinstance(outcome, Rejection)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("prompts/get", {"name": "greet"}),
        ("resources/read", {"uri": "file:///a"}),
        ("tools/call", {"name": "echo"}),
    ],
)
def test_the_three_core_methods_must_mirror_their_name(method: str, params: dict[str, str]) -> None:
    outcome = post(message(method, claim=MODERN, **params), pv=MODERN, mcp_method=method)

    assert refused(outcome) == MISMATCH


@pytest.mark.parametrize("method", ["prompts/get", "resources/read", "tools/call"])
def test_a_name_header_without_a_name_in_the_body_is_refused(method: str) -> None:
    # python-sdk#3269: servers accept it
    outcome = post(message(method, claim=MODERN), pv=MODERN, mcp_method=method, mcp_name="echo")

    assert refused(outcome) == MISMATCH


def test_a_body_without_its_name_is_left_to_the_backend() -> None:
    assert post(message("tools/call", claim=MODERN), pv=MODERN, mcp_method="tools/call") == Plan(
        Era.MODERN, Aim.ANY
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"mcp_method": "tools/list"},
        {"mcp_name": "read"},
        {"mcp_method": "tools/call", "mcp_name": "read"},
    ],
)
@pytest.mark.parametrize("pv", ["2025-11-25", None])
def test_forged_mirrors_are_refused_in_the_session_era_too(pv: str | None, fields: dict[str, str]) -> None:
    # whoever judges by these headers behind us would be deceived
    version = {} if pv is None else {"pv": pv}

    assert refused(post(message("tools/call", name="delete_all"), **fields, **version)) == MISMATCH


def test_true_mirrors_are_welcome_in_the_session_era() -> None:
    outcome = post(
        message("tools/call", name="echo"), pv="2025-11-25", sid="s", mcp_method="tools/call", mcp_name="echo"
    )

    assert outcome == Plan(Era.LEGACY, Aim.SESSION)


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
