"""What a request says twice, in its head and in its body, must be the same."""

from __future__ import annotations

import json

import pytest

from mcp_proxy.envelope import parse
from mcp_proxy.headers import HeaderError, read_request
from mcp_proxy.routing import Aim, Era, Plan, plan_post
from mcp_proxy.wire import Rejection
from tests.unit.messages import (
    LEGACY,
    MISMATCH,
    MODERN,
    UNKNOWN,
    message,
    post,
    refused,
)

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
