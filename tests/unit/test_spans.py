"""What sampled exchanges become, as a collector that decodes OTLP gets it, and what a bad collector costs."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from mcp_proxy.config import Secret, TracesConfig
from mcp_proxy.telemetry.spans import QUEUE_LIMIT, SpanSink, build
from tests.tools import PATIENCE_S
from tests.tools.otlp_receiver import OtlpReceiver, Span
from tests.unit.spanrig import (
    END_S,
    HTTP_PARENT,
    PARENT,
    SPAN,
    TRACE,
    WALL_S,
    begun,
    error,
    record,
    trace,
)


@asynccontextmanager
async def sink_to(receiver: OtlpReceiver, **keys: Any) -> AsyncIterator[SpanSink]:
    """Closed in the end, with no more patience than for what is in its hands."""
    sink = build(TracesConfig.model_validate({"endpoint": receiver.endpoint} | keys))
    try:
        yield sink
    finally:
        await asyncio.to_thread(sink.close, 0.1)


@pytest.fixture
async def receiver() -> AsyncIterator[OtlpReceiver]:
    async with OtlpReceiver() as receiver:
        yield receiver


async def sent(receiver: OtlpReceiver, record: Any) -> list[Span]:
    """The spans of one record, that of the exchange last."""
    async with sink_to(receiver) as sink:
        sink.record(record)
        await until_closed(sink, PATIENCE_S)  # or it would wait for more
    return await receiver.spans(1 + len(record.trace.attempts))


async def until_closed(sink: SpanSink, timeout_s: float) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.to_thread(sink.close, timeout_s)


# --- what is sent ------------------------------------------------------------------------------------------


async def test_an_exchange_is_a_span_with_a_child_for_its_attempt(receiver: OtlpReceiver) -> None:
    found = trace(PARENT.encode(), b"rojo=1,congo=2")

    client, server = await sent(receiver, record(found))

    assert (server.kind, client.kind) == ("SERVER", "CLIENT")
    assert (server.trace_id, server.parent_id) == (TRACE, SPAN)
    assert (client.trace_id, client.parent_id) == (TRACE, server.span_id)
    assert server.span_id == f"{found.span_id:016x}"
    assert client.span_id == f"{found.attempts[0].span_id:016x}"
    assert server.state == client.state == "rojo=1,congo=2"
    assert server.name == client.name == "tools/call echo"
    assert (server.status, client.status, server.message) == ("UNSET", "UNSET", "")
    assert (server.links, client.links, client.events) == ([], [], [])
    assert server.scope == "mcp_proxy"


async def test_times_are_those_of_the_exchange_by_the_clock_on_the_wall(receiver: OtlpReceiver) -> None:
    client, server = await sent(receiver, record(trace()))

    def before_end(time_ns: int) -> float:
        return round(WALL_S - time_ns / 1e9, 3)

    assert (before_end(server.start_ns), before_end(server.end_ns)) == (0.5, 0.0)
    assert (before_end(client.start_ns), before_end(client.end_ns)) == (0.4, 0.1)
    assert [(event.name, before_end(event.time_ns)) for event in server.events] == [
        ("mcp_proxy.sent", 0.4),
        ("mcp_proxy.head", 0.2),
        ("mcp_proxy.answered", 0.1),
    ]


async def test_a_trace_that_begins_here_has_no_parent(receiver: OtlpReceiver) -> None:
    (server,) = await sent(receiver, record(begun(), backend="", attempts=0, status=400, reason="bad"))

    assert (server.parent_id, server.state, server.events) == ("", "", [])
    assert server.attributes["mcp_proxy.reason"] == "bad"


async def test_the_context_of_the_http_request_is_linked(receiver: OtlpReceiver) -> None:
    _, server = await sent(receiver, record(trace(HTTP_PARENT.encode(), None, PARENT, None)))

    assert (server.trace_id, server.parent_id) == (TRACE, SPAN)
    assert server.links == [("a" * 32, "b" * 16)]


async def test_every_attempt_has_a_span_and_only_the_last_has_the_answer(receiver: OtlpReceiver) -> None:
    found = begun()
    found.attempt("b1", "10.0.0.1", 8000, END_S - 0.4)
    found.ended(END_S - 0.3, "refused")
    found.attempt("b2", "10.0.0.2", 8001, END_S - 0.2)
    found.answered(END_S - 0.1, 200)
    found.peek(error(-32602))

    first, second, server = await sent(receiver, record(found, backend="b2", attempts=2))

    assert (first.status, first.attributes["error.type"]) == ("ERROR", "refused")
    assert (second.status, second.attributes["error.type"]) == ("ERROR", "-32602")
    assert (server.status, server.attributes["rpc.response.status_code"]) == ("UNSET", "-32602")
    assert "rpc.response.status_code" not in first.attributes
    assert [each.attributes["server.port"] for each in (first, second)] == [8000, 8001]
    assert first.parent_id == second.parent_id == server.span_id
    assert second.end_ns == server.end_ns, "nobody said that it had ended before"
    assert [(event.name, event.attributes["mcp_proxy.attempt"]) for event in server.events] == [
        ("mcp_proxy.sent", 1),
        ("mcp_proxy.sent", 2),
        ("mcp_proxy.head", 2),
    ]


async def test_what_the_proxy_says_itself_is_no_attempts_answer(receiver: OtlpReceiver) -> None:
    found = begun()
    found.attempt("b1", "10.0.0.1", 8000, END_S - 0.4)
    found.ended(END_S - 0.3, "lost")

    client, server = await sent(receiver, record(found, status=502, reason="backend_lost"))

    assert (client.status, client.attributes["error.type"]) == ("ERROR", "lost")
    assert (server.status, server.attributes["error.type"]) == ("ERROR", "backend_lost")


async def test_a_stream_is_read_from_its_end(receiver: OtlpReceiver) -> None:
    found = trace(answer=b": hello\n\ndata: " + error(-32603) + b"\n\n")

    client, server = await sent(receiver, record(found, is_stream=True))

    assert server.attributes["error.type"] == client.attributes["error.type"] == "-32603"


async def test_the_resource_says_which_process_of_which_service_it_was(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    for _ in range(2):
        async with sink_to(receiver, service_name="edge") as sink:
            sink.record(record(begun()))
            await until_closed(sink, PATIENCE_S)

    first, second = (span.resource for span in await receiver.spans(2))
    assert (first["service.name"], first["deployment.environment"]) == ("edge", "test")
    assert first["service.version"]
    assert first["service.instance.id"] != second["service.instance.id"]


async def test_headers_of_the_configuration_are_sent(receiver: OtlpReceiver) -> None:
    async with sink_to(receiver, headers={"X-Key": Secret("hunter2")}) as sink:
        sink.record(record(trace()))
        await until_closed(sink, PATIENCE_S)

    (request,) = receiver.requests
    assert (request.path, request.headers["x-key"]) == ("/v1/traces", "hunter2")
    assert request.headers["content-type"] == "application/x-protobuf"


async def test_variables_of_the_library_are_heeded_for_what_has_no_key(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    client, server = await sent(receiver, record(trace()))

    assert (client.kind, server.kind) == ("CLIENT", "SERVER")
    assert receiver.requests[0].headers["content-encoding"] == "gzip"


def test_without_the_extra_the_start_fails_with_what_brings_it() -> None:
    code = "import sys; sys.modules['opentelemetry.exporter'] = None; import mcp_proxy.telemetry.spans"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)

    assert run.returncode == 1
    assert run.stderr.rstrip().endswith(
        "StartupError: telemetry.traces needs the extra otlp: pip install 'mcp-reverse-proxy[otlp]'"
    )


async def test_what_was_not_sampled_is_not_sent(receiver: OtlpReceiver) -> None:
    async with sink_to(receiver) as sink:
        sink.record(record(None))
        await until_closed(sink, PATIENCE_S)
        assert (sink.exported, sink.dropped, sink.failed) == (0, 0, 0)

    assert receiver.requests == []


# --- a collector that is not well --------------------------------------------------------------------------


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(each.name, each.getMessage()) for each in caplog.records if each.levelno >= logging.INFO]


async def test_what_is_left_at_the_end_is_sent(receiver: OtlpReceiver) -> None:
    async with sink_to(receiver) as sink:
        for _ in range(300):
            sink.record(record(trace()))
        await until_closed(sink, PATIENCE_S)

        assert (sink.exported, sink.dropped, sink.failed) == (600, 0, 0)
        assert len(await receiver.spans(600)) == 600


async def test_after_the_end_spans_are_dropped_and_counted(receiver: OtlpReceiver) -> None:
    async with sink_to(receiver) as sink:
        await until_closed(sink, PATIENCE_S)
        await until_closed(sink, PATIENCE_S)
        sink.record(record(trace()))

        assert (sink.exported, sink.dropped, sink.failed) == (0, 2, 0)


async def test_a_collector_that_hangs_holds_up_neither_records_nor_the_end(receiver: OtlpReceiver) -> None:
    receiver.hang()
    async with sink_to(receiver) as sink:
        sink.record(record(trace()))
        await receiver.requested(1)
        for _ in range(QUEUE_LIMIT):
            sink.record(record(trace()))
        await until_closed(sink, 0.1)

        assert sink.exported == 0
        assert sink.dropped == 2 * QUEUE_LIMIT, "what had no room, and what had no time"


async def test_an_outage_is_one_line_and_so_is_its_end(
    receiver: OtlpReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    receiver.answer(400)
    async with sink_to(receiver, headers={"x-key": "hunter2"}) as sink:
        for number in (1, 2):
            sink.record(record(begun()))
            await receiver.requested(number)
        receiver.answer(200)
        sink.record(record(begun()))
        await until_closed(sink, PATIENCE_S)
        assert (sink.exported, sink.dropped, sink.failed) == (1, 0, 2)

    (_, outage), (_, end) = said(caplog)
    assert outage.startswith(f"traces: {receiver.endpoint}/v1/traces does not take spans, they are lost: ")
    assert "400" in outage
    assert "hunter2" not in outage
    assert end == f"traces: {receiver.endpoint}/v1/traces takes spans again"


async def test_a_collector_that_is_not_there_is_said_by_nobody_else(
    receiver: OtlpReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await receiver.stop()
    async with sink_to(receiver, timeout="2s") as sink:
        sink.record(record(trace()))
        await until_closed(sink, PATIENCE_S)
        assert (sink.exported, sink.dropped, sink.failed) == (0, 0, 2)

    ((name, line),) = said(caplog)
    assert name == "mcp_proxy"
    assert "refused" in line


async def test_a_collector_that_comes_back_in_time_loses_nothing(receiver: OtlpReceiver) -> None:
    receiver.answer(503)
    async with sink_to(receiver) as sink:
        sink.record(record(trace()))
        await receiver.requested(1)
        receiver.answer(200)
        assert len(await receiver.spans(2)) == 2
        await until_closed(sink, PATIENCE_S)

        assert (sink.exported, sink.dropped, sink.failed) == (2, 0, 0)
    assert [request.status for request in receiver.requests] == [503, 200]


async def test_an_exporter_that_breaks_is_a_collector_that_takes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            raise RuntimeError("out of order")

    sink = SpanSink(Broken(), Resource.create(), "nowhere")
    sink.record(record(trace()))
    await until_closed(sink, PATIENCE_S)

    assert (sink.exported, sink.dropped, sink.failed) == (0, 0, 2)
    assert said(caplog) == [
        ("mcp_proxy", "traces: nowhere does not take spans, they are lost: RuntimeError('out of order')")
    ]


async def test_an_exchange_that_cannot_be_described_costs_no_other(
    receiver: OtlpReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    broken = trace()
    broken.rpc_id = b'"never ends'
    async with sink_to(receiver) as sink:
        for each in (trace(), broken, trace()):
            sink.record(record(each))
        assert len(await receiver.spans(4)) == 4

    assert (sink.exported, sink.dropped, sink.failed) == (4, 0, 2)
    assert said(caplog) == [("mcp_proxy", "traces: the spans of an exchange could not be made")]


async def test_others_in_the_process_may_log_what_their_library_says(
    receiver: OtlpReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    async with sink_to(receiver) as sink:
        sink.record(record(trace()))
        await receiver.spans(2)
        theirs.warning("not ours")
    assert said(caplog) == [(theirs.name, "not ours")]
    assert theirs.filters == []
