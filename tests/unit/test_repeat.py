"""A repeated head is recognised only where the long way would have led to the same."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcp_proxy.repeat import RepeatedHead

HEAD = b"POST /mcp HTTP/1.1\r\nhost: a\r\nContent-Length: 2\r\nx-b: c\r\n\r\n"


def recogniser(head: bytes = HEAD) -> RepeatedHead[str]:
    repeated = RepeatedHead.of(head, "value")
    assert repeated is not None
    return repeated


def test_the_same_head_with_any_length_and_its_body_is_recognised() -> None:
    repeated = recogniser()

    assert repeated.value == "value"
    assert repeated.match(HEAD + b"{}") == 2
    assert repeated.match(HEAD.replace(b" 2\r", b" 11\r") + b"hello world") == 11
    assert repeated.match(HEAD.replace(b" 2\r", b" 0\r")) == 0
    assert repeated.match(HEAD.replace(b" 2\r", b" 000000003\r") + b"abc") == 3


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEAD,
        HEAD + b"{",
        HEAD + b"{} ",
        HEAD[:-1],
        HEAD.lower() + b"{}",
        HEAD.replace(b"host: a", b"host: b") + b"{}",
        HEAD.replace(b"x-b: c", b"x-b: d") + b"{}",
        HEAD.replace(b"x-b: c", b"x-b: c\r\nx-d: e") + b"{}",
        HEAD.replace(b" 2\r", b" +2\r") + b"{}",
        HEAD.replace(b" 2\r", b" 2 \r") + b"{}",
        HEAD.replace(b" 2\r", b"  2\r") + b"{}",
        HEAD.replace(b" 2\r", b" 2, 2\r") + b"{}",
        HEAD.replace(b" 2\r", b" 0x2\r") + b"{}",
        HEAD.replace(b" 2\r", b" -2\r") + b"{}",
        HEAD.replace(b" 2\r", b" \r"),
        HEAD.replace(b" 2\r", b" \xb2\r") + b"{}",
        HEAD.replace(b" 2\r\n", b" 2\n") + b"{}",
        HEAD.replace(b" 2\r\n", b" 2\r\nContent-Length: 2\r\n") + b"{}",
        HEAD.replace(b" 2\r", b" 0000000002\r") + b"{}",
        b" " + HEAD + b"{}",
        HEAD + b"{}" + HEAD + b"{}",
    ],
)
def test_anything_else_takes_the_long_way(data: bytes) -> None:
    assert recogniser().match(data) == -1


def test_what_came_before_does_not_matter() -> None:
    repeated = recogniser()
    shorter, longer = HEAD + b"{}", HEAD.replace(b" 2\r", b" 12\r") + b"hello world!"

    assert [repeated.match(data) for data in (shorter, longer, longer, shorter)] == [2, 12, 12, 2]
    assert repeated.match(shorter[:-1]) == -1
    assert repeated.match(longer[:-10]) == -1
    assert repeated.match(HEAD[:-2] + b"x\r\n{}") == -1
    assert repeated.match(b"") == -1
    assert repeated.match(b"\0") == -1


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 5 \r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1234567890\r\n\r\n",
        b"POST / HTTP/1.1\r\nx-content-length: 5\r\n\r\n",
        b"POST /?content-length:5 HTTP/1.1\r\nx: content-length: 5\r\n\r\n",
    ],
)
def test_a_head_without_a_plain_length_is_not_remembered(head: bytes) -> None:
    assert RepeatedHead.of(head, "value") is None


class Parsed:
    """What llhttp makes of bytes: the messages, with everything but their lengths."""

    def __init__(self) -> None:
        self.messages: list[tuple[list[tuple[bytes, bytes]], bytes]] = []
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = b""

    def on_url(self, url: bytes) -> None:
        self._headers.append((b"", url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() != b"content-length":
            self._headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.messages.append((self._headers, self._body))
        self._headers, self._body = [], b""


def parsed(data: bytes) -> Parsed:
    messages = Parsed()
    httptools.HttpRequestParser(messages).feed_data(data)
    return messages


_names = st.sampled_from(
    [b"host", b"accept", b"x-a", b"Content-Type", b"mcp-session-id", b"x-content-length"]
)
_values = st.sampled_from([b"a", b"", b"application/json", b"content-length: 7", b"1 2"])
_lines = st.lists(st.tuples(_names, _values).map(lambda pair: b"%b: %b\r\n" % pair), max_size=4)
_spelling = st.sampled_from([b"content-length: ", b"Content-Length:", b"CONTENT-LENGTH:\t "])


@settings(deadline=None)
@given(
    _lines,
    _spelling,
    _lines,
    st.binary(max_size=40),
    st.sampled_from([0, 0, 0, 1, -1]),
    st.integers(0, 300),
    st.sampled_from([b"", b"\r", b"\n", b"0", b"5", b" ", b"\r\n", b"{}", b"POST / HTTP/1.1\r\n\r\n"]),
)
@example([], b"content-length: ", [], b"12345", 0, 0, b"")
def test_what_is_recognised_is_one_message_that_the_parser_reads_alike(
    before: list[bytes],
    spelling: bytes,
    behind: list[bytes],
    body: bytes,
    lie: int,
    cut: int,
    patch: bytes,
) -> None:
    def head(length: int) -> bytes:
        lines = [b"POST /mcp HTTP/1.1\r\n", *before, spelling + b"%d\r\n" % length, *behind, b"\r\n"]
        return b"".join(lines)

    accepted = head(5)
    data = head(max(0, len(body) + lie)) + body
    data = data[:cut] + patch + data[cut:]

    repeated = recogniser(accepted)
    found = repeated.match(data)
    repeated.match(head(len(body)) + body)

    assert repeated.match(data) == found
    if found >= 0:
        remembered = parsed(accepted + b"12345").messages
        messages = parsed(data).messages
        assert len(messages) == 1
        assert messages[0][0] == remembered[0][0]
        assert messages[0][1] == data[len(data) - found :]
        assert len(messages[0][1]) == found
