"""Server-sent events, byte by byte: what is whole is known as soon as its last byte is here. Pure.

Rules of this file: HTML Living Standard, 9.2.6 "Interpreting an event stream". A line ends with LF, CR or
CR LF; a CR ends its line at once, the LF that may follow is swallowed later, so that no event waits for the
byte behind it. What the bytes are cut into does not matter.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""A line that is longer is an attack or a bug: SDK clients take 1 MiB per event."""

_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_BOM: Final = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One block of the stream with at least one field."""

    data: str | None
    """None: the block had no data, clients see only its id."""
    id: str | None = None
    """As set by this block; None if it set none."""
    event: str = "message"
    retry_ms: int | None = None


class SseError(Exception):
    """The bytes are no event stream that anybody could read."""


class SseParser:
    """``feed`` bytes as they come, get the events that they complete."""

    def __init__(self) -> None:
        self.comments = 0
        """Lines that began with a colon: keep-alives."""
        self.last_id = ""
        """What a client would send as ``Last-Event-ID``."""
        self._rest = b""
        self._is_first_line = True
        self._swallow_lf = False
        self._clear()

    def feed(self, data: bytes) -> list[Event]:
        if self._swallow_lf and data:
            self._swallow_lf = False
            if data.startswith(b"\n"):
                data = data[1:]
        events: list[Event] = []
        searched, start = len(self._rest), 0
        buffer = self._rest + data
        for end in _LINE_END.finditer(buffer, searched):
            self._line(buffer[start : end.start()], events)
            start = end.end()
        self._rest = buffer[start:]
        # Nothing is kept behind a CR at the very end, and nothing else ends in one.
        self._swallow_lf = self._swallow_lf or (not self._rest and buffer.endswith(b"\r"))
        if len(self._rest) > MAX_LINE_BYTES:
            raise SseError(f"a line of more than {MAX_LINE_BYTES} bytes")
        return events

    @property
    def is_inside(self) -> bool:
        """An event has begun and is not complete: who ends here, ends too early."""
        return bool(self._rest) or self._is_begun

    def _clear(self) -> None:
        self._data: list[str] = []
        self._id: str | None = None
        self._event = ""
        self._retry_ms: int | None = None
        self._is_begun = False

    def _line(self, line: bytes, events: list[Event]) -> None:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BOM)
        if not line:
            self._dispatch(events)
        elif line.startswith(b":"):
            self.comments += 1
        else:
            name, _, value = line.decode(errors="replace").partition(":")
            self._field(name, value.removeprefix(" "))

    def _field(self, name: str, value: str) -> None:
        if name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "event":
            self._event = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self._retry_ms = int(value)
        else:
            return
        self._is_begun = True

    def _dispatch(self, events: list[Event]) -> None:
        if self._is_begun:
            if self._id is not None:
                self.last_id = self._id
            data = "\n".join(self._data) if self._data else None
            events.append(Event(data, self._id, self._event or "message", self._retry_ms))
            self._clear()
