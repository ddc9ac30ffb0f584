"""What a reader of the report wants to know, made from the ledgers. Pure.

Rules of this file: numbers only, as JSON has them; how they look is the reports' matter. Times are seconds.
Overhead is a difference of medians: per endpoint the median of its rounds, so that one bad moment of the
machine is not a property of what was measured in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

import msgspec

from mcp_proxy.load import CLASSES
from mcp_proxy.load.conduct import During
from mcp_proxy.load.ledger import Counts, Failure, Ledger, Operation, merged, quantile
from mcp_proxy.load.thresholds import Verdict

SATURATED: Final = 0.85
"""Of a core: above, a generator measures itself. locust warns at 0.9 of its own."""
LATE_S: Final = 0.025
"""p99 of the generator's own lateness above which its times are in doubt."""
FEW: Final = 20
"""Answers in a round below which its p99 is a single answer."""
PARTS: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
ALL_JSON: Final = "all JSON answers"
ALL_FIRST: Final = "all first events of answers"


class Times(msgspec.Struct):
    """In seconds; None of nothing."""

    p50: float | None
    p90: float | None
    p99: float | None
    p999: float | None
    max: float | None


class Row(msgspec.Struct):
    """One operation. ``late`` counts from the moment at which the request was due."""

    kind: str
    name: str
    answers: int
    failures: int
    waits: int
    waited_s: float
    rate: float
    ends: int
    is_call: bool
    time: Times
    late: Times
    first_event: Times
    gap: Times


class Moment(msgspec.Struct):
    """One second of the run."""

    second: int
    users: int
    answers: int
    failures: int
    waits: int
    p50: float | None
    p99: float | None


class Endpoint(msgspec.Struct):
    """What was found at one address."""

    name: str
    url: str
    wall_s: float
    answers: int
    failures: int
    failed_posts: int
    waits: int
    rate: float
    calls: Times
    generator_cpu: float
    """Of one core, of the busiest kind of process: the generator."""
    generator_late_p99: float | None
    rows: list[Row]
    history: list[Moment]
    refusals: dict[str, int]
    errors: list[Failure]


class Overhead(msgspec.Struct):
    """What one endpoint costs above the first, for one operation."""

    endpoint: str
    operation: str
    what: str
    """``time`` or ``first event``."""
    base_p50: float
    p50: float
    base_p99: float
    p99: float

    @property
    def p50_ratio(self) -> float:
        return self.p50 / self.base_p50 if self.base_p50 else 0.0

    @property
    def p99_ratio(self) -> float:
        return self.p99 / self.base_p99 if self.base_p99 else 0.0


class Summary(msgspec.Struct):
    """The whole report."""

    version: str
    began: str
    """UTC, ISO 8601."""
    exit_code: int
    headline: str
    settings: dict[str, Any]
    verdicts: list[Verdict]
    notes: list[str]
    warnings: list[str]
    endpoints: list[Endpoint]
    overheads: list[Overhead]
    during: During | None = None


def times(counts: Counts) -> Times:
    return Times(*(quantile(counts, part) for part in PARTS.values()))


def endpoint(name: str, url: str, ledger: Ledger) -> Endpoint:
    shown = [row for row in ledger.operations.values() if row.answers or row.failures or row.waits]
    shown.sort(key=lambda row: CLASSES.index(row.kind))
    return Endpoint(
        name=name,
        url=url,
        wall_s=ledger.wall_s,
        answers=ledger.answers,
        failures=ledger.total_failures,
        failed_posts=ledger.post_failures,
        waits=ledger.waits,
        rate=_rate(ledger.answers, ledger),
        calls=times(ledger.call_times()),
        generator_cpu=_cpu(ledger),
        generator_late_p99=quantile(ledger.lag, 0.99),
        rows=[_row(row, ledger) for row in shown],
        history=[_moment(number, ledger) for number in sorted(ledger.seconds)],
        refusals=dict(sorted(ledger.refusals.items(), key=lambda item: -item[1])),
        errors=sorted(ledger.failures.values(), key=lambda failure: -failure.count),
    )


def warnings(ledgers: Mapping[str, Ledger]) -> list[str]:
    """What makes the figures doubtful, one sentence each."""
    found = []
    for name, ledger in ledgers.items():
        of = f" ({name})" if len(ledgers) > 1 else ""
        cpu, late = _cpu(ledger), quantile(ledger.lag, 0.99)
        if cpu >= SATURATED:
            found.append(
                f"the load generator was busy for {cpu:.0%} of a core{of}: times are its own as well; "
                "use --processes, fewer --users or a slower --pace"
            )
        elif late is not None and late > LATE_S:
            found.append(
                f"the load generator was late by {late * 1000:.0f} ms at p99{of}: the machine was busy, and "
                "times contain that"
            )
    return found


def overheads(rounds: Mapping[str, Sequence[Ledger]]) -> list[Overhead]:
    """Of every endpoint above the first: all JSON answers, all first events, and each call that both have."""
    names = list(rounds)
    if len(names) < 2:
        return []
    found = []
    base = rounds[names[0]]
    calls = [(key, row) for key, row in _operations(base).items() if row.is_call]
    calls.sort(key=lambda call: CLASSES.index(call[1].kind))
    for name in names[1:]:
        for key in (ALL_JSON, ALL_FIRST, *(key for key, _ in calls)):
            for what in ("time", "first event"):
                ours, theirs = _medians(base, key, what), _medians(rounds[name], key, what)
                if ours is not None and theirs is not None:
                    found.append(Overhead(name, key, what, ours[0], theirs[0], ours[1], theirs[1]))
    return found


def _operations(ledgers: Sequence[Ledger]) -> dict[str, Operation]:
    return {key: row for ledger in ledgers for key, row in ledger.operations.items()}


def _medians(ledgers: Sequence[Ledger], key: str, what: str) -> tuple[float, float] | None:
    """p50 and p99: of each round, then the median of these. None if a round has too few."""
    all_p50, all_p99 = [], []
    for ledger in ledgers:
        counts = _counts(ledger, key, what)
        p50, p99 = quantile(counts, 0.5), quantile(counts, 0.99)
        if sum(counts.values()) < FEW or p50 is None or p99 is None:
            return None
        all_p50.append(p50)
        all_p99.append(p99)
    return (median(all_p50), median(all_p99)) if all_p50 else None


def _counts(ledger: Ledger, key: str, what: str) -> Counts:
    calls = [row for row in ledger.operations.values() if row.is_call]
    if key == ALL_JSON:
        return merged(row.times for row in calls if not row.first) if what == "time" else {}
    if key == ALL_FIRST:
        return merged(row.first for row in calls) if what == "first event" else {}
    row = ledger.operations.get(key)
    if row is None:
        return {}
    return row.times if what == "time" else row.first


def _row(row: Operation, ledger: Ledger) -> Row:
    return Row(
        *(row.kind, row.name, row.answers, row.failures, row.waits, row.waited_s),
        rate=_rate(row.answers, ledger),
        ends=row.ends,
        is_call=row.is_call,
        time=times(row.times),
        late=times(row.late),
        first_event=times(row.first),
        gap=times(row.gaps),
    )


def _moment(number: int, ledger: Ledger) -> Moment:
    cell = ledger.seconds[number]
    p50, p99 = quantile(cell.times, 0.5), quantile(cell.times, 0.99)
    return Moment(number, cell.users, cell.answers, cell.failures, cell.waits, p50, p99)


def _rate(answers: int, ledger: Ledger) -> float:
    return answers / ledger.wall_s if ledger.wall_s else 0.0


def _cpu(ledger: Ledger) -> float:
    """Share of a core that one process of the generator used while the load was steady."""
    if ledger.steady_s and ledger.processes:
        return ledger.steady_cpu_s / ledger.steady_s / ledger.processes
    return 0.0
