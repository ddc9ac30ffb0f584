"""How the folder ``k8s`` is written: one way of YAML, images that are pinned, no secrets, nothing twice.

Rules of this file: what is rendered by one version of kustomize must be what others render, because nobody
chooses the version that is in his kubectl.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import yaml

from mcp_proxy import __version__
from tests.deploy.rendered import FOLDERS, K8S, OF_THE_OPERATOR, SETS, objects, rendered_by, text
from tests.tools import PATIENCE_S
from tests.tools.kube_objects import at, containers, only, workloads
from tests.tools.kustomize import renderers

OUR_IMAGE = "ghcr.io/mcp-proxy/mcp-proxy"
APPLY_LIMIT = 262_144
"""Of all annotations; `kubectl apply` writes the whole object into one."""


@pytest.mark.parametrize("name", SETS)
def test_every_renderer_at_hand_makes_the_same(name: str) -> None:
    made = {by: rendered_by(render, name) for by, render in renderers().items()}

    assert made
    assert set(made.values()) == {text(name)}


def test_yamllint_finds_nothing() -> None:
    command = [sys.executable, "-m", "yamllint", "--strict", "-c", str(K8S / ".yamllint.yaml"), str(K8S)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    assert (done.returncode, done.stdout) == (0, "")


def test_no_field_is_used_that_kustomize_5_calls_deprecated() -> None:
    deprecated = {"bases", "commonLabels", "patchesStrategicMerge", "patchesJson6902", "vars"}

    for file in K8S.rglob("kustomization.yaml"):
        assert not deprecated & yaml.safe_load(file.read_text()).keys(), file


# --- images -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_images_are_pinned(name: str) -> None:
    images = {container["image"] for each in workloads(objects(name)) for container in containers(each)}

    for image in images - {f"{OUR_IMAGE}:{__version__}"}:
        assert re.fullmatch(r"[a-z0-9./-]+:\d+\.\d+\.\d+[a-z0-9.-]*@sha256:[0-9a-f]{64}", image), image
    assert f"{OUR_IMAGE}:{__version__}" in images


# --- secrets ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SETS if name != "overlays/dev"])
def test_nothing_but_the_overlay_for_development_holds_a_secret(name: str) -> None:
    assert not [each for each in objects(name) if each["kind"] == "Secret"]
    for workload in workloads(objects(name)):
        for container in containers(workload):
            for variable in container.get("env", ()):
                is_secret = re.search("TOKEN|KEY|PASSWORD|AUTH", variable["name"])
                assert not is_secret or list(variable) == ["name", "valueFrom"], variable


def test_the_secrets_of_development_say_so() -> None:
    secret = only(objects("overlays/dev"), "Secret", "mcp-proxy")
    files = "".join(file.read_text() for file in (K8S / "overlays/dev").iterdir())

    assert set(secret["data"]) == OF_THE_OPERATOR["Secret", "mcp-proxy"] - {"metrics-token"}, "nobody scrapes"
    assert files.count("for-development-only") == len(secret["data"])


# --- nothing twice ------------------------------------------------------------------------


def test_rules_and_dashboard_are_those_that_are_tested() -> None:
    found = objects("overlays/production")
    rules = yaml.safe_load((K8S / "monitoring/prometheus-rules.yaml").read_text())
    dashboard = only(found, "ConfigMap", "mcp-proxy-dashboard")

    assert only(found, "PrometheusRule")["spec"] == rules["spec"]
    assert json.loads(dashboard["data"]["mcp-proxy.json"]) == json.loads(
        (K8S / "monitoring/grafana-dashboard.json").read_text()
    )
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.parametrize("name", FOLDERS)
def test_kubectl_apply_can_carry_every_object(name: str) -> None:
    sizes = {each["metadata"]["name"]: len(json.dumps(each)) for each in objects(name)}

    assert max(sizes.values()) < APPLY_LIMIT / 2


# --- names and labels ---------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_everything_is_in_the_namespace_and_says_whose_it_is(name: str) -> None:
    for each in objects(name):
        labels = at(each, "metadata", "labels") or {}
        if each["kind"] in ("Namespace", "PriorityClass"):
            assert "namespace" not in each["metadata"]
        else:
            assert each["metadata"]["namespace"] == "mcp", each
        # Rules are as they are; a Secret that is generated for development has a name, and that is enough.
        if each["kind"] not in ("Namespace", "PrometheusRule", "Secret"):
            assert labels.get("app.kubernetes.io/part-of") == "mcp-proxy", each["metadata"]["name"]
