"""The collector of the tests takes what is OTLP, refuses what is not, and is away when it is told to be."""

from __future__ import annotations

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from tests.tools.otlp_receiver import PATH, PROTOBUF, OtlpReceiver

TEXT = KeyValue(key="text", value=AnyValue(string_value="a"))
LIST = KeyValue(
    key="list", value=AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue()]))
)
MAP = KeyValue(key="map", value=AnyValue(kvlist_value=KeyValueList(values=[TEXT])))


def request(*trace_ids: bytes) -> bytes:
    spans = [
        Span(
            name="s",
            trace_id=trace_id,
            span_id=b"12345678",
            kind=Span.SPAN_KIND_CLIENT,
            attributes=[LIST, MAP],
        )
        for trace_id in trace_ids
    ]
    each = ResourceSpans(resource=Resource(attributes=[TEXT]), scope_spans=[ScopeSpans(spans=spans)])
    return ExportTraceServiceRequest(resource_spans=[each]).SerializeToString()


async def post(receiver: OtlpReceiver, body: bytes, path: str = PATH, kind: str = PROTOBUF) -> int:
    async with httpx2.AsyncClient(trust_env=False) as client:
        answer = await client.post(receiver.endpoint + path, content=body, headers={"content-type": kind})
        return answer.status_code


async def test_spans_are_taken_apart() -> None:
    async with OtlpReceiver() as receiver:
        assert await post(receiver, request(b"a" * 16, b"b" * 16)) == 200
        (span,) = await receiver.spans(1, trace_id=(b"b" * 16).hex())

    assert (span.name, span.kind, span.span_id, span.parent_id) == ("s", "CLIENT", b"12345678".hex(), "")
    assert span.attributes == {"list": [1, None], "map": {"text": "a"}}
    assert (span.resource, span.status) == ({"text": "a"}, "UNSET")


@pytest.mark.parametrize(
    ("body", "path", "kind", "status"),
    [
        (b"\xff\xff", PATH, PROTOBUF, 400),
        (request(b"a" * 16), "/", PROTOBUF, 404),
        (request(b"a" * 16), PATH, "application/json", 415),
    ],
)
async def test_what_is_not_otlp_is_refused(body: bytes, path: str, kind: str, status: int) -> None:
    async with OtlpReceiver() as receiver:
        assert await post(receiver, body, path, kind) == status
        assert await receiver.spans(0) == []
        assert [each.status for each in receiver.requests] == [status]


async def test_it_answers_what_it_is_told_and_goes_and_comes_back() -> None:
    async with OtlpReceiver() as receiver:
        receiver.answer(503)
        assert await post(receiver, request(b"a" * 16)) == 503
        await receiver.stop()
        await receiver.stop()
        with pytest.raises(httpx2.ConnectError):
            await post(receiver, b"")
        await receiver.start()
        receiver.answer(200)
        assert await post(receiver, request(b"a" * 16)) == 200
        assert len(await receiver.spans(1)) == 1


async def test_for_measurements_spans_are_not_looked_at() -> None:
    async with OtlpReceiver(decode=False) as receiver:
        assert await post(receiver, request(b"a" * 16)) == 200
        assert await receiver.spans(0) == []
        assert [each.size for each in await receiver.requested(1)] == [len(request(b"a" * 16))]
