"""The event parser of the load test.

Rules of this file: what an event is, is the HTML Living Standard's matter (9.2.6). When it is known is ours:
with its last byte, however the bytes are cut.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy.load.sse import MAX_LINE_BYTES, Event, SseError, SseParser

LINES = st.sampled_from(
    [
        "data: a",
        "data:b",
        "data",
        "data:",
        "id: 7",
        "id",
        "id: a\0b",
        "event: x",
        "retry: 50",
        "retry: 5x",
        ": hi",
        "odd",
        "",
    ]
)
ENDS = st.sampled_from(["\n", "\r", "\r\n"])
STREAMS = st.lists(st.tuples(LINES, ENDS), max_size=14).map(
    lambda lines: "".join(map("".join, lines)).encode()
)


def reference(data: bytes) -> list[Event]:
    """The standard read as one would with all of it at hand: lines first, then blocks."""
    text = data.decode().removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    events: list[Event] = []
    block: list[tuple[str, str]] = []
    for line in re.split(r"\r\n|\n|\r", text)[:-1]:
        if not line:
            fields = [(name, value) for name, value in block if _counts(name, value)]
            if fields:
                values = dict(fields)
                data_lines = [value for name, value in fields if name == "data"]
                retry = int(values["retry"]) if "retry" in values else None
                whole = "\n".join(data_lines) if data_lines else None
                events.append(Event(whole, values.get("id"), values.get("event") or "message", retry))
            block = []
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            block.append((name, value.removeprefix(" ")))
    return events


def _counts(name: str, value: str) -> bool:
    if name == "id":
        return "\0" not in value
    if name == "retry":
        return value.isdigit()
    return name in ("data", "event")


@given(STREAMS)
def test_events_are_those_of_the_standard(data: bytes) -> None:
    assert SseParser().feed(data) == reference(data)


@given(STREAMS, st.data())
def test_the_cuts_between_reads_change_nothing(data: bytes, draw: st.DataObject) -> None:
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=6)))
    parser, events = SseParser(), []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        events += parser.feed(data[start:end])
    assert events == reference(data)


@given(STREAMS)
def test_byte_by_byte_is_the_same_as_all_at_once(data: bytes) -> None:
    whole, single = SseParser(), SseParser()
    at_once = whole.feed(data)
    assert [event for byte in data for event in single.feed(bytes([byte]))] == at_once
    assert (single.last_id, single.comments, single.is_inside) == (
        whole.last_id,
        whole.comments,
        whole.is_inside,
    )


@pytest.mark.parametrize("end", [b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r", b"\r\n\n"])
def test_an_event_is_known_with_its_last_byte(end: bytes) -> None:
    """``\\r\\n\\r\\n``: with its third, since a CR ends a line; the LF behind it says nothing more."""
    parser = SseParser()
    text = b"data: 1" + end
    known_at = next(index for index in range(len(text)) if parser.feed(text[index : index + 1]))
    assert known_at == len(text) - (2 if end == b"\r\n\r\n" else 1)
    assert not parser.is_inside


@pytest.mark.parametrize(
    ("data", "is_inside"),
    [
        (b"", False),
        (b": hi\n", False),
        (b": h", True),
        (b"data: 1\n", True),
        (b"data: 1\n\n", False),
        (b"x\n", False),
    ],
)
def test_a_stream_that_ends_inside_an_event_shows_it(data: bytes, is_inside: bool) -> None:
    parser = SseParser()
    parser.feed(data)
    assert parser.is_inside is is_inside


def test_the_last_id_is_that_of_the_last_whole_event() -> None:
    parser = SseParser()
    parser.feed(b"id: 1\ndata: a\n\nid: 2\n\ndata: c\n\nid: 3\n")
    assert parser.last_id == "2"


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert SseParser().feed(b"\xef\xbb\xbfdata: 1\n\n") == [Event("1")]


def test_a_line_without_end_is_refused_instead_of_kept() -> None:
    parser = SseParser()
    with pytest.raises(SseError):
        parser.feed(b"x" * (MAX_LINE_BYTES + 1))
