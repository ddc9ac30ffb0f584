"""Arithmetic and output: pure functions from samples to medians, ratios, a text table and JSON.

Ratios are taken within a round and their median is reported: a neighbour that slows one round down slows
both sides of its ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

Numbers = dict[str, float]
Results = dict[str, dict[str, list[Numbers]]]
"""``{phase: {candidate: [numbers of one round, ...]}}``"""


class Goal(NamedTuple):
    """A bound of the project. Reported, never asserted."""

    text: str
    phase: str
    candidate: str
    field: str
    is_ratio: bool
    at_most: float
    reference: str = ""


GOALS = (
    Goal("http11: CPU per call, x nginx", "calls", "http11", "cpu_us", True, 1.8),
    Goal("asgi: CPU per call, x nginx", "calls", "asgi", "cpu_us", True, 3.5),
    Goal("http11: CPU per SSE event, x nginx", "events", "http11", "cpu_us", True, 1.6),
    Goal("http11: KiB per idle GET stream", "streams", "http11", "kib_per_stream", False, 10.0),
    Goal("http11: CPU per call beside streams, x none", "beside", "http11", "ratio", False, 1.1),
    Goal("signed: CPU per call, x memory", "stores", "signed", "cpu_us", True, 1.15, "memory"),
    Goal("redis: operations per warm request", "lookups", "redis", "warm", False, 0.0),
    Goal("redis: operations per cold request", "lookups", "redis", "cold", False, 1.0),
    Goal("CPU per call and replica, 3 x 1", "replicas", "3 replicas", "cpu_us", True, 1.1, "1 replica"),
    *(
        Goal(f"{policy}: routing decision, 1,000 backends x 2", "decisions", policy, "ratio", False, 1.2)
        for policy in ("least_sessions", "least_inflight", "round_robin", "hash")
    ),
    Goal("metrics, access log: CPU us per call", "telemetry", "metrics + access log", "added_us", False, 8),
    Goal("traces at 1 %: CPU us per call more", "telemetry", "traces at 1 %", "traces_us", False, 3.0),
    *(
        Goal(f"overhead metric, {load}: % off", "overhead", load, "away_percent", False, 20.0)
        for load in (
            "1 connection",
            "8 connections",
            "32 connections",
            "30 % of capacity",
            "bodies of 256 KiB",
            "cold sessions",
        )
    ),
    Goal("http11: MiB that a stalled reader costs", "stall", "http11", "growth_mib", False, 8.0),
)


class Column(NamedTuple):
    title: str
    field: str
    form: str
    is_ratio: bool = False
    of: Callable[[Sequence[float]], float] = median
    """What is shown of the rounds."""


class Table(NamedTuple):
    phase: str
    title: str
    columns: tuple[Column, ...]
    reference: str = ""
    """What ratios are relative to, if not what they are relative to elsewhere."""


TABLES = (
    Table(
        "calls",
        "tools/call in a session, {connections} keep-alive connections, rounds: {rounds} x {seconds:g} s",
        (
            Column("CPU us/call", "cpu_us", "{:.1f}"),
            Column("x nginx", "cpu_us", "{:.2f}", True),
            Column("calls/s", "per_s", "{:,.0f}"),
            Column("p50 ms", "p50_ms", "{:.2f}"),
            Column("p99 ms", "p99_ms", "{:.2f}"),
            Column("cores", "busy", "{:.2f}"),
            Column("backend us", "backend_cpu_us", "{:.1f}"),
            Column("load us", "load_cpu_us", "{:.1f}"),
        ),
    ),
    Table(
        "traced",
        "the same with a traceparent per call, so that no two heads are alike",
        (
            Column("CPU us/call", "cpu_us", "{:.1f}"),
            Column("x nginx", "cpu_us", "{:.2f}", True),
            Column("calls/s", "per_s", "{:,.0f}"),
            Column("RSS B/call", "rss_bytes_per_call", "{:.0f}"),
        ),
    ),
    Table(
        "events",
        "SSE events of 150 B, {event_streams} streams, one event each per {event_interval_ms} ms",
        (
            Column("CPU us/event", "cpu_us", "{:.1f}"),
            Column("x nginx", "cpu_us", "{:.2f}", True),
            Column("events/read", "events_per_read", "{:.2f}"),
        ),
    ),
    Table(
        "streams",
        "{streams} idle GET streams, one session each",
        (
            Column("KiB/stream", "kib_per_stream", "{:.1f}"),
            Column("x nginx", "kib_per_stream", "{:.2f}", True),
            Column("of it session", "kib_per_session", "{:.1f}"),
            Column("empty MiB", "empty_mib", "{:.1f}"),
        ),
    ),
    Table(
        "stall",
        "{flood_mib} MiB streamed to a reader that stalls, then reads on",
        (
            Column("RSS growth MiB", "growth_mib", "{:.1f}"),
            Column("taken MiB", "taken_mib", "{:.1f}"),
        ),
    ),
    Table(
        "beside",
        "CPU us per call beside {streams} idle streams",
        (
            Column("0 streams", "empty_cpu_us", "{:.1f}"),
            Column("{streams} streams", "full_cpu_us", "{:.1f}"),
            Column("ratio", "ratio", "{:.2f}"),
        ),
    ),
    Table(
        "stores",
        "http11 door: tools/call in a session, by where sessions are kept",
        (
            Column("CPU us/call", "cpu_us", "{:.1f}"),
            Column("x memory", "cpu_us", "{:.2f}", True),
            Column("calls/s", "per_s", "{:,.0f}"),
            Column("p99 ms", "p99_ms", "{:.2f}"),
        ),
        "memory",
    ),
    Table(
        "lookups",
        "operations of the Redis server per request, counted there (INFO commandstats)",
        (
            Column("initialize", "initialize", "{:.3f}"),
            Column("warm", "warm", "{:.3f}"),
            Column("cold", "cold", "{:.3f}"),
            Column("warm again", "warm_again", "{:.3f}"),
        ),
    ),
    Table(
        "replicas",
        "tools/call through nginx, round robin over replicas that share Redis",
        (
            Column("CPU us/call", "cpu_us", "{:.1f}"),
            Column("x 1 replica", "cpu_us", "{:.2f}", True),
            Column("calls/CPU s", "per_cpu_s", "{:,.0f}"),
            Column("calls/s", "per_s", "{:,.0f}"),
        ),
        "1 replica",
    ),
    Table(
        "telemetry",
        "http11 door: tools/call in a session, by what telemetry tells; collector in a process of its own",
        (
            Column("CPU us/call", "cpu_us", "{:.1f}"),
            Column("more than off", "added_us", "{:.1f}"),
            Column("from", "added_us", "{:.1f}", of=min),
            Column("to", "added_us", "{:.1f}", of=max),
            Column("recorded %", "recorded_percent", "{:.2f}"),
            Column("more than log", "traces_us", "{:.1f}"),
            Column("from", "traces_us", "{:.1f}", of=min),
            Column("to", "traces_us", "{:.1f}", of=max),
            Column("calls/s", "per_s", "{:,.0f}"),
            Column("p50 ms", "p50_ms", "{:.2f}"),
            Column("p99 ms", "p99_ms", "{:.2f}"),
        ),
    ),
    Table(
        "overhead",
        "the proxy's own time per call, us: by its metric (inside), by packets on the network (outside)",
        (
            Column("calls", "calls", "{:,.0f}"),
            Column("inside", "inside_us", "{:.1f}"),
            Column("outside", "outside_us", "{:.1f}"),
            Column("its median", "outside_p50_us", "{:.1f}"),
            Column("wait for CPU", "waited_us", "{:.1f}"),
            Column("inside/outside", "ratio", "{:.2f}"),
            Column("from", "ratio", "{:.2f}", of=min),
            Column("to", "ratio", "{:.2f}", of=max),
        ),
    ),
    Table(
        "decisions",
        "routing decision, CPU us: the envelope and the plan, then the choice of a backend",
        (
            Column("before", "before_us", "{:.2f}"),
            Column("choice of 2", "small_us", "{:.2f}"),
            Column("of 1,000", "large_us", "{:.2f}"),
            Column("ratio", "choice_ratio", "{:.2f}"),
            Column("decision ratio", "ratio", "{:.2f}"),
        ),
    ),
)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def value(
    results: Results,
    phase: str,
    candidate: str,
    field: str,
    of: Callable[[Sequence[float]], float] = median,
) -> float | None:
    """Median over the rounds, or what else is asked of them; None if the candidate was not measured."""
    rounds = results.get(phase, {}).get(candidate)
    return of([numbers[field] for numbers in rounds]) if rounds else None


def ratio(results: Results, phase: str, candidate: str, field: str, reference: str) -> float | None:
    """Median of the ratios of the rounds that both have completed; None if there is none.

    The rounds are those of the same number: a candidate only ever misses the last ones."""
    ours, theirs = (results.get(phase, {}).get(name, []) for name in (candidate, reference))
    ratios = [a[field] / b[field] for a, b in zip(ours, theirs, strict=False) if b[field]]
    return median(ratios) if ratios else None


def summary(results: Results, reference: str) -> dict[str, dict[str, dict[str, object]]]:
    """Per phase and candidate: each field's median and rounds, and its ratio to the reference."""
    return {
        phase: {
            candidate: {
                field: {
                    "median": value(results, phase, candidate, field),
                    "ratio": ratio(results, phase, candidate, field, reference),
                    "rounds": [numbers[field] for numbers in rounds],
                }
                for field in rounds[0]
            }
            for candidate, rounds in of_phase.items()
            if rounds
        }
        for phase, of_phase in results.items()
    }


def goals(results: Results, reference: str) -> list[dict[str, object]]:
    """What became of each goal; goals that were not measured are left out."""
    found = []
    for goal in GOALS:
        if goal.is_ratio:
            measured = ratio(results, goal.phase, goal.candidate, goal.field, goal.reference or reference)
        else:
            measured = value(results, goal.phase, goal.candidate, goal.field)
        if measured is not None:
            verdict = {"goal": goal.text, "at_most": goal.at_most, "measured": measured}
            found.append({**verdict, "is_met": measured <= goal.at_most})
    return found


def text(
    results: Results, reference: str, options: Mapping[str, object], verdicts: Sequence[Mapping[str, object]]
) -> str:
    """The report for people. ``verdicts``: what ``goals`` returned, or nothing to leave them out."""
    blocks = [_table(table, results, reference, options) for table in TABLES if results.get(table.phase)]
    if verdicts:
        blocks.append("\n".join(["goals", *map(_verdict, verdicts)]))
    return "\n\n".join(blocks) + "\n"


def _table(table: Table, results: Results, reference: str, options: Mapping[str, object]) -> str:
    columns, reference = table.columns, table.reference or reference
    rows = [["", *(column.title.format(**options) for column in columns)]]
    rows.extend(
        [candidate, *(_cell(column, results, table.phase, candidate, reference) for column in columns)]
        for candidate in results[table.phase]
    )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    return "\n".join([table.title.format(**options), *lines])


def _line(row: list[str], widths: list[int]) -> str:
    cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    return "  ".join(["", row[0].ljust(widths[0]), *cells[1:]]).rstrip()


def _cell(column: Column, results: Results, phase: str, candidate: str, reference: str) -> str:
    if column.is_ratio:
        number = ratio(results, phase, candidate, column.field, reference)
    else:
        number = value(results, phase, candidate, column.field, column.of)
    return "-" if number is None else column.form.format(number)


def _verdict(verdict: Mapping[str, object]) -> str:
    word = "met   " if verdict["is_met"] else "MISSED"
    return f"  {word} {verdict['measured']:6.2f} <= {verdict['at_most']:<5g} {verdict['goal']}"
