"""A head is looked up only where the long way would have led to the same, but for the values that vary."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcp_proxy.downstream.known import HEAD_LIMIT, Cut, KnownHeads, Shape
from mcp_proxy.wire import VARYING

ID = b"0af7651916cd43dd8448eb211c80319c"
PARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
HEAD = (
    b"POST /mcp HTTP/1.1\r\nhost: a\r\nX-Request-Id: %b\r\nContent-Length: 2\r\n"
    b"traceparent: %b\r\nx-b: c\r\n\r\n" % (ID, PARENT)
)


def shape(head: bytes = HEAD, origin: bytes = b"peer\n") -> Shape:
    found = Shape.of(head, origin)
    assert found is not None
    return found


def cut(data: bytes, head: bytes = HEAD) -> Cut:
    found = shape(head).cut(data)
    assert found is not None
    return found


def test_values_that_vary_are_cut_out_and_told() -> None:
    other = HEAD.replace(ID, b"another").replace(PARENT, b"00-x").replace(b": 2\r", b": 11\r")
    found = cut(other + b"hello world")

    assert found.key == cut(HEAD).key
    assert found.values == [(b"x-request-id", b"another"), (b"traceparent", b"00-x")]
    assert (found.end, found.length) == (len(other), 11)


@pytest.mark.parametrize(
    "change",
    [
        (b"host: a", b"host: b"),
        (b"x-b: c", b"x-b: d"),
        (b"x-b: c", b"x-b: c\r\nX-Request-Id: again"),
        (b"host: a", b"host: a\r\nContent-Length: 3"),
        (b"X-Request-Id: ", b"X-Request-Id:"),
        (b"X-Request-Id: ", b"X-Request-ID: "),
        (b"X-Request-Id: " + ID + b"\r\n", b""),
        (b"POST", b"PUT"),
        (b"1.1", b"1.0"),
    ],
)
def test_another_head_is_another_key(change: tuple[bytes, bytes]) -> None:
    found = shape().cut(HEAD.replace(*change))

    assert found is None or found.key != cut(HEAD).key


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"a b",
        b"a\x00b",
        b"a\nb",
        b'"a"',
        b"a,b",
        b"a;b",
        b"\xff",
        b"a\tb",
        b"x" * 129,
        b" lead",
        b"trail ",
    ],
)
@pytest.mark.parametrize("name", [b"X-Request-Id: " + ID, b"traceparent: " + PARENT])
def test_a_value_that_may_mean_something_takes_the_long_way(name: bytes, value: bytes) -> None:
    assert shape().cut(HEAD.replace(name, name.partition(b" ")[0] + b" " + value)) is None


@pytest.mark.parametrize("length", [b"", b"+2", b"-2", b"0x2", b"2 ", b" 2", b"2, 2", b"1234567890", b"\xb2"])
def test_a_length_that_is_not_a_plain_number_takes_the_long_way(length: bytes) -> None:
    assert shape().cut(HEAD.replace(b"Length: 2", b"Length: " + length)) is None


@pytest.mark.parametrize("size", range(len(HEAD)))
def test_a_head_that_is_not_complete_takes_the_long_way(size: int) -> None:
    found = shape().cut(HEAD[:size])

    assert found is None or found.key != cut(HEAD).key


def test_the_same_head_from_elsewhere_is_another_key() -> None:
    here, there = shape(), shape(origin=b"other peer\n")
    one, other = here.cut(HEAD), there.cut(HEAD)

    assert one is not None
    assert other is not None
    assert one.key != other.key


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\nContent-Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\nx-request-id: a\r\nX-Request-Id: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nx-content-length: 5\r\n\r\n",
        b"POST /?content-length:5 HTTP/1.1\r\nx: content-length: 5\r\n\r\n",
        HEAD[:-2] + b"x-padding: " + b"x" * HEAD_LIMIT + b"\r\n\r\n",
    ],
)
def test_a_head_that_cannot_be_looked_up_has_no_shape(head: bytes) -> None:
    assert Shape.of(head, b"") is None


def test_the_oldest_heads_go_when_there_are_too_many_bytes_of_them() -> None:
    known: KnownHeads[int] = KnownHeads(30)
    for number in range(4):
        known.remember(b"%10d" % number, number)
    known.remember(b"%10d" % 3, 33)

    assert [known.get(b"%10d" % number) for number in range(4)] == [None, 1, 2, 33]
    known.remember(b"x" * 31, 5)
    assert known.get(b"x" * 31) is None


class Parsed:
    """What llhttp makes of bytes."""

    def __init__(self) -> None:
        self.messages: list[tuple[list[tuple[bytes, bytes]], bytes]] = []
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = b""

    def on_url(self, url: bytes) -> None:
        self._headers.append((b"", url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.messages.append((self._headers, self._body))
        self._headers, self._body = [], b""


def parsed(data: bytes) -> list[tuple[list[tuple[bytes, bytes]], bytes]]:
    messages = Parsed()
    httptools.HttpRequestParser(messages).feed_data(data)
    return messages.messages


_names = st.sampled_from(
    [b"host", b"x-a", b"X-Request-Id", b"x-request-id", b"traceparent", b"Content-Length"]
)
_values = st.sampled_from([b"a", b"", b"5", b"x-request-id: 7", b"1 2", PARENT])
_lines = st.lists(st.tuples(_names, _values).map(lambda pair: b"%b: %b\r\n" % pair), max_size=4)


@given(
    _lines,
    _lines,
    st.sampled_from([b"", b"12345", b"12345678"]),
    st.integers(0, 250),
    st.sampled_from([b"", b"\r", b"\n", b"0", b" ", b"\r\n", b"{}", b"x-request-id: b\r\n", b"\r\n\r\n"]),
)
@example([b"x-request-id: a\r\n"], [b"traceparent: b\r\n"], b"12345", 0, b"")
@example([b"x-request-id: \r\n"], [], b"12345", 35, b"b")
def test_what_is_recognised_is_one_message_that_differs_in_values_that_vary(
    before: list[bytes], behind: list[bytes], body: bytes, place: int, patch: bytes
) -> None:
    def message(body: bytes) -> bytes:
        length = b"content-length: %d\r\n" % len(body)
        return b"".join([b"POST /mcp HTTP/1.1\r\n", *before, length, *behind, b"\r\n", body])

    accepted = message(b"12345")
    data = message(body)
    data = data[:place] + patch + data[place:]
    known = Shape.of(accepted[: accepted.find(b"\r\n\r\n") + 4], b"")
    first, second = (None, None) if known is None else (known.cut(accepted), known.cut(data))
    if first is None or second is None or first.key != second.key or len(data) - second.end != second.length:
        return
    (remembered,) = parsed(accepted)
    (found,) = parsed(data) or [([], b"")]
    may_differ = {b"content-length", *VARYING}
    assert [pair for pair in found[0] if pair[0] not in may_differ] == [
        pair for pair in remembered[0] if pair[0] not in may_differ
    ]
    assert [pair for pair in found[0] if pair[0] in VARYING] == second.values
    assert found[1] == data[second.end :]
    assert len(found[1]) == second.length
