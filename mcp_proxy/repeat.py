"""Recognising a message head that differs from an accepted one only in its Content-Length.

Rules of this file: pure. Recognition is byte equality around the digits of one number, so
whatever was decided about the first head holds for the second: a head with the same bytes is
valid for the same reasons. Nothing is normalised, nothing is guessed.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

T = TypeVar("T")

_LENGTH_LINE: Final = b"\r\ncontent-length:"

_DIGITS_LIMIT: Final = 9
"""Digits of a length that is recognised; longer ones take the long way."""


class RepeatedHead(Generic[T]):
    """An accepted head, cut at the digits of its Content-Length, and what it led to."""

    __slots__ = ("_before", "_behind", "_cut", "_last", "_last_size", "_rest", "value")

    def __init__(self, before: bytes, behind: bytes, value: T) -> None:
        self._before = before
        self._behind = behind
        self._cut = len(before)
        self._rest = len(behind)
        self._last = b"\0"
        """The head as it came last, with its digits, and the size of that message."""
        self._last_size = 0
        self.value = value

    @classmethod
    def of(cls, head: bytes, value: T) -> RepeatedHead[T] | None:
        """``head``: complete, with its empty line. None if it has no usable Content-Length."""
        start = head.lower().find(_LENGTH_LINE) + len(_LENGTH_LINE)
        end = head.find(b"\r", start)
        digits = head[start:end].lstrip()
        if start < len(_LENGTH_LINE) or not digits.isdigit() or len(digits) > _DIGITS_LIMIT:
            return None
        return cls(head[: end - len(digits)], head[end:], value)

    def match(self, data: bytes) -> int:
        """If ``data`` is this head, with any length, and exactly the body that it announces:
        the length. Otherwise -1."""
        if len(data) == self._last_size and data.startswith(self._last):
            return self._last_size - len(self._last)
        if not data.startswith(self._before):
            return -1
        cut = self._cut
        end = data.find(b"\r", cut, cut + _DIGITS_LIMIT + 1)
        digits = data[cut:end]
        if end < 0 or not data.startswith(self._behind, end) or not digits.isdigit():
            return -1
        length = int(digits)
        if len(data) != end + self._rest + length:
            return -1
        self._last = data[: end + self._rest]
        self._last_size = len(data)
        return length
