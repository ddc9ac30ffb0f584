"""From a series of Prometheus to a number of replicas: what the autoscaler asks for is what the adapter is
told to make of what proxies expose.

Rules of this file: the real promtool judges the query; what the adapter would put into its template is put in
here.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.rendered import K8S, PRODUCTION, objects
from tests.tools import PATIENCE_S
from tests.tools.kube_objects import only


def rule() -> dict[str, Any]:
    """The only one that is shipped for prometheus-adapter."""
    (found,) = yaml.safe_load((K8S / "monitoring/prometheus-adapter.yaml").read_text())["rules"]["custom"]
    return dict(found)


def metric() -> str:
    metrics = only(objects(PRODUCTION), "HorizontalPodAutoscaler")["spec"]["metrics"]
    (found,) = [each["pods"]["metric"]["name"] for each in metrics if each["type"] == "Pods"]
    return str(found)


def query() -> str:
    """As the adapter asks for all pods of the Deployment."""
    filled = rule()["metricsQuery"].replace("<<.Series>>", metric())
    filled = filled.replace("<<.LabelMatchers>>", 'namespace="mcp",pod=~"a|b"')
    return str(filled.replace("<<.GroupBy>>", "pod"))


def test_the_adapter_serves_the_metric_that_the_autoscaler_asks_for() -> None:
    assert rule()["name"] == {"matches": metric()}
    assert rule()["seriesQuery"].startswith(metric() + "{")
    assert set(rule()["resources"]["overrides"]) == {"namespace", "pod"}


@pytest.mark.parametrize("wrong", [False, True])
def test_a_pod_counts_with_the_streams_of_all_its_pools(wrong: bool, tmp_path: Path) -> None:
    series = {
        f'{metric()}{{namespace="mcp",pod="a",pool="one"}}': "3",
        f'{metric()}{{namespace="mcp",pod="a",pool="two"}}': "4",
        f'{metric()}{{namespace="mcp",pod="b",pool="one"}}': "5",
        f'{metric()}{{namespace="other",pod="a",pool="one"}}': "1000",
    }
    samples = [{"labels": '{pod="a"}', "value": 7}, {"labels": '{pod="b"}', "value": 6 if wrong else 5}]
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": f"{value}x2"} for name, value in series.items()],
        "promql_expr_test": [{"expr": query(), "eval_time": "1m", "exp_samples": samples}],
    }
    (tmp_path / "rules.yaml").write_text("groups: []\n")
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [case]}))

    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "tests.yaml")],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert (done.returncode != 0) == wrong, done.stdout + done.stderr
