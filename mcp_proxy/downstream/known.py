"""Recognising heads that were accepted before but for values that are others in every call.

Rules of this file: pure. Clients that trace, and proxies in front that number requests, never send the same
head twice; a proxy that mixes its clients over its connections does not send them in a row either. So a head
is looked up by its bytes without the values that vary. Those are cut out where the lines begin in which they
were found once, and are used only if they are of plain characters: whatever was decided about the rest holds.
"""

from __future__ import annotations

import re
from typing import Final, Generic, NamedTuple, TypeVar

from mcp_proxy.wire import VARYING, Headers

T = TypeVar("T")

KNOWN_BYTES: Final = 4 * 1024 * 1024
"""Heads remembered for proxies in front, of a process. An admission takes two to four times the bytes of its
head beside it."""

HEAD_LIMIT: Final = 4 * 1024
"""Bytes of a head that is remembered. Tokens fit; a client with more cookies than that is parsed anew."""

_DIGITS: Final = re.compile(rb"[0-9]{1,9}")
_PLAIN: Final = re.compile(rb"[0-9A-Za-z._-]{1,128}")
"""Characters that mean nothing to anybody who frames, quotes or lists."""

_LENGTH: Final = b"content-length"
_LINE: Final = re.compile(rb"\r\n(%b): ?" % b"|".join((_LENGTH, *VARYING)), re.IGNORECASE)


class Cut(NamedTuple):
    key: bytes
    """All bytes of the head but the values that vary, and where it came from."""
    end: int
    """Where the body begins."""
    length: int
    """What Content-Length says."""
    values: Headers


class Shape:
    """In which lines of the heads of one connection there are values that vary, as they are written there."""

    __slots__ = ("_lines", "_origin")

    def __init__(self, lines: list[tuple[bytes, bytes]], origin: bytes) -> None:
        """``lines``: the bytes in front of each value, and the name of its field."""
        self._lines = lines
        self._origin = b"".join((origin, *(start for start, _ in lines), b"\n"))

    @classmethod
    def of(cls, head: bytes, origin: bytes) -> Shape | None:
        """``head``: complete, with its empty line. None if it is none to remember. What comes from another
        ``origin`` is another head."""
        if len(head) > HEAD_LIMIT:
            return None
        lines = [(found[0], found[1].lower()) for found in _LINE.finditer(head)]
        names = [name for _, name in lines]
        if names.count(_LENGTH) != 1 or len(set(names)) < len(names):
            return None
        return cls(lines, origin)

    def cut(self, data: bytes) -> Cut | None:
        """None if ``data`` does not begin with a head that can be looked up."""
        end = data.find(b"\r\n\r\n") + 4
        parts = [self._origin]
        values: Headers = []
        done, length = 0, -1
        for start, name in self._lines:
            found = data.find(start, done, end)
            if found < 0:
                return None
            found += len(start)
            parts.append(data[done:found])
            done = data.find(b"\r", found, end)
            value = data[found:done]
            if name is _LENGTH or name == _LENGTH:
                if _DIGITS.fullmatch(value) is None:
                    return None
                length = int(value)
            elif _PLAIN.fullmatch(value) is None:
                return None
            else:
                values.append((name, value))
        parts.append(data[done:end])
        return Cut(b"".join(parts), end, length, values)


class KnownHeads(Generic[T]):
    """What accepted heads led to. The oldest go when there are too many bytes of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._known: dict[bytes, T] = {}
        self.get = self._known.get
        """By ``Cut.key``."""

    def remember(self, key: bytes, value: T) -> None:
        known = self._known
        if key not in known:
            self._bytes += len(key)
        known[key] = value
        while self._bytes > self._limit:
            oldest = next(iter(known))
            del known[oldest]
            self._bytes -= len(oldest)
