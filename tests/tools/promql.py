"""What expressions of PromQL name: metrics and labels. Whether they are PromQL at all is promtool's to say.

Rules of this file: it reads no more of the language than our own expressions use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set

TARGET = {"namespace", "job", "instance"}
"""What Prometheus adds to every sample."""
SUFFIXES = ("_bucket", "_sum", "_count")

_METRIC = re.compile(r"\b((?:mcp_proxy_|process_)[a-z_]+)(?:\{([^}]*)\})?")
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right) *\(([^)]*)\)")


def family(metric: str, families: Set[str]) -> str:
    """A histogram has one name, and its series have others."""
    for suffix in SUFFIXES:
        if metric.endswith(suffix) and metric.removesuffix(suffix) in families:
            return metric.removesuffix(suffix)
    return metric


def expanded(expression: str, records: Mapping[str, str]) -> str:
    """With the expressions of recording rules in the place of their names."""
    return re.sub(r"mcp_proxy:[a-z0-9_:]+", lambda found: f"({records[found[0]]})", expression)


def metrics(expression: str) -> set[str]:
    return {name for name, _ in _METRIC.findall(expression)}


def strange_labels(expression: str, known: Mapping[str, Set[str]]) -> set[str]:
    """Labels that a metric is asked for and does not have, and those of groups that no metric of this
    expression has. ``known``: of every series by its name."""
    strange: set[str] = set()
    every = set(TARGET)
    for name, matchers in _METRIC.findall(expression):
        own = {*known.get(name, ()), *TARGET}
        every |= own
        strange |= {f"{name}.{label}" for label in _asked(matchers) if label not in own}
    for group in _GROUPING.findall(expression):
        strange |= {label.strip() for label in group.split(",") if label.strip()} - every
    return strange


def _asked(matchers: str) -> list[str]:
    return re.findall(r"(\w+) *(?:=~|!~|!=|=) *\"", matchers)
