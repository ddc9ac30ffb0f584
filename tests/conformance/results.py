"""What a run of the conformance suite found, and how two runs compare.

Rules of this file: pure. A run through the proxy is judged by the run without it: the suite may
find fault with the server or the client, but the proxy must not add to it. A check that is missing
counts like one that failed: a suite that could not go on must not look like success.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PASSED, FAILED = "SUCCESS", "FAILURE"
BAD = (FAILED, "WARNING")


@dataclass(frozen=True)
class Scenario:
    """Checks of one scenario in one run; a check may occur several times."""

    passed: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    messages: tuple[str, ...] = ()
    """What the suite said about everything bad."""

    def __str__(self) -> str:
        return f"{self.passed.total()} ok" + (f", {self.bad.total()} bad" if self.bad else "")


Run = Mapping[str, Scenario]
"""Scenarios by name (``server 2025-11-25 ping``)."""


def read(folder: Path) -> Scenario:
    """The ``checks.json`` that the suite wrote there. Raises OSError if it wrote none."""
    passed: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    messages = []
    for check in json.loads((folder / "checks.json").read_text()):
        if check["status"] == PASSED:
            passed[check["id"]] += 1
        elif check["status"] in BAD:
            bad[check["id"]] += 1
            messages.append(f"{check['id']}: {check.get('errorMessage') or check.get('description')}")
    return Scenario(passed, bad, tuple(messages))


def added(direct: Run, through: Run) -> list[str]:
    """One line per check that is worse through the proxy than without it."""
    lines = []
    for name, alone in direct.items():
        proxied = through.get(name, Scenario())
        missing = alone.passed - proxied.passed
        worse = proxied.bad - alone.bad
        why = "; ".join(proxied.messages) or "no such check was made"
        lines += [f"{name}: {check} ({why})" for check in sorted((missing | worse).keys())]
    return lines


def table(runs: Mapping[str, Run], reference: str) -> str:
    """Scenarios as rows, runs as columns; what is not as in ``reference`` is marked."""
    names = list(dict.fromkeys(name for run in runs.values() for name in run))
    width = max(len(name) for name in names)
    widths = {title: max(len(title), 12) for title in runs}
    lines = ["  ".join([" " * width, *(f"{title:<{widths[title]}}" for title in runs)])]
    for name in names:
        cells = []
        for title, run in runs.items():
            cell = str(run[name]) if name in run else "-"
            differs = run.get(name) != runs[reference].get(name)
            cells.append(f"{cell + (' *' if differs else ''):<{widths[title]}}")
        lines.append("  ".join([f"{name:<{width}}", *cells]).rstrip())
    return "\n".join(lines)


def total(run: Run) -> str:
    """The sum of a run."""
    passed = sum(scenario.passed.total() for scenario in run.values())
    bad = sum(scenario.bad.total() for scenario in run.values())
    return f"{len(run)} scenarios, {passed} checks ok, {bad} bad"


def as_json(run: Run) -> dict[str, dict[str, object]]:
    return {
        name: {"passed": scenario.passed, "bad": scenario.bad, "messages": scenario.messages}
        for name, scenario in run.items()
    }
