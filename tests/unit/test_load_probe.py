"""What the first look at a server finds, and what it leaves out.

Rules of this file: the servers are the bundled one, with something taken away, or one that answers what the
case says. What is left out is said in a sentence; only a server that speaks no MCP ends the matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import pytest

from mcp_proxy.load import CLASSES, Facts, LoadError, Target, Tool
from mcp_proxy.load.abuse import SECOND_STREAM, TABLE
from mcp_proxy.load.probe import probe
from mcp_proxy.load.stub_http import Exchange, Request
from tests.tools.ports import free_ports
from tests.unit.loadrig import FACTS, RunningStub, http, raw_server, running_stub


@pytest.fixture
def server() -> Iterator[RunningStub]:
    with running_stub() as running:
        yield running


def look(server: RunningStub, *, tool: Tool | None = None, with_abuses: bool = True) -> Facts:
    return probe(server.target, [], tool=tool, timeout_s=2.0, with_abuses=with_abuses)


def without(*methods: str) -> Callable[[Request, Exchange], bool]:
    """A server that does not know these HTTP or JSON-RPC methods."""

    def refuse(request: Request, exchange: Exchange) -> bool:
        named = any(f'"method":"{method}"'.encode() in request.body for method in methods)
        if named or request.method in methods:
            exchange.answer(405 if request.method != "POST" else 404)
            return True
        return False

    return refuse


def edited(edit: Callable[[dict[str, object]], None], method: str) -> Callable[[Request, Exchange], bool]:
    """Its result of this method is another."""

    def handle(request: Request, exchange: Exchange) -> bool:
        if f'"method":"{method}"'.encode() not in request.body:
            return False
        message = msgspec.json.decode(request.body)
        result: dict[str, object] = {}
        edit(result)
        exchange.answer(200, msgspec.json.encode({"jsonrpc": "2.0", "id": message["id"], "result": result}))
        return True

    return handle


def test_the_bundled_server_has_everything(server: RunningStub) -> None:
    facts = look(server)
    expected = msgspec.structs.replace(
        FACTS, abuses=[*TABLE, SECOND_STREAM], notes=["tools that are called: echo, count"]
    )
    assert facts == expected
    assert all(facts.serves(kind) for kind in CLASSES)
    assert server.stub.sessions == {}, "the look leaves nothing behind"


def test_a_server_of_the_modern_era_only(server: RunningStub) -> None:
    server.before = without("initialize", "GET", "DELETE")
    facts = look(server)
    assert (facts.legacy, facts.modern, facts.sessions, facts.listen) == (None, True, False, True)
    assert facts.tool == Tool("echo")
    assert "no session users: the server has no initialize" in facts.notes
    assert "no reconnect users: events carry no ids, so nothing can be resumed" in facts.notes
    assert [kind for kind in CLASSES if facts.serves(kind)] == ["modern", "stream", "abuse"]


def test_a_server_of_the_handshake_era_only(server: RunningStub) -> None:
    server.before = without("server/discover", "subscriptions/listen")
    facts = look(server)
    assert (facts.modern, facts.listen) == (False, False)
    assert "no modern users: the server does not speak 2026-07-28" in facts.notes
    assert not {"no _meta", "header and body differ"} & set(facts.abuses)


def test_a_server_without_a_get_stream(server: RunningStub) -> None:
    server.before = without("GET", "subscriptions/listen")
    facts = look(server)
    assert (facts.get_stream, facts.get_ids) == (False, False)
    assert "no stream users: the server opens no stream (GET or subscriptions/listen)" in facts.notes
    assert SECOND_STREAM not in facts.abuses


def test_a_server_without_tools(server: RunningStub) -> None:
    server.before = edited(lambda result: result.update(tools=[]), "tools/list")
    facts = look(server)
    assert (facts.tool, facts.lists_tools) == (None, True)
    assert "the server has no tools; the load is tools/list" in facts.notes


def test_a_server_that_does_not_even_list_them(server: RunningStub) -> None:
    server.before = without("tools/list")
    facts = look(server)
    assert (facts.tool, facts.lists_tools) == (None, False)
    assert "the server has no tools; the load is ping" in facts.notes


def test_a_tool_of_which_nothing_is_known_is_not_called(server: RunningStub) -> None:
    server.before = edited(lambda result: result.update(tools=[{"name": "launch"}]), "tools/list")
    facts = look(server)
    assert facts.tool is None
    assert "no tool is known to be harmless, so none is called; name one with --tool" in facts.notes
    assert not any(b"tools/call" in request.body for request in server.requests)


def test_a_tool_that_only_sounds_harmless_is_not_called_if_it_has_to_say_so(server: RunningStub) -> None:
    server.before = edited(lambda result: result.update(tools=[{"name": "get_time"}]), "tools/list")
    facts = probe(server.target, [], timeout_s=2.0, with_abuses=False, read_only=True)
    assert facts.tool is None
    assert "no tool says that it only reads, so none is called" in facts.notes
    assert not any(b"tools/call" in request.body for request in server.requests)


def test_a_tool_that_fails_is_passed_over(server: RunningStub) -> None:
    listed = [{"name": name, "annotations": {"readOnlyHint": True}} for name in ("broken", "count")]
    server.before = edited(lambda result: result.update(tools=listed), "tools/list")
    facts = look(server)
    assert facts.tool == facts.stream_tool == Tool("count", {}, 4)


def test_the_tool_that_was_asked_for_is_the_one(server: RunningStub) -> None:
    facts = look(server, tool=Tool("count", {"to": 3}))
    assert facts.stream_tool == Tool("count", {"to": 3}, 4)
    assert facts.tool == facts.stream_tool


def test_a_tool_that_was_asked_for_and_fails_ends_the_matter(server: RunningStub) -> None:
    with pytest.raises(LoadError, match="the tool nothing cannot be called so: JSON-RPC error -32602"):
        look(server, tool=Tool("nothing"))


def test_what_a_server_accepts_is_left_out_and_said(server: RunningStub) -> None:
    def accept(request: Request, exchange: Exchange) -> bool:
        if "origin" in request.headers:
            exchange.answer(200, b"{}")
            return True
        return False

    server.before = accept
    facts = look(server)
    assert "foreign Origin" not in facts.abuses
    assert "not refused by this server, so left out: foreign Origin" in facts.notes


def test_what_is_worse_than_accepting_stays_in(server: RunningStub) -> None:
    def crash(request: Request, exchange: Exchange) -> bool:
        if "origin" in request.headers:
            exchange.answer(500)
            return True
        return False

    server.before = crash
    assert "foreign Origin" in look(server).abuses


@pytest.mark.parametrize("word", ["parse_error", "edge_refused"])
def test_the_proxy_is_known_by_its_word_and_may_accept_nothing(server: RunningStub, word: str) -> None:
    def lenient_proxy(request: Request, exchange: Exchange) -> bool:
        if request.body == b'{"jsonrpc":':
            exchange.answer(400, b"{}", "application/json", f"mcp-proxy-reason: {word}")
            return True
        if "origin" in request.headers:
            exchange.answer(200, b"{}")
            return True
        return False

    server.before = lenient_proxy
    facts = look(server)
    assert facts.is_proxy is (word == "parse_error")
    assert ("foreign Origin" in facts.abuses) is facts.is_proxy


def test_abuse_that_nobody_asked_for_is_not_committed(server: RunningStub) -> None:
    facts = look(server, with_abuses=False)
    assert facts.abuses == []
    assert not any("abuse" in note for note in facts.notes)
    assert not any("origin" in request.headers for request in server.requests)


def test_events_without_ids_cannot_be_resumed(server: RunningStub) -> None:
    """``server/discover`` alone: the modern era has no ids."""
    server.before = without("initialize", "GET")
    facts = look(server)
    assert facts.stream_tool is not None
    assert not facts.answer_ids


def test_nobody_there_ends_the_matter() -> None:
    (port,) = free_ports(1)
    with pytest.raises(LoadError, match=f"http://127.0.0.1:{port}/mcp cannot be reached: cannot connect"):
        probe(Target("http", "127.0.0.1", port, "/mcp"), [])


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (http(404, b""), "does not speak MCP: initialize and server/discover got HTTP 404"),
        (http(200, b"<html>", kind="text/html"), "does not speak MCP: .* got content type text/html"),
        (http(401, b""), "asks for credentials \\(HTTP 401\\)"),
        (http(403, b""), "asks for credentials \\(HTTP 403\\)"),
        (http(502, b""), "does not speak MCP: .* got HTTP 502"),
    ],
)
def test_what_is_no_mcp_server_ends_the_matter(answer: bytes, sentence: str) -> None:
    with raw_server(answer) as server, pytest.raises(LoadError, match=sentence):
        probe(server.target, [])
