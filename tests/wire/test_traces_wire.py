"""What traces do to requests on the wire, and what a collector gets of exchanges of every kind.

Rules of this file: traces begin at clients only (``sample: 0``), unless a test has a proxy of its own; what
must not have been recorded is judged once something later has come.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.tools.backend import Backend, Handler
from tests.tools.client import call, get, post
from tests.tools.http1 import LAST_CHUNK
from tests.tools.mcp_backend import JSON, McpServer, Streams, json_answer
from tests.tools.otlp_receiver import OtlpReceiver
from tests.tools.proxy import launch
from tests.tools.recording import Conn, Seen
from tests.wire.rig import Rig, bench
from tests.wire.traced import Parent, access_line, ask, recorded, request_id, traced, traces

STATE = "vendor=1, other@tenant=a:b"

GARBAGE = [
    "",
    "00",
    f"00-{'0' * 32}-{'b' * 16}-01",
    f"00-{'a' * 32}-{'0' * 16}-01",
    f"ff-{'a' * 32}-{'b' * 16}-01",
    f"00-{'A' * 32}-{'b' * 16}-01",
    f"00-{'a' * 32}-{'b' * 16}-01-more",
    f"00-{'a' * 32}-{'b' * 16}-1",
    f"00-{'a' * 4000}-{'b' * 16}-01",
    f"00-{'ä' * 32}-{'b' * 16}-01",
]
"""What is no ``traceparent``."""


@pytest.fixture(scope="module")
async def receiver() -> AsyncIterator[OtlpReceiver]:
    async with OtlpReceiver() as running:
        yield running


@pytest.fixture(scope="module", params=["http11", "httpx"])
async def shared(
    request: pytest.FixtureRequest, receiver: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Rig]:
    """In place of the one that knows no collector; with every transport."""
    over = traces(receiver.endpoint, sample=0) | {"pools": {"tools": {"transport": request.param}}}
    async with bench(tmp_path_factory.mktemp("proxy"), over) as rig:
        yield rig


# --- contexts -----------------------------------------------------------------------------------------------


async def test_the_backend_is_told_of_the_proxys_own_span(rig: Rig, receiver: OtlpReceiver) -> None:
    parent = Parent()
    answer, seen = await ask(rig, parent.line, f"tracestate: {STATE}")
    spans = await recorded(receiver, parent.trace)
    assert spans.server.parent_id == parent.span
    assert seen.head.all("traceparent") == [f"00-{parent.trace}-{spans.client.span_id}-01".encode()]
    assert seen.head.all("tracestate") == [STATE.encode()]
    assert answer.head.all("traceparent") == []


async def test_the_parts_of_a_state_are_joined_in_order(rig: Rig, receiver: OtlpReceiver) -> None:
    parent = Parent()
    _, seen = await ask(rig, "tracestate: a=1", parent.line, "tracestate: b=2")
    assert seen.head.all("tracestate") == [b"a=1,b=2"]
    assert (await recorded(receiver, parent.trace)).server.state == "a=1,b=2"


async def test_what_is_not_to_be_recorded_passes_as_it_came(rig: Rig, receiver: OtlpReceiver) -> None:
    quiet, loud = Parent("00"), Parent()
    _, seen = await ask(rig, quiet.line, "tracestate: a=1", "tracestate: b=2")
    assert seen.head.all("traceparent") == [quiet.text.encode()]
    assert seen.head.all("tracestate") == [b"a=1", b"b=2"]
    await ask(rig, loud.line)
    await recorded(receiver, loud.trace)
    assert await receiver.spans(0, quiet.trace) == []


async def test_where_none_begins_a_request_without_a_context_has_none_behind(rig: Rig) -> None:
    answer, seen = await ask(rig)
    assert seen.head.all("traceparent") == []
    assert (await access_line(rig, answer))["trace"] == ""


@pytest.mark.parametrize("value", GARBAGE)
async def test_garbage_is_no_context_and_passes_as_it_came(rig: Rig, value: str) -> None:
    answer, seen = await ask(rig, f"traceparent: {value}", "tracestate: a=1")
    assert answer.status == 200
    assert seen.head.all("traceparent") == [value.encode("latin-1")]
    assert seen.head.all("tracestate") == [b"a=1"]
    assert (await access_line(rig, answer))["trace"] == ""


async def test_two_contexts_are_none(rig: Rig) -> None:
    first, second = Parent(), Parent()
    answer, seen = await ask(rig, first.line, second.line)
    assert seen.head.all("traceparent") == [first.text.encode(), second.text.encode()]
    assert (await access_line(rig, answer))["trace"] == ""


async def test_the_context_of_the_message_goes_before_that_of_the_request(
    rig: Rig, receiver: OtlpReceiver
) -> None:
    message, request = Parent(), Parent()
    params = {"name": "echo", "_meta": {"traceparent": message.text, "tracestate": "m=1"}, "arguments": {}}
    body = json.dumps({"jsonrpc": "2.0", "id": "ä", "method": "tools/call", "params": params}).encode()
    _, seen = await ask(rig, request.line, "tracestate: r=1", body=body)
    spans = await recorded(receiver, message.trace)
    assert spans.server.parent_id == message.span
    assert spans.server.links == [(request.trace, request.span)]
    assert seen.head.all("traceparent") == [f"00-{message.trace}-{spans.client.span_id}-01".encode()]
    assert seen.head.all("tracestate") == [b"m=1"]
    assert await receiver.spans(0, request.trace) == []


async def test_span_access_line_client_and_backend_have_the_same_names(
    rig: Rig, receiver: OtlpReceiver
) -> None:
    parent = Parent()
    answer, seen = await ask(rig, parent.line)
    spans = await recorded(receiver, parent.trace)
    line = await access_line(rig, answer)
    assert line["trace"] == spans.server.trace_id == parent.trace
    ids = {request_id(answer), line["request_id"], spans.server.attributes["mcp_proxy.request_id"]}
    assert {value.encode() for value in ids} == set(seen.head.all("x-request-id"))
    assert spans.server.attributes["mcp_proxy.end"] == line["end"]


@pytest.mark.parametrize("value", [None, *GARBAGE[:3]])
async def test_where_all_are_recorded_a_trace_begins_here(
    own: tuple[Rig, OtlpReceiver], value: str | None
) -> None:
    rig, receiver = own
    fields = () if value is None else (f"traceparent: {value}", "tracestate: a=1")
    answer, seen = await ask(rig, *fields)
    spans = await recorded(receiver, (await access_line(rig, answer))["trace"])
    assert spans.server.parent_id == ""
    context = f"00-{spans.server.trace_id}-{spans.client.span_id}-01"
    assert seen.head.all("traceparent") == [context.encode()]
    assert seen.head.all("tracestate") == []


async def test_where_all_are_recorded_who_began_a_trace_may_forbid_it(own: tuple[Rig, OtlpReceiver]) -> None:
    rig, _ = own
    quiet = Parent("00")
    answer, seen = await ask(rig, quiet.line)
    assert seen.head.all("traceparent") == [quiet.text.encode()]
    assert (await access_line(rig, answer))["trace"] == ""


@pytest.fixture(scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Rig, OtlpReceiver]]:
    """A proxy that records everything."""
    async with traced(tmp_path_factory.mktemp("all"), 1) as running:
        yield running


# --- answers ------------------------------------------------------------------------------------------------


def json_text(**value: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, **value}).encode()


def as_json(body: bytes) -> Handler:
    async def handle(request: Seen, conn: Conn) -> None:
        await request.whole()
        await conn.answer(200, [JSON], body)

    return handle


def as_stream(body: bytes) -> Handler:
    """The last of two events, in two pieces."""

    async def handle(request: Seen, conn: Conn) -> None:
        await request.whole()
        await conn.stream_head()
        await conn.send_chunk(b'event: message\ndata: {"jsonrpc":"2.0","method":"notifications/x"}\n\n')
        await conn.send_chunk(b"id: 7\ndata: " + body[:9])
        await conn.consumed()
        await conn.send_chunk(body[9:] + b"\n\n")
        await conn.send(LAST_CHUNK)

    return handle


@pytest.mark.parametrize("framed", [as_json, as_stream])
async def test_an_answer_is_read_for_its_error(rig: Rig, receiver: OtlpReceiver, framed: Any) -> None:
    expected = {
        json_text(result={"content": []}): ("", "", ""),
        json_text(result={"content": [], "isError": True}): ("tool_error", "tool_error", ""),
        json_text(error={"code": -32603, "message": "secret"}): ("-32603", "-32603", "-32603"),
        json_text(error={"code": -32602, "message": "secret"}): ("", "-32602", "-32602"),
    }
    parents = {body: Parent() for body in expected}
    for body, parent in parents.items():
        rig.script(framed(body))
        answer, _ = await ask(rig, parent.line)
        assert answer.body.endswith(body if framed is as_json else body + b"\n\n")
    for body, (inward, outward, code) in expected.items():
        spans = await recorded(receiver, parents[body].trace)
        for span, error in ((spans.server, inward), (spans.client, outward)):
            assert span.attributes.get("error.type", "") == error
            assert span.status == ("ERROR" if error else "UNSET")
            assert span.attributes.get("rpc.response.status_code", "") == code
            assert "secret" not in repr(span)


async def test_what_the_proxy_refuses_itself_has_no_attempt(rig: Rig, receiver: OtlpReceiver) -> None:
    parent = Parent()
    async with await rig.client() as client:
        answer = await client.ask(post(call(), parent.line, "Mcp-Session-Id: nobody-knows-it"))
    assert (answer.status, answer.reason) == (404, "session_not_found")
    spans = await recorded(receiver, parent.trace, attempts=0)
    assert spans.server.attributes["http.response.status_code"] == 404
    assert spans.server.attributes["mcp_proxy.reason"] == "session_not_found"
    assert spans.server.status == "UNSET"
    assert "nobody-knows-it" not in repr(spans.server)


async def test_a_message_that_cannot_be_read_is_seen_in_the_trace(rig: Rig, receiver: OtlpReceiver) -> None:
    parent = Parent()
    async with await rig.client() as client:
        answer = await client.ask(post(b"{", parent.line))
    assert (answer.status, answer.reason) == (400, "parse_error")
    spans = await recorded(receiver, parent.trace, attempts=0)
    assert spans.server.name == "POST /mcp"
    assert spans.server.attributes["mcp_proxy.reason"] == "parse_error"


async def test_an_answer_that_breaks_off_is_an_error_of_both(rig: Rig, receiver: OtlpReceiver) -> None:
    parent, streams = Parent(), Streams()
    rig.script(streams)
    async with await rig.client() as client:
        await client.send(post(call(), parent.line))
        stream = await streams.next()
        await stream.send(b": x\n\n")
        stream.reset()
        await client.head()
        assert (await client.rest()).framing != "clean"
    rig.taken()
    spans = await recorded(receiver, parent.trace)
    assert [span.attributes["error.type"] for span in (spans.server, spans.client)] == ["backend", "lost"]
    assert spans.server.attributes["mcp_proxy.end"] == "SD"


async def test_every_backend_that_was_asked_has_a_span(tmp_path: Path) -> None:
    async with OtlpReceiver() as receiver, Backend(json_answer()) as away, Backend(json_answer()) as there:
        await away.refuse()
        pool = {"backends": [away.url, there.url], "balance": "round_robin"}
        config = {"pools": {"tools": pool}, "routes": [{"path": "/mcp", "pool": "tools"}]}
        async with launch(config | traces(receiver.endpoint, sample=0), tmp_path) as proxy:
            rig = Rig(proxy, [away, there])
            attempts = {}
            for _ in range(2):  # in turn, so one of them comes to who is away
                parent = Parent()
                answer, _ = await ask(rig, parent.line)
                attempts[parent.trace] = (await access_line(rig, answer))["attempts"]
            assert sorted(attempts.values()) == [1, 2]
            spans = await recorded(receiver, max(attempts, key=lambda trace: attempts[trace]), 2)
    refused, answered = spans.clients
    assert refused.attributes["server.port"] == away.port
    assert (refused.attributes["error.type"], refused.status) == ("refused", "ERROR")
    assert "http.response.status_code" not in refused.attributes
    assert answered.attributes["server.port"] == there.port
    assert (answered.status, spans.server.status) == ("UNSET", "UNSET")
    assert refused.end_ns <= answered.start_ns


# --- ends ---------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_before_the_head_has_cancelled_the_attempt(
    rig: Rig, receiver: OtlpReceiver
) -> None:
    parent = Parent()
    rig.script(silent)
    async with await rig.client() as client:
        await client.send(post(call(), parent.line))
        await rig.backend.arrived()
    spans = await recorded(receiver, parent.trace)
    rig.taken()
    assert spans.server.attributes["mcp_proxy.end"] == "CH"
    assert (spans.server.status, "error.type" in spans.server.attributes) == ("UNSET", False)
    assert (spans.client.status, spans.client.attributes["error.type"]) == ("ERROR", "cancelled")


async def test_a_client_that_leaves_in_the_middle_of_an_answer_is_nobodys_error(
    rig: Rig, receiver: OtlpReceiver
) -> None:
    parent, streams = Parent(), Streams()
    rig.script(streams)
    async with await rig.client() as client:
        await client.send(post(call(), parent.line))
        await (await streams.next()).send(b": x\n\n")
        await client.head()
    spans = await recorded(receiver, parent.trace)
    rig.taken()
    assert spans.server.attributes["mcp_proxy.end"] == "CD"
    for span in (spans.server, spans.client):
        assert (span.status, "error.type" in span.attributes) == ("UNSET", False)


async def silent(request: Seen, conn: Conn) -> None:
    """Never answers."""
    await conn.gone()


async def test_a_listening_stream_is_a_span_once_it_is_over(rig: Rig, receiver: OtlpReceiver) -> None:
    listening, calling = Parent(), Parent()
    server = McpServer()
    rig.script(server)
    session = await rig.session()
    async with await rig.client() as client:
        await client.send(get(session, listening.line))
        stream = await server.streams.next()
        await client.head("GET")
        (seen,) = rig.taken()
        await ask(rig, session, calling.line)
        await recorded(receiver, calling.trace)
        assert await receiver.spans(0, listening.trace) == []
        await stream.end()
        assert (await client.rest()).framing == "clean"
    spans = await recorded(receiver, listening.trace)
    assert spans.server.name == spans.client.name == "GET /mcp"
    assert seen.head.all("traceparent") == [f"00-{listening.trace}-{spans.client.span_id}-01".encode()]
    assert session.partition(": ")[2] not in repr((spans, spans.server.resource))
