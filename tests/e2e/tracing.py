"""OpenTelemetry for the processes of the trace tests, and what instrumented HTTP does with a trace context.

Rules of this file: spans leave when they end, so a process may be killed at any time; nothing of the proxy is
imported. The HTTP parts do what OpenTelemetry's instrumentations of HTTP clients and of ASGI do, and no more.
"""

from __future__ import annotations

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, Tracer
from starlette.types import ASGIApp, Receive, Scope, Send

HTTP_CLIENT = "client: http"
HTTP_SERVER = "server: http"
"""Names of the spans of HTTP."""


def provider(service: str, collector: str) -> TracerProvider:
    """Everything is recorded, and sent to this base URL."""
    made = TracerProvider(resource=Resource({"service.name": service}), shutdown_on_exit=False)
    made.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{collector}/v1/traces")))
    return made


class TracedHttp:
    """ASGI middleware: a span for every POST, the child of what its headers say, around what the app does."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        context = propagate.extract(headers)
        span = self._tracer.start_span(HTTP_SERVER, context, SpanKind.SERVER)
        with trace.use_span(span, end_on_exit=True):
            await self._app(scope, receive, send)
