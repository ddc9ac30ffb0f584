"""How an exchange is named and described: the conventions for MCP, and nothing that may be a secret."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcp_proxy.errors import Fault, Phase
from mcp_proxy.telemetry.conventions import (
    CALLERS_FAULTS,
    TEXT_LIMIT,
    Outcome,
    clean,
    client_attributes,
    outcome_of,
    server_attributes,
    span_name,
)
from tests.unit.spanrig import END_S, RESULT, TOOL_ERROR, begun, error, record, trace

NOTHING = Outcome()


def server(outcome: Outcome = NOTHING, **facts: Any) -> dict[str, str | int]:
    return server_attributes(record(None, **facts), trace(), outcome)


def client(outcome: Outcome = NOTHING, status: int = 200, **facts: Any) -> dict[str, str | int]:
    found = trace(status=status)
    return client_attributes(record(None, **facts), found, found.attempts[-1], outcome)


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({}, "tools/call echo"),
        ({"method": "prompts/get", "name": "greet"}, "prompts/get greet"),
        ({"method": "resources/read", "name": "file:///etc/passwd"}, "resources/read"),
        ({"method": "tasks/get", "name": "0123abcd"}, "tasks/get"),
        ({"method": "tools/call", "name": ""}, "tools/call"),
        ({"method": "initialize", "name": ""}, "initialize"),
        ({"method": "", "name": "", "http_method": "GET"}, "GET /mcp"),
        ({"method": "", "name": "", "http_method": "DELETE", "route": ""}, "DELETE"),
        ({"method": "", "name": "", "http_method": "other"}, "HTTP /mcp"),
    ],
)
def test_a_span_is_named_for_method_and_target(facts: dict[str, Any], name: str) -> None:
    assert span_name(record(None, **facts)) == name


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\nb", "\u202egnp", "\ud800", "x" * 10_000])
def test_what_a_client_wrote_is_shortened_and_does_nothing_to_a_terminal(name: str) -> None:
    found = [span_name(record(None, name=name)), str(server(name=name)["gen_ai.tool.name"])]
    found += [span_name(record(None, method=name)), str(server(method=name)["mcp.method.name"])]

    for text in found:
        assert text.isprintable()
        assert len(text) <= TEXT_LIMIT
        assert text.encode()


@given(st.text(st.characters()))
def test_whatever_is_cleaned_has_utf_8_and_no_controls(text: str) -> None:
    found = clean(text)

    assert len(found) == min(len(text), TEXT_LIMIT)
    assert found.encode().decode() == found
    assert not any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in found)


# --- attributes --------------------------------------------------------------------------------------------


def test_the_span_of_an_exchange_says_what_the_client_saw_and_where_it_went() -> None:
    assert server() == {
        "mcp.method.name": "tools/call",
        "mcp.protocol.version": "2025-11-25",
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "echo",
        "jsonrpc.request.id": "7",
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/mcp",
        "network.transport": "tcp",
        "network.protocol.name": "http",
        "client.address": "192.0.2.7",
        "mcp_proxy.pool": "weather",
        "mcp_proxy.backend": "b1",
        "mcp_proxy.session": "0123abcd",
        "mcp_proxy.principal": "f" * 32,
        "mcp_proxy.request_id": "rid-1",
        "mcp_proxy.end": "--",
    }


def test_the_span_of_an_attempt_says_who_was_asked() -> None:
    found = client()

    assert (found["server.address"], found["server.port"]) == ("10.0.0.9", 8000)
    assert (found["mcp_proxy.backend"], found["http.response.status_code"]) == ("b1", 200)
    assert (found["mcp.method.name"], found["gen_ai.tool.name"]) == ("tools/call", "echo")
    assert not found.keys() & {"client.address", "mcp_proxy.session", "http.route", "error.type"}


def test_prompts_are_no_tools_and_resources_are_not_named() -> None:
    prompt = server(method="prompts/get", name="greet")
    resource = server(method="resources/read", name="file:///secret")

    assert prompt["gen_ai.prompt.name"] == "greet"
    assert not prompt.keys() & {"gen_ai.tool.name", "gen_ai.operation.name"}
    assert not resource.keys() & {"gen_ai.tool.name", "gen_ai.prompt.name", "gen_ai.operation.name"}
    assert "secret" not in str(resource.values())


@pytest.mark.parametrize(
    ("raw", "shown"),
    [(b"7", "7"), (b'"req-7"', "req-7"), (b'"a\\u000ab"', "a\ufffdb"), (b"-1", "-1"), (b"null", None)],
)
def test_an_id_is_a_text_and_none_is_none(raw: bytes, shown: str | None) -> None:
    found = trace()
    found.rpc_id = raw

    assert server_attributes(record(None), found, NOTHING).get("jsonrpc.request.id") == shown


def test_a_request_without_a_message_has_none_of_its_attributes() -> None:
    found = begun()
    found.rpc_id = b"null"
    facts = {"method": "", "name": "", "http_method": "other", "status": 405, "reason": "not_allowed"}
    found_attributes = server_attributes(record(None, **facts), found, NOTHING)

    assert found_attributes["http.request.method"] == "_OTHER"
    assert found_attributes["mcp_proxy.reason"] == "not_allowed"
    assert not [
        key for key in found_attributes if key.startswith(("gen_ai", "jsonrpc", "mcp.method", "error"))
    ]


# --- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(CALLERS_FAULTS))
def test_a_request_that_could_not_be_served_is_an_error_of_who_asked_only(code: str) -> None:
    outcome = Outcome(code)

    assert "error.type" not in server(outcome)
    assert client(outcome)["error.type"] == code
    assert server(outcome)["rpc.response.status_code"] == client(outcome)["rpc.response.status_code"] == code


@pytest.mark.parametrize("code", ["-32603", "-32000", "-32001", "1"])
def test_any_other_code_is_an_error_of_both(code: str) -> None:
    assert server(Outcome(code))["error.type"] == client(Outcome(code))["error.type"] == code


def test_a_tool_that_failed_is_an_error_of_a_tool_call_only() -> None:
    outcome = Outcome(is_tool_error=True)

    assert server(outcome)["error.type"] == client(outcome)["error.type"] == "tool_error"
    assert "error.type" not in server(outcome, method="prompts/get")
    assert "error.type" not in client(outcome, method="prompts/get")


@pytest.mark.parametrize(
    ("facts", "error"),
    [
        ({"status": 503, "reason": "no_backend"}, "no_backend"),
        ({"status": 502}, "502"),
        ({"status": 404, "reason": "unknown_session", "ended_by": Fault.PROXY}, None),
        ({"status": 404}, None),
        ({"ended_by": Fault.BACKEND, "phase": Phase.BODY}, "backend"),
        ({"ended_by": Fault.TIMEOUT, "phase": Phase.BODY}, "timeout"),
        ({"ended_by": Fault.CLIENT, "phase": Phase.BODY}, None),
        ({"ended_by": Fault.DRAIN, "phase": Phase.BODY}, None),
    ],
)
def test_an_exchange_fails_with_what_is_not_the_clients_fault(
    facts: dict[str, Any], error: str | None
) -> None:
    assert server(**facts).get("error.type") == error


@pytest.mark.parametrize(
    ("status", "ended_by", "error"),
    [
        (404, Fault.NONE, "404"),
        (503, Fault.NONE, "503"),
        (0, Fault.CLIENT, "cancelled"),
        (0, Fault.DRAIN, "drain"),
        (0, Fault.NONE, "_OTHER"),
        (200, Fault.CLIENT, None),
    ],
)
def test_an_attempt_fails_with_its_status_or_without_an_answer(
    status: int, ended_by: Fault, error: str | None
) -> None:
    assert client(status=status, ended_by=ended_by).get("error.type") == error


def test_an_attempt_that_could_not_be_made_says_why() -> None:
    found = begun()
    found.attempt("b1", "10.0.0.9", 8000, END_S)
    found.ended(END_S, "refused")

    assert client_attributes(record(None), found, found.attempts[0], NOTHING)["error.type"] == "refused"


# --- answers -----------------------------------------------------------------------------------------------

PROGRESS = b'data: {"jsonrpc":"2.0","method":"notifications/progress","params":{}}\n\n'


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (RESULT, NOTHING),
        (error(-32602), Outcome("-32602")),
        (TOOL_ERROR, Outcome(is_tool_error=True)),
        (b"", NOTHING),
        (b"<html>", NOTHING),
        (b"[" * 60_000, NOTHING),
        (error(-32602)[:-2], NOTHING),
        (b'{"error":{"code":"text"}}', NOTHING),
        (b'{"result":[1]}', NOTHING),
        (b"[" + error(-32602) + b"]", NOTHING),
    ],
)
def test_an_answer_says_how_it_went_if_it_can_be_read(body: bytes, outcome: Outcome) -> None:
    assert outcome_of(body, is_stream=False) == outcome


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_of_a_stream_the_last_answer_counts(end: bytes) -> None:
    def stream(*events: bytes) -> Outcome:
        return outcome_of(b"".join(events).replace(b"\n", end), is_stream=True)

    answer = b"event: message\nid: 1\ndata: " + error(-32603) + b"\n\n"
    assert stream(PROGRESS, PROGRESS, answer) == Outcome("-32603")
    assert stream(PROGRESS, answer, b": keep-alive\n\n", b"retry: 5\n\n") == Outcome("-32603")
    assert stream(b'data:{"result":\ndata:{"isError":true}}\n\n') == Outcome(is_tool_error=True)
    assert stream(error(-32603)[10:], b"\n\n", PROGRESS) == NOTHING
    assert stream(PROGRESS) == stream(b"") == stream(b": hello\n\n") == NOTHING


@given(st.binary(), st.booleans())
@example(b"data:\x00\xff\n\n", True)
@example(b'{"error":{"code":1,"\xff":1}}', False)
def test_no_answer_whatever_it_is_raises(body: bytes, is_stream: bool) -> None:
    assert isinstance(outcome_of(body, is_stream), Outcome)
