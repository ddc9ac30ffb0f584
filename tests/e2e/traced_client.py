"""The official client with OpenTelemetry on, as a process of its own: calls one tool, and says what it saw.

Rules of this file: a provider of traces belongs to a process for good, so no test has it in its own. With
``--context message`` the client traces messages itself and says so in ``_meta``; with ``header`` it does not
know of OpenTelemetry, and only its HTTP is traced.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind

from tests.e2e.clients import text
from tests.e2e.tracing import HTTP_CLIENT, provider
from tests.tools import PATIENCE_S

SERVICE = "traced-client"
AGENT = "agent"
"""Name of the span in which all of it happens."""
ARGUMENT = "planted-argument-19ae"


class TracedHttp:
    """A span for every POST, which tells the server of it; what the server said of sessions and requests."""

    def __init__(self, traces: TracerProvider, agent: Span) -> None:
        self._tracer = traces.get_tracer("http")
        self._context = trace.set_span_in_context(agent)
        self.answers: list[dict[str, str]] = []

    async def request(self, request: httpx2.Request) -> None:
        if request.method == "POST":
            span = self._tracer.start_span(HTTP_CLIENT, self._context, SpanKind.CLIENT)
            propagate.inject(request.headers, trace.set_span_in_context(span))
            span.end()

    async def response(self, response: httpx2.Response) -> None:
        wanted = ("mcp-session-id", "x-request-id")
        self.answers.append({name: response.headers.get(name, "") for name in wanted})


async def call(options: argparse.Namespace) -> dict[str, object]:
    traces = provider(SERVICE, options.collector)
    is_message = options.context == "message"
    if is_message:
        trace.set_tracer_provider(traces)
    agent = traces.get_tracer("agent").start_span(AGENT)
    traced = TracedHttp(traces, agent)
    hooks: dict[str, list[Callable[..., Any]]] = {"request": [traced.request], "response": [traced.response]}
    async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S, event_hooks=hooks) as http:
        with trace.use_span(agent) if is_message else nullcontext():
            transport = streamable_http_client(options.url, http_client=http)
            async with Client(transport, mode=options.mode, read_timeout_seconds=PATIENCE_S) as client:
                result = await client.call_tool(options.tool, {"text": ARGUMENT})
    agent.end()
    return {
        "trace": f"{agent.get_span_context().trace_id:032x}",
        "is_error": result.is_error,
        "text": text(result),
        "answers": traced.answers,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--url", "--collector", "--mode", "--context", "--tool"):
        parser.add_argument(name, required=True)
    print(json.dumps(asyncio.run(call(parser.parse_args()))))


if __name__ == "__main__":
    main()
