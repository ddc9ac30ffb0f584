"""Feeding a chunked body to llhttp without feeding anything behind it.

Rules of this file: no I/O. The parser does not say how much of its input belonged to the
message it has just completed. But a chunked message ends with CR LF CR LF (RFC 9112 section
7.1: the last chunk's line or the last trailer field, then an empty line), so a parser that is
fed up to each of these in turn has, when it reports the end, seen nothing of what follows.
"""

from __future__ import annotations

from typing import Protocol


class Parser(Protocol):
    def feed_data(self, data: bytes) -> None: ...


class Message(Protocol):
    """The parser's callback object."""

    is_complete: bool
    """Set by ``on_message_complete``."""


class ChunkedFeeder:
    """Feeds the body of one message. ``parser`` has just accepted its head."""

    __slots__ = ("_message", "_parser", "_tail")

    def __init__(self, parser: Parser, message: Message) -> None:
        self._parser = parser
        self._message = message
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """Feed ``data``; returns what is behind the message. Raises the parser's errors."""
        joined = self._tail + data  # the four bytes may span segments
        start = len(self._tail)
        search = 0
        while start < len(joined) and not self._message.is_complete:
            found = joined.find(b"\r\n\r\n", search)
            search = end = found + 4 if found >= 0 else len(joined)
            self._parser.feed_data(joined[start:end])
            start = end
        self._tail = joined[max(0, start - 3) : start]
        return joined[start:]
