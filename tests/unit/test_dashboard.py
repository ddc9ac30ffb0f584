"""The dashboard is one that Grafana can show, asks only for what is measured, and leaves nothing out.

Rules of this file: nothing is run but promtool. That a running proxy shows these metrics is proven in
tests/wire/test_dashboard.py.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcp_proxy.telemetry.families import COUNTERS, GAUGES, HISTOGRAMS
from tests.tools import promql
from tests.tools.grafana import DASHBOARD, dashboard, expressions, nested, panels, text
from tests.tools.promtool import check, rules

PREFIX = "mcp_proxy_"
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "build_info": ("version", "python"),
    "config_reloads_total": ("result",),
    "config_last_reload_success": (),
    "workers": (),
    "worker_restarts_total": (),
}
"""Families that do not come from the exposition's tables, and their labels."""

PANELS = pytest.mark.parametrize("panel", [pytest.param(each, id=str(each["id"])) for each in panels()])
TYPES = {"heatmap", "stat", "state-timeline", "table", "timeseries"}
UNITS = {"Bps", "bytes", "cpm", "ops", "percentunit", "reqps", "s", "short"}
"""Grafana's words for units."""
WIDTH = 24
"""Of Grafana's grid."""


def labels() -> dict[str, set[str]]:
    """Of every series by its name."""
    plain = {name: of for name, (_, of) in {**COUNTERS, **GAUGES}.items()} | ELSEWHERE
    known = {PREFIX + name: set(of) for name, of in plain.items()}
    for name, (_, of, _) in HISTOGRAMS.items():
        known |= {PREFIX + name + suffix: {*of, "le"} for suffix in promql.SUFFIXES}
    return known


def records() -> dict[str, str]:
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def asked() -> list[str]:
    """Every expression of the dashboard and of the rules."""
    return expressions() + [promql.expanded(rule["expr"], records()) for rule in rules()]


# --- what it asks for ------------------------------------------------------------------------------------


def test_every_expression_is_promql(tmp_path: Path) -> None:
    numbered = [{"record": f"dashboard:{number}", "expr": each} for number, each in enumerate(expressions())]
    assert not [each for each in expressions() if "$" in each]
    assert check(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": numbered}]}), tmp_path) == ""


def test_every_metric_and_every_label_exists() -> None:
    known = labels()
    assert {
        name for each in asked() for name in promql.metrics(each) if name.startswith(PREFIX)
    } <= known.keys()
    assert {each: promql.strange_labels(each, known) for each in asked()} == {each: set() for each in asked()}


def test_every_family_is_in_a_panel() -> None:
    """What is worth measuring is worth a look."""
    families = {PREFIX + name for name in (*COUNTERS, *GAUGES, *HISTOGRAMS, *ELSEWHERE)}
    named = {promql.family(name, families) for each in expressions() for name in promql.metrics(each)}
    assert families - named == set()


def test_every_record_is_used_by_an_alert() -> None:
    used = " ".join(rule["expr"] for rule in rules())
    assert [name for name in records() if name not in used] == []


def test_an_expression_without_fault_has_no_strange_labels_and_one_with_has() -> None:
    known = {"mcp_proxy_a": {"pool"}}
    assert promql.strange_labels('sum by (pool, job) (mcp_proxy_a{pool=~".*"})', known) == set()
    found = promql.strange_labels('sum by (route) (mcp_proxy_a{phase="x", pool="y"})', known)
    assert found == {"route", "mcp_proxy_a.phase"}


# --- what Grafana wants ----------------------------------------------------------------------------------


def test_it_is_written_the_one_way() -> None:
    """Sorted, short: a change of it can be read as a difference."""
    assert DASHBOARD.read_text() == text(dashboard()) + "\n"


def test_it_belongs_to_no_grafana_in_particular() -> None:
    document = dashboard()
    assert document["schemaVersion"] >= 39
    assert document["id"] is None
    assert document["uid"] == "mcp-proxy"
    assert "__inputs" not in document
    sources = [each["datasource"] for each in nested(document) if isinstance(each.get("datasource"), dict)]
    assert {source["uid"] for source in sources} == {"${datasource}", "-- Grafana --"}


def test_its_variables_choose_source_job_instance_route_and_pool() -> None:
    variables = dashboard()["templating"]["list"]
    assert [each["name"] for each in variables] == ["datasource", "job", "instance", "route", "pool"]
    named = {name for each in nested(dashboard()["panels"]) for name in re.findall(r"\$(\w+)", str(each))}
    assert named == {each["name"] for each in variables if each["name"] != "datasource"} | {"__rate_interval"}
    asked_for = " ".join(each["definition"] for each in variables if each["type"] == "query")
    assert promql.metrics(asked_for) <= labels().keys()
    for each in variables[1:]:
        assert each["definition"] == each["query"]["query"]
        assert each["allValue"] == ".*", "a dashboard without a filter asks for everything"


@PANELS
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["type"] in TYPES
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert [target["refId"] for target in panel["targets"]] == list("ABCD")[: len(panel["targets"])]
    assert panel["targets"]


@PANELS
def test_a_panel_can_be_narrowed_to_an_instance(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        assert 'job=~"$job", instance=~"$instance"' in target["expr"]


def test_panels_have_numbers_of_their_own_and_do_not_lie_on_each_other() -> None:
    every = dashboard()["panels"]
    assert len({each["id"] for each in every}) == len(every)
    cells: set[tuple[int, int]] = set()
    for panel in every:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= WIDTH
        across = range(place["x"], place["x"] + place["w"])
        own = set(itertools.product(across, range(place["y"], place["y"] + place["h"])))
        assert not own & cells, panel["title"]
        cells |= own
    assert len(cells) == WIDTH * (1 + max(row for _, row in cells)), "no holes"
