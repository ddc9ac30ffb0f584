"""What has just been recorded, for whoever watches: a ring that fills only while somebody does.

Rules of this file: nobody watches most of the time, and then a record costs one comparison. Whoever watches
asks again and again with the cursor of the last answer; who stops asking is forgotten after ``WATCHED_S``,
and so are the records. What a slow watcher has missed is counted, never kept. Lines are those of the access
log, with the same things left out.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Final

import msgspec

from mcp_proxy.telemetry import RequestRecord
from mcp_proxy.telemetry.access_log import AccessLine, line_of, text_of, without_surrogates

WATCHED_S: Final = 10.0
"""Without a question for so long, nobody watches any more. Watchers ask four times a second."""

SIZE: Final = 2048
"""Records: what a process that does 8,000 requests a second has between two questions."""

CURSOR_LIMIT: Final = 4096
"""Characters. A process takes some 20 of them."""


class Recent(msgspec.Struct, frozen=True):
    """The answer to one question."""

    cursor: str
    """For the next question."""
    lines: list[AccessLine] = []
    """What has ended since the question before, oldest first."""
    missed: int = 0
    """So many more had ended, but are no longer known."""
    is_over: bool = False
    """Nothing more will come: the proxy drains."""


class Ring:
    """A ``Sink``. ``sweep`` is a job for the Ticker."""

    __slots__ = ("_count", "_name", "_records", "_until_s", "is_watched")

    def __init__(self, size: int = SIZE) -> None:
        self.is_watched = False
        self._until_s = 0.0
        self._count = 0
        """Of all records since it was first watched."""
        self._records: deque[RequestRecord] = deque(maxlen=size)
        # A cursor of a process that was replaced would point anywhere in this one.
        self._name = secrets.token_hex(4)

    def record(self, record: RequestRecord) -> None:
        if self.is_watched:
            self._count += 1
            self._records.append(record)

    def recent(self, cursor: str, at_s: float) -> Recent:
        """What was recorded since the answer that had this cursor; nothing for one that is not from here,
        such as the empty one of a first question."""
        self.is_watched = True
        self._until_s = at_s + WATCHED_S
        seen = self._seen(cursor)
        new = min(self._count - seen, len(self._records))
        records = islice(self._records, len(self._records) - new, None)
        return Recent(f"{self._name}-{self._count}", _lines(records), self._count - seen - new)

    def sweep(self, at_s: float) -> None:
        if self.is_watched and at_s >= self._until_s:
            self.is_watched = False
            self._records.clear()

    def _seen(self, cursor: str) -> int:
        name, _, text = cursor.partition("-")
        if name != self._name or not text.isascii() or not text.isdecimal() or len(text) > 18:
            return self._count
        return min(int(text), self._count)


def _lines(records: islice[RequestRecord]) -> list[AccessLine]:
    lines = []
    for record in records:
        line = line_of(record, text_of(int(record.time_s)))
        is_plain = line.name.isascii() and line.method.isascii()
        lines.append(line if is_plain else without_surrogates(line))
    return lines


# --- several processes as one ------------------------------------------------------------------------


def split(cursor: str) -> dict[str, str]:
    """The cursor of each process, by its name; nothing of what ``together`` has not made."""
    if len(cursor) > CURSOR_LIMIT:
        return {}
    pairs = (part.partition("=") for part in cursor.split(","))
    return {name: own for name, separator, own in pairs if separator}


def together(answers: Mapping[str, Recent]) -> Recent:
    """The answers of several processes, by names of theirs without ``=`` and ``,``. Over when all are."""
    lines = [line for answer in answers.values() for line in answer.lines]
    return Recent(
        ",".join(f"{name}={answer.cursor}" for name, answer in answers.items()),
        sorted(lines, key=lambda line: line.ts),
        sum(answer.missed for answer in answers.values()),
        bool(answers) and all(answer.is_over for answer in answers.values()),
    )
