"""What happened, counted: one row per operation, one entry per kind of failure, one cell per second. Pure.

Rules of this file: memory does not grow with the number of requests. Times go into sketches (1 % error, from
a microsecond up: locust's own numbers are whole milliseconds, more than a proxy costs). Ledgers of several
processes and rounds are added up. Names are operations, never ids; reasons are kinds, an example is beside
them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from mcp_proxy.telemetry.report import sketch

Counts = dict[int, int]
"""A sketch: number of values by bucket."""

EXAMPLES: Final = 3
"""Kept per kind of failure."""
EXAMPLE_CHARS: Final = 400
REASON_CHARS: Final = 120
"""Some hold what a server has said."""
KINDS: Final = 200
"""Kinds of failures; further ones are counted under the last name."""
OTHER: Final = "other failures"


def bucket(seconds: float) -> int:
    """Of ``sketch``, which counts milliseconds."""
    ms = seconds * 1000
    if ms < sketch.LEAST_MS:
        return 0
    return int(math.log(min(ms, sketch.MOST_MS)) * sketch.SCALE + sketch.OFFSET)


def quantile(counts: Counts, part: float) -> float | None:
    """In seconds; None of nothing."""
    (value_ms,) = sketch.quantiles(_sketch(counts), [part])
    return None if value_ms is None else value_ms / 1000


def _sketch(counts: Counts) -> sketch.Counts:
    made = sketch.sparse()
    for key, count in counts.items():
        made[key] = count
    return made


def merged(all_counts: Iterable[Counts]) -> Counts:
    total: Counts = {}
    for counts in all_counts:
        _add(total, counts)
    return total


def _add(into: Counts, counts: Counts) -> None:
    for key, count in counts.items():
        into[key] = into.get(key, 0) + count


class Operation(msgspec.Struct):
    """One row. ``times`` are of answers that were right; a failure has no time worth counting."""

    kind: str
    """Of user."""
    name: str
    is_post: bool = True
    is_call: bool = True
    """A request with an answer, as thresholds on times mean them; refusals and held streams are none."""
    answers: int = 0
    failures: int = 0
    waits: int = 0
    """Told to wait (503 or 429 with Retry-After) and obeyed."""
    waited_s: float = 0.0
    bytes: int = 0
    ends: int = 0
    """Streams that the other side ended properly."""
    times: Counts = {}
    late: Counts = {}
    """From the moment at which the request was due to its answer."""
    first: Counts = {}
    """From the request to the first event of its stream."""
    gaps: Counts = {}
    """Between two events of one stream."""


class Failure(msgspec.Struct):
    """One kind of failure of one operation."""

    operation: str
    reason: str
    count: int = 0
    is_post: bool = True
    examples: list[str] = []


class Second(msgspec.Struct):
    """What ended in one second of the run."""

    answers: int = 0
    failures: int = 0
    waits: int = 0
    users: int = 0
    times: Counts = {}


Listener = Callable[[Operation, float | None, int, str | None], None]
"""Operation, seconds, bytes, and the reason of a failure: every request as it ends."""


class Ledger(msgspec.Struct, dict=True):
    """All of one run."""

    operations: dict[str, Operation] = {}
    failures: dict[str, Failure] = {}
    refusals: dict[str, int] = {}
    """``Mcp-Proxy-Reason`` of every answer that had one, by word."""
    seconds: dict[int, Second] = {}
    lag: Counts = {}
    """How late the generator itself was."""
    cpu_s: float = 0.0
    wall_s: float = 0.0
    steady_s: float = 0.0
    steady_cpu_s: float = 0.0
    processes: int = 0

    def __post_init__(self) -> None:
        self.listener: Listener | None = None
        self.warm_up_s = 0.0
        """Before that, answers count and their times do not: everybody connects at once."""
        self.begun = time.perf_counter()

    # Written by users

    def operation(self, kind: str, name: str, *, is_post: bool = True, is_call: bool = True) -> Operation:
        """The row of this name; made when it is first asked for."""
        key = f"{kind} {name}"
        row = self.operations.get(key)
        if row is None:
            row = self.operations[key] = Operation(kind, name, is_post, is_call)
        return row

    def answered(self, row: Operation, seconds: float, size: int = 0, late_s: float | None = None) -> None:
        row.answers += 1
        row.bytes += size
        key = bucket(seconds)
        if self._is_warm():
            row.times[key] = row.times.get(key, 0) + 1
            if late_s is not None:
                due = bucket(late_s)
                row.late[due] = row.late.get(due, 0) + 1
        now = self._now()
        now.answers += 1
        if row.is_call:
            now.times[key] = now.times.get(key, 0) + 1
        if self.listener is not None:
            self.listener(row, seconds, size, None)

    def failed(self, row: Operation, reason: str, example: str = "", seconds: float | None = None) -> None:
        row.failures += 1
        self._now().failures += 1
        reason = reason[:REASON_CHARS]
        key = f"{row.kind} {row.name}: {reason}"
        if key not in self.failures and len(self.failures) >= KINDS:
            key, reason = OTHER, OTHER
        entry = self.failures.get(key)
        if entry is None:
            entry = self.failures[key] = Failure(f"{row.kind} {row.name}", reason, is_post=row.is_post)
        entry.count += 1
        if len(entry.examples) < EXAMPLES and example:
            at = time.perf_counter() - self.begun
            entry.examples.append(f"{at:.1f} s: {example}"[:EXAMPLE_CHARS])
        if self.listener is not None:
            self.listener(row, seconds, 0, reason)

    def waited(self, row: Operation, seconds: float) -> None:
        row.waits += 1
        row.waited_s += seconds
        self._now().waits += 1

    def first_event(self, row: Operation, seconds: float) -> None:
        if self._is_warm():
            key = bucket(seconds)
            row.first[key] = row.first.get(key, 0) + 1

    def gap(self, row: Operation, seconds: float) -> None:
        if self._is_warm():
            key = bucket(seconds)
            row.gaps[key] = row.gaps.get(key, 0) + 1

    def refused(self, word: str) -> None:
        known = word if word in self.refusals or len(self.refusals) < KINDS else OTHER
        self.refusals[known] = self.refusals.get(known, 0) + 1

    def _is_warm(self) -> bool:
        return time.perf_counter() - self.begun >= self.warm_up_s

    def _now(self) -> Second:
        number = int(time.perf_counter() - self.begun)
        cell = self.seconds.get(number)
        if cell is None:
            cell = self.seconds[number] = Second()
        return cell

    def users_are(self, count: int) -> None:
        self._now().users = count

    # Read by reports

    @property
    def answers(self) -> int:
        return sum(row.answers for row in self.operations.values())

    @property
    def total_failures(self) -> int:
        return sum(row.failures for row in self.operations.values())

    @property
    def post_failures(self) -> int:
        return sum(row.failures for row in self.operations.values() if row.is_post)

    @property
    def waits(self) -> int:
        return sum(row.waits for row in self.operations.values())

    def call_times(self) -> Counts:
        """Of all calls together."""
        return merged(row.times for row in self.operations.values() if row.is_call)

    def first_times(self) -> Counts:
        """Of answers; when something happens on a held stream is nobody's merit."""
        return merged(row.first for row in self.operations.values() if row.is_call)

    def add(self, other: Ledger) -> None:
        """Of another process, at the same time. Rounds after each other are added by ``after``."""
        for key, row in other.operations.items():
            self._add_operation(key, row)
        for key, failure in other.failures.items():
            mine = self.failures.setdefault(
                key, Failure(failure.operation, failure.reason, is_post=failure.is_post)
            )
            mine.count += failure.count
            mine.examples = [*mine.examples, *failure.examples][:EXAMPLES]
        for word, count in other.refusals.items():
            self.refusals[word] = self.refusals.get(word, 0) + count
        for number, cell in other.seconds.items():
            mine_now = self.seconds.setdefault(number, Second())
            mine_now.answers += cell.answers
            mine_now.failures += cell.failures
            mine_now.waits += cell.waits
            mine_now.users += cell.users
            _add(mine_now.times, cell.times)
        _add(self.lag, other.lag)
        self.cpu_s += other.cpu_s
        self.steady_cpu_s += other.steady_cpu_s
        self.wall_s = max(self.wall_s, other.wall_s)
        self.steady_s = max(self.steady_s, other.steady_s)
        self.processes += other.processes

    def after(self, other: Ledger) -> None:
        """``other`` happened when this was over: its seconds come behind these."""
        shift = max(self.seconds, default=-1) + 1
        wall_s, steady_s, processes = self.wall_s, self.steady_s, self.processes
        moved = {number + shift: cell for number, cell in other.seconds.items()}
        self.add(msgspec.structs.replace(other, seconds=moved))
        self.wall_s, self.steady_s = wall_s + other.wall_s, steady_s + other.steady_s
        self.processes = max(processes, other.processes)

    def _add_operation(self, key: str, row: Operation) -> None:
        mine = self.operations.setdefault(key, Operation(row.kind, row.name, row.is_post, row.is_call))
        for field in ("answers", "failures", "waits", "waited_s", "bytes", "ends"):
            setattr(mine, field, getattr(mine, field) + getattr(row, field))
        for field in ("times", "late", "first", "gaps"):
            _add(getattr(mine, field), getattr(row, field))
