"""Where an event of a ``text/event-stream`` ends. Pure.

Rules of this file: an event ends with an empty line; a line ends with CR LF, LF or CR, in any mix (HTML,
server-sent events: interpreting). CR LF is one line end, never two. A stream that is relayed pays for
three bytes that are kept of every chunk; the search is made once, when the stream is to end.
"""

from __future__ import annotations

import re
from typing import Final

BEGINNING: Final = b"\n\n"
"""What stands before the first byte of a stream: no event has begun."""

TRAIL_BYTES: Final = 3
"""Enough to tell a line end behind a line end: CR LF behind anything."""

_ENDED: Final = (b"\n\n", b"\r\r", b"\n\r\n", b"\r\r\n")
_LINE_ENDS: Final = b"\r\n"

_empty_line = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n|\Z)|(?<=\r)\r\Z)")
"""Two line ends. A CR at the end of the text counts behind a CR only: behind another line end its LF is
still to come, and parsers wait for it."""


def trail(before: bytes, chunk: bytes) -> bytes:
    """The last bytes of a stream that ended with ``before`` and goes on with ``chunk``. Of a chunk of
    ``TRAIL_BYTES`` or more it is the end; who sees many takes that without asking."""
    return (before + chunk)[-TRAIL_BYTES:]


def is_between_events(last: bytes) -> bool:
    """Whether a stream that ends with ``last``, a ``trail``, is not in the middle of an event."""
    return last.endswith(_ENDED)


def rest_of_event(last: bytes, chunk: bytes) -> int | None:
    """How many bytes of ``chunk`` belong to the event in whose middle the stream is; None: all, and it
    goes on. 0: it had ended already, as what follows its last CR shows."""
    begun = last[len(last.rstrip(_LINE_ENDS)) :]
    match = _empty_line.search(begun + chunk)
    return None if match is None else max(0, match.end() - len(begun))
