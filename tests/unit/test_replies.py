"""What the proxy says itself: status, headers and body, byte for byte."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mcp_proxy
from mcp_proxy.replies import TABLE, render
from mcp_proxy.wire import Rejection

CATALOGUE = [
    ("bad_request", 400, -32600),
    ("request_timeout", 408, -32600),
    ("body_too_large", 413, -32600),
    ("uri_too_long", 414, -32600),
    ("expectation_failed", 417, -32600),
    ("head_too_large", 431, -32600),
    ("not_implemented", 501, -32600),
    ("http_version", 505, -32600),
    ("forbidden_origin", 403, -32600),
    ("not_found", 404, None),
    ("method_not_allowed", 405, -32600),
    ("unsupported_media_type", 415, -32600),
    ("misdirected", 421, -32600),
    ("loop_detected", 508, -32603),
    ("parse_error", 400, -32700),
    ("invalid_request", 400, -32600),
    ("header_mismatch", 400, -32020),
    ("missing_meta", 400, -32602),
    ("missing_session", 400, -32600),
    ("session_not_found", 404, -32600),
    ("too_many_requests", 429, -32603),
    ("overloaded", 503, -32603),
    ("draining", 503, -32603),
    ("store_unavailable", 503, -32603),
    ("backend_unavailable", 503, -32603),
    ("upstream_lost", 502, -32603),
    ("upstream_invalid", 502, -32603),
    ("session_conflict", 502, -32603),
    ("credentials_refused", 502, -32603),
    ("upstream_timeout", 504, -32603),
    ("internal_error", 500, -32603),
]


def test_the_catalogue_is_complete() -> None:
    assert {reason for reason, _, _ in CATALOGUE} == set(TABLE)


@pytest.mark.parametrize(("reason", "status", "code"), CATALOGUE)
def test_each_reason_has_its_status_and_code(reason: str, status: int, code: int | None) -> None:
    got, headers, body = render(Rejection(reason, "A detail.", b"7"))

    assert got == status
    assert (b"mcp-proxy-reason", reason.encode()) in headers
    assert (b"cache-control", b"no-store") in headers
    if code is not None:
        assert (b"content-type", b"application/json") in headers
        answer = json.loads(body)
        assert answer["id"] == 7
        assert answer["error"]["code"] == code
        assert answer["error"]["data"]["reason"] == reason


@pytest.mark.parametrize("reason", list(TABLE))
def test_503_and_429_say_when_to_come_back_and_nothing_else_does(reason: str) -> None:
    status, headers, _ = render(Rejection(reason))
    retry_after = [value for name, value in headers if name == b"retry-after"]

    assert [value.isdigit() for value in retry_after] == ([True] if status in (429, 503) else [])


@pytest.mark.parametrize("reason", list(TABLE))
def test_clients_learn_whether_their_request_may_have_run(reason: str) -> None:
    _, _, body = render(Rejection(reason))
    may_have_run = b'"maybeExecuted":true' in body

    assert may_have_run is (reason in ("upstream_lost", "upstream_invalid", "upstream_timeout"))


def test_an_unknown_path_does_not_answer_like_an_mcp_server() -> None:
    status, headers, body = render(Rejection("not_found"))

    assert status == 404
    assert headers == [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"mcp-proxy-reason", b"not_found"),
    ]
    assert body == b"No MCP endpoint at this path\n"


def test_unknown_expired_and_foreign_sessions_have_one_body() -> None:
    assert render(Rejection("session_not_found", id=b"3"))[2] == (
        b'{"jsonrpc":"2.0","id":3,"error":{"code":-32600,"message":"Session not found",'
        b'"data":{"reason":"session_not_found"}}}'
    )


@pytest.mark.parametrize(
    "id", [b"null", b"0", b"-1", b"9007199254740992", b'"a"', b'"\\u0061\\/"', b'"M\xc3\xbcnchen"', b'""']
)
def test_the_id_is_echoed_byte_for_byte(id: bytes) -> None:
    _, _, body = render(Rejection("header_mismatch", id=id))

    assert body.startswith(b'{"jsonrpc":"2.0","id":%b,"error":{' % id)
    assert json.loads(body)["id"] == json.loads(id)


def test_the_id_is_never_left_out() -> None:
    # Python clients ignore a JSON-RPC error without the member
    assert b'"id":null,' in render(Rejection("parse_error"))[2]


@settings(deadline=None)
@given(st.text())
def test_any_detail_is_quoted_and_an_empty_one_left_out(detail: str) -> None:
    detail = detail.encode("utf-8", "replace").decode()
    _, _, body = render(Rejection("bad_request", detail))
    data = json.loads(body)["error"]["data"]

    assert data == ({"reason": "bad_request", "detail": detail} if detail else {"reason": "bad_request"})


def test_further_headers_come_last_and_leave_the_table_alone() -> None:
    extra = [(b"allow", b"POST"), (b"vary", b"Origin")]
    first = render(Rejection("method_not_allowed", extra=extra))

    assert first[1][-2:] == extra
    assert render(Rejection("method_not_allowed"))[1] == first[1][:-2]


def test_no_code_is_minted_from_a_reserved_range() -> None:
    # BI, Error Codes: -32020 is MCP's own; the standard five are JSON-RPC's
    standard = {-32700, -32600, -32601, -32602, -32603}
    codes = {template.code for template in TABLE.values() if template.code is not None}

    assert codes <= standard | {-32020}


def test_no_answer_is_taken_for_an_unknown_method() -> None:
    assert all(template.code != -32601 for template in TABLE.values())


def _reasons_in_the_source() -> list[tuple[str, str]]:
    found = []
    for path in sorted(Path(mcp_proxy.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                first = node.args[0]
                if node.func.id in ("Rejection", "_Refused") and isinstance(first, ast.Constant):
                    found.append((path.name, str(first.value)))
    return found


def test_every_reason_that_the_package_gives_is_in_the_table() -> None:
    given_reasons = _reasons_in_the_source()

    assert len(given_reasons) > 20
    assert [(file, reason) for file, reason in given_reasons if reason not in TABLE] == []
