"""A collector: takes spans over OTLP/HTTP as any other does, and shows what it got.

    async with OtlpReceiver() as receiver:
        ...  # something sends to receiver.endpoint
        spans = await receiver.spans(2)  # every span so far, once there are two
        receiver.answer(503)  # from now on
        receiver.hang()  # takes requests and answers none, until answer(...)
        await receiver.stop()  # nobody listens, connections are cut; start() listens on the same port

``receiver.requests`` has every request that came, answered or not: path, headers, size, status; and
``await receiver.requested(n)`` waits until there are so many. Spans of requests that were not answered with
200 do not count. ``decode=False``: spans are not looked at, for measurements; requests are.

Rules of this file: bodies are decoded by the protocol's own library and made plain objects, ids in hex; a
request that is not OTLP is answered with 400 and never dropped silently.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status as WireStatus

from tests.tools import PATIENCE_S

PATH = "/v1/traces"
PROTOBUF = "application/x-protobuf"


@dataclass(frozen=True)
class SpanEvent:
    name: str
    time_ns: int
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Span:
    """Ids are hex; ``parent_id`` and ``state`` are empty when there is none."""

    name: str
    kind: str
    """``SERVER CLIENT INTERNAL PRODUCER CONSUMER``"""
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    """``tracestate``"""
    attributes: dict[str, Any]
    events: list[SpanEvent]
    links: list[tuple[str, str]]
    """Trace and span."""
    status: str
    """``UNSET OK ERROR``"""
    message: str
    """Of the status."""
    start_ns: int
    end_ns: int
    scope: str
    resource: dict[str, Any] = field(repr=False)


@dataclass
class OtlpRequest:
    path: str
    headers: dict[str, str]
    size: int
    status: int = 0
    """What it was answered with; 0: nothing yet."""


class OtlpReceiver:
    """Listens on 127.0.0.1, at ``port`` if that is not 0."""

    def __init__(self, port: int = 0, *, decode: bool = True) -> None:
        self.requests: list[OtlpRequest] = []
        self.port = port
        self._decode = decode
        self._spans: list[Span] = []
        self._status: int | None = 200
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> OtlpReceiver:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    @property
    def endpoint(self) -> str:
        """The base URL, without the path of the protocol."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Idempotent."""
        if self._server is not None:
            self._server.close()
            for writer in self._connections.values():
                writer.transport.abort()
            await asyncio.gather(*self._connections)
            await self._server.wait_closed()
            self._server = None

    def answer(self, status: int) -> None:
        """To every request from now on; those that were left hanging get nothing."""
        self._status = status

    def hang(self) -> None:
        self._status = None

    async def spans(self, count: int, trace_id: str = "") -> list[Span]:
        """Every span so far, of one trace if it is named, as soon as there are ``count``."""

        def found() -> list[Span]:
            return [span for span in self._spans if trace_id in ("", span.trace_id)]

        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: len(found()) >= count)
        return found()

    async def requested(self, count: int) -> list[OtlpRequest]:
        """Every request so far, as soon as there are ``count``."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: len(self.requests) >= count)
        return self.requests

    # --- one connection ---------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: asyncio.Task[None] | None = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            del self._connections[task]
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether another may follow."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        method, path, _ = first.split(" ")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = OtlpRequest(path, headers, len(body))
        self.requests.append(request)
        status = self._status  # as it is when whoever waits hears of the request
        await self._tell()
        if status is None:
            await reader.read()  # until the client gives up
            return False
        request.status = self._judge(method, path, headers, body) if status == 200 else status
        reason = HTTPStatus(request.status).phrase
        # An empty message of the protocol has no bytes: "everything was taken".
        answer = (
            f"HTTP/1.1 {request.status} {reason}\r\ncontent-type: {PROTOBUF}\r\ncontent-length: 0\r\n\r\n"
        )
        writer.write(answer.encode())
        await writer.drain()
        await self._tell()
        return headers.get("connection", "").lower() != "close"

    def _judge(self, method: str, path: str, headers: dict[str, str], body: bytes) -> int:
        if method != "POST" or path != PATH:
            return 404
        if headers.get("content-type") != PROTOBUF:
            return 415
        if self._decode:
            try:
                self._spans += spans_in(gzip.decompress(body) if "content-encoding" in headers else body)
            except (DecodeError, OSError):
                return 400
        return 200

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


# --- from the wire to plain objects -------------------------------------------------------------------------


def spans_in(body: bytes) -> list[Span]:
    """The spans of one request. Raises DecodeError."""
    message = ExportTraceServiceRequest()
    message.ParseFromString(body)
    return [
        _span(span, scoped.scope.name, _attributes(each.resource.attributes))
        for each in message.resource_spans
        for scoped in each.scope_spans
        for span in scoped.spans
    ]


def _span(span: WireSpan, scope: str, resource: dict[str, Any]) -> Span:
    return Span(
        name=span.name,
        kind=WireSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        state=span.trace_state,
        attributes=_attributes(span.attributes),
        events=[
            SpanEvent(each.name, each.time_unix_nano, _attributes(each.attributes)) for each in span.events
        ],
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        status=WireStatus.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        message=span.status.message,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        scope=scope,
        resource=resource,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return None if kind is None else getattr(value, kind)
