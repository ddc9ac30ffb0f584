"""Owners of tasks and request states: what bodies and event streams tell."""

from __future__ import annotations

import json
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.tap import Owned, Tap

LIMIT = 4096


def task(value: str = "t-1") -> Owned:
    return Owned("task", value.encode())


def state(value: str = "s-1") -> Owned:
    return Owned("request_state", value.encode())


def response(**result: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}).encode()


TASK = response(resultType="task", taskId="t-1", status="working", ttlMs=60000)
STATE = response(resultType="input_required", inputRequests={}, requestState="s-1")
PLAIN = response(resultType="complete", content=[])


def whole(body: bytes) -> list[Owned]:
    return Tap(LIMIT).whole(body)


def streamed(*chunks: bytes, limit_bytes: int = LIMIT) -> list[Owned]:
    tap = Tap(limit_bytes)
    return [owned for chunk in chunks for owned in tap.feed(chunk)]


def by_byte(stream: bytes, limit_bytes: int = LIMIT) -> list[Owned]:
    return streamed(*(stream[at : at + 1] for at in range(len(stream))), limit_bytes=limit_bytes)


# --- bodies ----------------------------------------------------------------------------------------


def test_a_result_tells_the_task_or_the_request_state_that_its_backend_keeps() -> None:
    assert whole(TASK) == [task()]
    assert whole(STATE) == [state()]


@pytest.mark.parametrize(
    "body",
    [
        PLAIN,
        response(taskId="t-1"),
        response(resultType="complete", taskId="t-1", requestState="s-1"),
        response(resultType="task"),
        response(resultType="task", taskId=""),
        response(resultType="task", taskId=None),
        response(resultType="task", taskId=7),
        response(resultType="task", taskId=["t-1"]),
        response(resultType="Task", taskId="t-1"),
        response(resultType=["task"], taskId="t-1"),
        response(resultType="task", requestState="s-1"),
        response(resultType="task", task={"taskId": "t-1"}),
        response(resultType="input_required", inputRequests={}),
        response(resultType="input_required", taskId="t-1"),
        response(resultType="input_required", requestState={"s": 1}),
        response(content=[{"text": '{"resultType":"task","taskId":"t-1"}'}]),
        response(structuredContent={"resultType": "task", "taskId": "t-1"}),
        b'{"jsonrpc":"2.0","id":1,"error":{"resultType":"task","taskId":"t-1"}}',
        b'{"resultType":"task","taskId":"t-1"}',
        b'{"result":null}',
        b'{"result":[{"resultType":"task","taskId":"t-1"}]}',
        b"[" + TASK + b"]",
    ],
)
def test_other_results_tell_nothing(body: bytes) -> None:
    assert whole(body) == []


def test_members_without_a_value_take_nothing_away() -> None:
    assert whole(response(resultType="task", taskId="t-1", requestState=None)) == [task()]
    assert whole(response(resultType="input_required", taskId=None, requestState="s-1")) == [state()]


def test_escapes_are_read_as_any_parser_reads_them() -> None:
    text = rb'{"res\u0075lt":{"resultType":"\u0074ask","t\u0061skId":"\u00e9\ud83d\ude00\n\u0000\""}}'

    assert whole(text) == [task('é😀\n\0"')]


def test_of_a_member_that_comes_twice_the_last_counts() -> None:
    assert whole(b'{"result":{"resultType":"task","taskId":"t-0","taskId":"t-1"}}') == [task()]
    assert whole(b'{"result":{"resultType":"task","taskId":"t-0"},"result":{"resultType":"complete"}}') == []


def test_a_body_above_the_limit_is_not_looked_at() -> None:
    assert Tap(len(TASK)).whole(TASK) == [task()]
    assert Tap(len(TASK) - 1).whole(TASK) == []


HOSTILE = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"{",
    b"null",
    b"1e999",
    TASK[:-1],
    TASK + TASK,
    b"\xef\xbb\xbf" + TASK,
    b"[" * 4000,
    b'{"x":' + b"[" * 2000 + b"]" * 2000 + b"}",
    b'{"result":' + b'{"x":' * 700 + b"1" + b"}" * 701,
    b'{"result":{"resultType":"task","taskId":"\\ud800"}}',
    b'{"result":{"resultType":"task","taskId":"\\udc00x"}}',
    b'{"result":{"resultType":"task","taskId":"\xed\xa0\x80"}}',
    b'{"result":{"resultType":"task","taskId":"\xff"}}',
    b'{"result":{"resultType":"task","taskId":' + b"9" * 3000 + b"}}",
]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_tells_nothing_and_breaks_nothing(body: bytes) -> None:
    assert whole(body) == []
    assert streamed(b"data: " + body.replace(b"\n", b"") + b"\n\n", b"data: " + TASK + b"\n\n")[-1:] == [
        task()
    ]


@settings(deadline=None)
@given(data=st.binary() | st.text().map(str.encode), depth=st.integers(0, 3))
def test_any_bytes_may_come(data: bytes, depth: int) -> None:
    body = b'{"result":' * depth + data
    whole(body)
    streamed(body, b"data:" + body, b"\n\n", data)


def test_nesting_beyond_the_stack_is_no_error() -> None:
    tap = Tap(10_000_000)

    assert tap.whole(b'{"x":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}") == []
    assert tap.feed(b'data: {"x":' + b'{"y":' * 1_000_000 + b"\n\n") == []


# --- event streams -----------------------------------------------------------------------------------


def sse(*messages: bytes, end: bytes = b"\n") -> bytes:
    return b"".join(b"event: message" + end + b"data: " + message + end + end for message in messages)


PING = b": ping\r\n\r\n"
STREAMS = {
    "lf": sse(PLAIN, TASK, PLAIN, STATE),
    "cr": sse(PLAIN, TASK, PLAIN, STATE, end=b"\r"),
    "crlf": sse(PLAIN, TASK, PLAIN, STATE, end=b"\r\n"),
    "mixed ends": b"data:" + TASK + b"\r\n\r" + b"data:" + STATE + b"\n\r\n",
    "no space": b"data:" + TASK + b"\n\ndata:" + STATE + b"\n\n",
    "byte order mark": b"\xef\xbb\xbfdata: " + TASK + b"\n\n" + sse(STATE),
    "comments": PING + sse(TASK) + PING + b":\n\n" + b": data: x\n" + sse(STATE) + PING,
    "other fields": b"id: 1\nretry: 5\ndata: " + TASK + b"\nid\n\nfoo: bar\n\n" + sse(STATE),
    "many lines": b"data: " + TASK.replace(b", ", b",\ndata: ") + b"\n\ndata\ndata:" + STATE + b"\ndata\n\n",
    "empty events": b"\n\n\n" + sse(TASK) + b"\r\n\n\r\n\r\r" + sse(STATE),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_events_are_read_wherever_the_stream_is_cut(stream: bytes) -> None:
    expected = [task(), state()]

    assert streamed(stream) == expected
    assert by_byte(stream) == expected
    for at in range(len(stream) + 1):
        assert streamed(stream[:at], stream[at:]) == expected


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_what_an_event_tells_is_known_when_it_ends(end: bytes) -> None:
    tap = Tap(LIMIT)

    assert tap.feed(b"data: " + TASK + end) == []
    assert tap.feed(end[:1]) == [task()]
    assert tap.feed(end[1:] + sse(STATE, end=end)) == [state()]


@pytest.mark.parametrize(
    "stream",
    [
        b"data: " + TASK + b"\n",
        b"data: " + TASK + b"\r\n",
        b"Data: " + TASK + b"\n\n",
        b"data : " + TASK + b"\n\n",
        b" data: " + TASK + b"\n\n",
        b": data: " + TASK + b"\n\n",
        b"datas: " + TASK + b"\n\n",
        b"\xef\xbb\xbf\xef\xbb\xbfdata: " + TASK + b"\n\n",
        b"data: 1\n\n\xef\xbb\xbfdata: " + TASK + b"\n\n",
        b"data: " + TASK + b"\ndata: " + TASK + b"\n\n",
        b"data: " + TASK[:9] + b"\n\ndata: " + TASK[9:] + b"\n\n",
        b"data: " + TASK.replace(b"t-1", b"t-\ndata:1") + b"\n\n",
        b"data: " + TASK.replace(b"60000", b"60\ndata:000") + b"\n\n",
    ],
)
def test_what_is_no_whole_data_tells_nothing(stream: bytes) -> None:
    assert streamed(stream) == []
    assert by_byte(stream) == []


def lines_of(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def reference(stream: bytes) -> list[Owned]:
    """The format as its standard tells it, a line at a time, on the whole stream."""
    learnt: list[Owned] = []
    data: list[str] = []
    for line in lines_of(stream.decode().removeprefix("\ufeff"))[:-1]:
        name, _, value = line.partition(":")
        if not line:
            learnt += whole("\n".join(data).encode())
            data = []
        elif name == "data":
            data.append(value.removeprefix(" "))
    return learnt


PIECES = st.sampled_from(
    [
        b"\n",
        b"\r",
        b"\r\n",
        b"data",
        b":",
        b" ",
        b"data: ",
        b"\xef\xbb\xbf",
        b"x",
        "é".encode(),
        b"event: message",
    ]
)
VALUES = st.sampled_from([b"data: " + TASK, b"data:" + STATE, b"data: " + TASK[:30], b"data:" + TASK[30:]])
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n"])
STREAM = st.lists(PIECES | VALUES | ENDS | st.tuples(VALUES, ENDS).map(b"".join), max_size=25).map(b"".join)


@settings(deadline=None, max_examples=300)
@given(stream=STREAM, cuts=st.lists(st.integers(0, 1500)))
def test_any_stream_cut_anywhere_is_read_as_the_standard_says(stream: bytes, cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(stream)]
    chunks = [stream[start:end] for start, end in pairwise(bounds)]

    assert streamed(*chunks) == reference(stream)
    assert by_byte(stream) == reference(stream)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_an_event_above_the_limit_is_skipped_and_reading_goes_on_with_the_next(end: bytes) -> None:
    large = b"data: " + response(resultType="task", taskId="large", pad="x" * 300) + end + end
    stream = large + sse(TASK, end=end) + large + large + sse(STATE, end=end)

    for size in (1, 2, 7, 100, len(large), len(stream)):
        chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert streamed(*chunks, limit_bytes=200) == [task(), state()]
    assert len(streamed(stream, limit_bytes=1000)) == 5


@pytest.mark.parametrize(
    "event", [b"data: " + TASK + b"\n:" + b"x" * 210, b":" + b"x" * 210 + b"\ndata: " + TASK]
)
def test_an_event_above_the_limit_tells_nothing_wherever_its_data_stands(event: bytes) -> None:
    stream = event + b"\n\n" + sse(STATE)

    assert streamed(stream, limit_bytes=200) == [state()]
    assert by_byte(stream, limit_bytes=200) == [state()]
    assert by_byte(stream) == [task(), state()]


def test_an_event_that_fits_exactly_is_read() -> None:
    event = b"data: " + TASK

    assert streamed(event + b"\n\n", limit_bytes=len(event)) == [task()]
    assert by_byte(event + b"\n\n", limit_bytes=len(event)) == [task()]
    assert streamed(event + b"\n\n", limit_bytes=len(event) - 1) == []
    assert by_byte(event + b"\n\n", limit_bytes=len(event) - 1) == []


def test_an_event_above_the_limit_is_not_kept() -> None:
    tap = Tap(65536)
    chunk = b"x" * 16384
    tracemalloc.start()
    try:
        for _ in range(500):
            tap.feed(chunk)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 4 * 65536
    assert tap.feed(b"\n\n" + sse(TASK)) == [task()]
