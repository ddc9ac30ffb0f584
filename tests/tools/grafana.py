"""The dashboard as a document: read, walked, and written the one way in which it is kept.

Rules of this file: nothing of Grafana is needed; what its documents must be is in the tests that use this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.tools.proxy import ROOT

DASHBOARD = ROOT / "k8s/monitoring/grafana-dashboard.json"
COLUMNS = 118

Json = Any


def dashboard() -> dict[str, Json]:
    found: dict[str, Json] = json.loads(DASHBOARD.read_text())
    return found


def panels() -> list[dict[str, Json]]:
    """All but rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """Everything that the dashboard asks Prometheus, with values in place of Grafana's variables."""
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    asked += [each["expr"] for each in dashboard()["annotations"]["list"] if "expr" in each]
    filled = [each.replace("$__rate_interval", "5m") for each in asked]
    return [re.sub(r"\$(job|instance|route|pool)\b", ".*", each) for each in filled]


def nested(value: Json) -> Iterator[dict[str, Json]]:
    """Every object in it, itself included."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from nested(each)


def text(value: Json, margin: str = "") -> str:
    """JSON with sorted keys; what fits into a line is in one."""
    short = json.dumps(value, sort_keys=True, ensure_ascii=False)
    if len(margin) + len(short) <= COLUMNS or not isinstance(value, dict | list):
        return short
    inner = margin + "  "
    if isinstance(value, dict):
        parts = [f"{inner}{json.dumps(key)}: {text(value[key], inner)}" for key in sorted(value)]
    else:
        parts = [inner + text(each, inner) for each in value]
    left, right = "{}" if isinstance(value, dict) else "[]"
    return left + "\n" + ",\n".join(parts) + "\n" + margin + right
