"""Where events end: every mix of line ends, cut anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy.eventstream import BEGINNING, is_between_events, rest_of_event, trail

TEXTS = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"d", b"data: x", b":"]), max_size=12).map(b"".join)


def ends(text: bytes) -> set[int]:
    """Where events end, by the letter: behind the end of every empty line. Behind a CR that is the last
    byte, too, although its LF may be still to come."""
    found, at, start = {0}, 0, 0
    while at < len(text):
        if text[at] not in b"\r\n":
            at += 1
            continue
        is_empty = at == start
        at += 2 if text[at : at + 2] == b"\r\n" else 1
        start = at
        if is_empty:
            found.add(at)
    return found


def cut(text: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(text), *(at for at in cuts if at < len(text))})
    return [text[start:end] for start, end in pairwise(edges)]


def trail_of(*chunks: bytes) -> bytes:
    last = BEGINNING
    for chunk in chunks:
        last = trail(last, chunk)
    return last


@pytest.mark.parametrize(
    ("text", "is_between"),
    [
        (b"", True),
        (b"data: 1\n\n", True),
        (b"data: 1\r\n\r\n", True),
        (b"data: 1\r\r", True),
        (b"data: 1\n\r\n", True),
        (b"data: 1\r\n\n", True),
        (b": ping\n\n", True),
        (b"data: 1", False),
        (b"data: 1\n", False),
        (b"data: 1\r\n", False),
        (b"data: 1\r", False),
        (b"data: 1\n\nd", False),
        (b"data: 1\r\n\r", False),  # its LF is on the way, and parsers wait for it
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_stream_is_between_events_behind_an_empty_line(text: bytes, is_between: bool, size: int) -> None:
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    assert is_between_events(trail_of(*chunks)) is is_between


@pytest.mark.parametrize(
    ("before", "chunk", "rest"),
    [
        (b"data: 1", b"2\n\ndata: 3\n\n", b"2\n\n"),
        (b"data: 1\n", b"\ndata: 3", b"\n"),
        (b"data: 1\n\nd", b"ata: 2\n\n", b"ata: 2\n\n"),
        (b"data: 1\r\n\r", b"\ndata: 3", b"\n"),
        (b"data: 1\r\n", b"\r\ndata: 3", b"\r\n"),
        (b"data: 1\r", b"\n\r\ndata: 3", b"\n\r\n"),
        (b"data: 1\r", b"\rdata: 3", b"\r"),
        (b"data: 1\n\r", b"data: 3", b""),
        (b"data: 1\n\n\r", b"data: 3", b""),
        (b"data: 1", b"\r\n", None),
        (b"data: 1\r\n", b"\r", None),
        (b"data: 1\r", b"\n", None),
        (b"data: 1", b"2", None),
    ],
)
def test_the_rest_of_an_event_ends_with_it(before: bytes, chunk: bytes, rest: bytes | None) -> None:
    end = rest_of_event(trail_of(before), chunk)
    assert (None if end is None else chunk[:end]) == rest


@given(TEXTS, st.lists(st.integers(0, 60)), st.integers(0, 60))
def test_however_it_is_cut_a_stream_ends_behind_the_first_event_that_ends(
    text: bytes, cuts: list[int], chunks_before: int
) -> None:
    chunks = cut(text, cuts)
    chunks_before = min(chunks_before, len(chunks))
    last, relayed = BEGINNING, b""
    for number, chunk in enumerate(chunks):
        if number >= chunks_before:
            if is_between_events(last):
                break
            end = rest_of_event(last, chunk)
            relayed += chunk if end is None else chunk[:end]
            last = trail(last, chunk)
            if end is not None:
                break
        else:
            relayed += chunk
            last = trail(last, chunk)
    else:
        if not is_between_events(last):
            assert len(relayed) not in ends(text) or relayed.endswith(b"\r")
            return
    assert text.startswith(relayed)
    assert len(relayed) in ends(text) | ends(relayed)
