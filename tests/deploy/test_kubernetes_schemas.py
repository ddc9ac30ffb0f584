"""The manifests are what an API server accepts, down to the last field.

Rules of this file: everything that kustomize renders is judged, by the schemas of the oldest and of the
newest version of Kubernetes that docs/kubernetes.md promises. What has no schema fails. So that a judge who
waves everything through is found out, each field of each kind is misspelt once.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.deploy.rendered import COMPONENTS, EVERYTHING, K8S, SETS, composed, objects
from tests.tools import kustomize
from tests.tools.kube_objects import at, fields, identity, misspelt, only
from tests.tools.kube_schemas import CUSTOM, NEWEST, OLDEST, complaints
from tests.tools.kustomize import Object


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", SETS)
def test_every_object_is_accepted(name: str, version: str) -> None:
    found = objects(name)

    wrong = {identity(each): said for each, said in zip(found, complaints(found, version), strict=True)}

    assert {each: said for each, said in wrong.items() if said} == {}


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_goes_with_the_base_alone(component: str) -> None:
    found = kustomize.objects(composed(kustomize.text, "base", [component]))

    assert [said for said in complaints(found) if said] == []
    assert len({identity(each) for each in found}) == len(found)


def test_everything_that_is_shipped_is_rendered_somewhere() -> None:
    named = re.findall(r"^(?:  - path:|  -|      -) ([\w./-]+\.\w+)$", _kustomizations(), re.M)
    named += re.findall(r"^      - [\w.-]+=([\w.-]+)$", _kustomizations(), re.M)
    here = {file.name for file in K8S.rglob("*") if file.is_file()}

    strangers = here - {Path(each).name for each in named} - {"kustomization.yaml"}

    # A value file of somebody else's Helm chart, and the settings of a linter.
    assert strangers == {"prometheus-adapter.yaml", ".yamllint.yaml"}


def _kustomizations() -> str:
    return "\n".join(file.read_text() for file in K8S.rglob("kustomization.yaml"))


# --- a typo fails -------------------------------------------------------------------------


def _typos(object: Object) -> dict[str, Object]:
    """By the field, without positions in lists."""
    return {
        ".".join(step for step in path if isinstance(step, str)): misspelt(object, path)
        for path in fields(object)
    }


@pytest.mark.parametrize("kind", sorted({each["kind"] for each in objects(EVERYTHING)}))
def test_a_typo_in_any_field_is_refused(kind: str) -> None:
    typos: dict[str, Object] = {}
    for each in objects(EVERYTHING):
        if each["kind"] == kind:
            typos |= _typos(each)

    said = complaints(list(typos.values()))

    assert len(typos) >= 3, "there is a kind, a name, and at least one label"
    assert [field for field, found in zip(typos, said, strict=True) if not found] == []


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "replicas"), "two"),
        ("Deployment", ("spec", "template", "spec", "containers", 0, "ports", 0, "containerPort"), "http"),
        ("Service", ("spec", "ports"), {}),
        ("HTTPRoute", ("spec", "rules", 0, "timeouts", "request"), "0"),
        ("HTTPRoute", ("spec", "rules", 0, "matches", 0, "path", "type"), "Prefix"),
        ("HTTPRoute", ("spec", "rules", 0, "backendRefs", 0, "port"), 80_000),
        ("ServiceMonitor", ("spec", "endpoints", 0, "interval"), "15 s"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "expr"), []),
    ],
)
def test_a_wrong_value_is_refused(kind: str, path: tuple[str | int, ...], value: object) -> None:
    object = next(each for each in objects(EVERYTHING) if each["kind"] == kind)
    at(object, *path[:-1])[path[-1]] = value

    (said,) = complaints([object])

    assert said


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "Deploymnet"},
        {"apiVersion": "apps/v2"},
        {"apiVersion": "apps.example.com/v1"},
        {"apiVersion": "extensions/v1beta1"},
        {"apiVersion": "example.com/v1", "kind": "Widget"},
        {"apiVersion": None},
    ],
    ids=str,
)
def test_a_kind_that_nobody_knows_is_refused(changed: dict[str, str | None]) -> None:
    object = only(objects("base"), "Deployment") | changed

    (said,) = complaints([object])

    assert said


@pytest.mark.parametrize(("api_version", "kind"), CUSTOM)
def test_a_custom_resource_without_anything_in_it_is_refused(api_version: str, kind: str) -> None:
    (said,) = complaints([{"apiVersion": api_version, "kind": kind, "metadata": {"name": "empty"}}])

    assert said
