"""Prometheus' own judgement of rules: what promtool says of a file, and what fires on given series.

Rules of this file: the real promtool, once per question; series are given minute by minute, as a Prometheus
would have stored them, and rules are evaluated every minute.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.tools import PATIENCE_S
from tests.tools.proxy import ROOT

RULES = ROOT / "k8s/monitoring/prometheus-rules.yaml"

_ENDLESS = 1 << 30
"""Columns: promtool reads a series from one line."""

Values = Mapping[str, str]
"""By series, what it has been in promtool's notation: ``0+5x10`` and the like."""


def groups() -> list[dict[str, Any]]:
    """What plain Prometheus wants of the rules."""
    document = yaml.safe_load(RULES.read_text())
    found: list[dict[str, Any]] = document["spec"]["groups"]
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for group in groups() for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def check(plain: str, folder: Path) -> str:
    """What is wrong with this file of rules, ``""`` if nothing is."""
    file = folder / "rules.yaml"
    file.write_text(plain)
    return _run("check", "rules", file)


def firing(series: Values, minutes: int, folder: Path) -> list[dict[str, str]]:
    """The labels of every alert that fires behind so many minutes, ``alertname`` among them."""
    rules_file, cases = folder / "rules.yaml", folder / "tests.yaml"
    rules_file.write_text(yaml.safe_dump({"groups": groups()}))
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        # Nothing may fire: what does is in the complaint.
        "promql_expr_test": [{"expr": 'ALERTS{alertstate="firing"}', "eval_time": f"{minutes}m"}],
    }
    document = {"rule_files": [rules_file.name], "evaluation_interval": "1m", "tests": [test]}
    cases.write_text(yaml.safe_dump(document, width=_ENDLESS))
    complaint = _run("test", "rules", cases)
    _, got, fired = complaint.partition("got: ")
    assert bool(got) == bool(complaint), complaint
    return [_labels(each) for each in re.findall(r"\{(.*?)\}", fired)]


def _labels(text: str) -> dict[str, str]:
    found = dict(re.findall(r'(\w+)="(.*?)"', text))
    assert (found.pop("__name__"), found.pop("alertstate")) == ("ALERTS", "firing")
    return found


def _run(*command: str | Path) -> str:
    done = subprocess.run(
        ["promtool", *map(str, command)], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


@dataclass(frozen=True)
class Target:
    """What Prometheus adds to every sample of a scrape."""

    job: str = "mcp-proxy"
    instance: str = "10.0.0.5:9901"


class Recording:
    """Scrapes of a running proxy as the series that Prometheus would have made of them, a minute apart."""

    def __init__(self, target: Target | None = None) -> None:
        self.target = target or Target()
        self.minutes = -1
        """Of the last scrape."""
        self._values: dict[str, dict[int, float]] = {}

    def scraped(self, exposition: str | None) -> None:
        """The next scrape; None: nobody answered."""
        self.minutes += 1
        self._add("up", {}, float(exposition is not None))
        for family in text_string_to_metric_families(exposition or ""):
            for sample in family.samples:
                self._add(sample.name, sample.labels, sample.value)

    def _add(self, name: str, labels: Mapping[str, str], value: float) -> None:
        series = _series(name, {**labels, "job": self.target.job, "instance": self.target.instance})
        self._values.setdefault(series, {})[self.minutes] = value

    def series(self) -> dict[str, str]:
        """What is gone from a scrape is marked as gone, as Prometheus does it."""
        return {name: " ".join(self._line(values)) for name, values in self._values.items()}

    def _line(self, values: dict[int, float]) -> list[str]:
        line = []
        for minute in range(self.minutes + 1):
            if minute in values:
                line.append(repr(values[minute]))
            else:
                line.append("stale" if minute - 1 in values else "_")
        return line


def _series(name: str, labels: Mapping[str, str]) -> str:
    quoted = ", ".join(f'{key}="{_escaped(value)}"' for key, value in labels.items())
    return f"{name}{{{quoted}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
