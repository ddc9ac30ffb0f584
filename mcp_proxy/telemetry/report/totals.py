"""Counting access lines by group.

Rules of this file: pure. Memory is bounded whatever the lines say: so many groups, so many buckets in each,
so many characters of a name. ``Totals.add`` is the loop that all time is spent in: no call per line that
can be avoided, nothing built but the key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import log
from typing import Final

from mcp_proxy.telemetry.report import DIMENSIONS, Line, Report, Row
from mcp_proxy.telemetry.report.sketch import (
    DENSE_FROM,
    LEAST_MS,
    OFFSET,
    SCALE,
    TOP,
    add,
    dense,
    quantiles,
    sparse,
)

GROUP_LIMIT: Final = 10_000
"""Groups that have figures of their own: 350 MB if every one of them is busy, and more than anybody reads."""
KNOWN_LIMIT: Final = 20_000
"""Keys whose group need not be looked for; with ``--by route`` many keys have the same one."""
TEXT_LIMIT: Final = 256
"""Characters of a text, as in the access log. A file that we did not write may have more."""

PARTS: Final = (0.5, 0.99)
CLEAN: Final = "--"
TOOL_CALL: Final = "tools/call"
LISTEN: Final = "subscriptions/listen"
"""The request that opens a stream in the stateless era; in the session era it is GET."""

Key = tuple[str, ...]


class Group:
    """The figures of one group while they grow."""

    __slots__ = ("bytes_in", "bytes_out", "calls", "durations", "errors", "overheads", "streams")

    def __init__(self) -> None:
        self.calls = self.streams = self.errors = self.bytes_in = self.bytes_out = 0
        self.durations = sparse()
        self.overheads = sparse()

    def make_dense(self) -> None:
        self.durations = dense(self.durations)
        self.overheads = dense(self.overheads)

    def add(self, other: Group) -> None:
        self.calls += other.calls
        self.streams += other.streams
        self.errors += other.errors
        self.bytes_in += other.bytes_in
        self.bytes_out += other.bytes_out
        add(self.durations, other.durations)
        add(self.overheads, other.overheads)

    def row(self, key: Key) -> Row:
        return Row(
            key,
            self.calls,
            self.streams,
            self.errors,
            self.bytes_in,
            self.bytes_out,
            *quantiles(self.durations, PARTS),
            *quantiles(self.overheads, PARTS),
        )


SORTS: Final[dict[str, Callable[[Row], float]]] = {
    "calls": lambda row: row.calls,
    "streams": lambda row: row.streams,
    "errors": lambda row: row.errors,
    "bytes": lambda row: row.bytes_in + row.bytes_out,
    "p50": lambda row: row.p50_ms or 0,
    "p99": lambda row: row.p99_ms or 0,
    "overhead": lambda row: row.overhead_p99_ms or 0,
}
"""What rows can be sorted by, the largest first; among equals by key."""


class Totals:
    """Counts lines. ``by``: some of DIMENSIONS. ``since`` and ``until``: as ``ts`` is written; a line that
    ended at ``until`` is not counted any more."""

    def __init__(self, by: tuple[str, ...] = DIMENSIONS, since: str = "", until: str = "~") -> None:
        self._by = by
        self._at = tuple(DIMENSIONS.index(name) for name in by)
        self._since = since
        self._until = until
        self._groups: dict[Key, Group] = {}
        self._known: dict[Key, Group] = {}
        self._folded = Group()
        self._first = "~"
        self._last = ""
        self._skipped = 0

    def add(self, lines: Iterable[Line]) -> None:
        """Count these."""
        known, since, until = self._known, self._since, self._until
        first, last = self._first, self._last
        for line in lines:
            ts = line.ts
            if ts < since or ts >= until:
                self._skipped += 1
                continue
            if ts < first:
                first = ts
            if ts > last:
                last = ts
            method = line.method
            name = line.name if method == TOOL_CALL else ""
            key = (line.route, method or line.http_method, name, line.principal)
            group = known.get(key) or self._group(key)
            group.bytes_in += line.bytes_in
            group.bytes_out += line.bytes_out
            if line.stream and (method == LISTEN or line.http_method == "GET"):
                _count_stream(group, line)
                continue
            group.calls += 1
            if line.status >= 400 or line.end != CLEAN:
                group.errors += 1
            duration_ms = line.duration_ms
            if duration_ms >= LEAST_MS:  # refusals by a door have none
                bucket = int(log(duration_ms) * SCALE + OFFSET)
                group.durations[bucket if bucket < TOP else TOP] += 1
            overhead_ms = line.overhead_ms
            if overhead_ms is not None:
                bucket = int(log(overhead_ms) * SCALE + OFFSET) if overhead_ms >= LEAST_MS else 0
                group.overheads[bucket if bucket < TOP else TOP] += 1
            if group.calls == DENSE_FROM:
                group.make_dense()
        self._first, self._last = first, last

    def _group(self, key: Key) -> Group:
        """The group of a key that is not known (yet)."""
        named = tuple(key[at][:TEXT_LIMIT] for at in self._at)
        group = self._groups.get(named)
        if group is None:
            if len(self._groups) < GROUP_LIMIT:
                group = self._groups[named] = Group()
            else:
                group = self._folded
        if len(self._known) >= KNOWN_LIMIT:
            self._known.clear()
        if sum(map(len, key)) <= len(DIMENSIONS) * TEXT_LIMIT:
            self._known[key] = group
        return group

    def report(self, *, sort: str = "calls", top: int | None = None) -> Report:
        """What has been counted so far. ``top``: rows at most, the rest is ``other``."""
        largest = SORTS[sort]
        rows = [group.row(key) for key, group in self._groups.items()]
        rows.sort(key=lambda row: (-largest(row), row.key))
        other, total = Group(), Group()
        other.add(self._folded)
        for row in rows[top:] if top is not None else ():
            other.add(self._groups[row.key])
        for group in (self._folded, *self._groups.values()):
            total.add(group)
        return Report(
            by=self._by,
            rows=rows[:top],
            other=other.row(()) if other.calls or other.streams else None,
            total=total.row(()),
            first=self._first if self._last else "",
            last=self._last,
            skipped=self._skipped,
            folded=self._folded.calls + self._folded.streams,
        )


def _count_stream(group: Group, line: Line) -> None:
    group.streams += 1
    # Streams have no end of their own: clients leave them, and so does a proxy that stops.
    if line.status >= 400 or (line.end != CLEAN and line.end[:1] not in ("C", "D")):
        group.errors += 1
