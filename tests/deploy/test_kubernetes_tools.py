"""The tools of these tests, where they could say that all is well when nothing is.

Rules of this file: registries are not asked; what npm says without one is npm's own answer.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.deploy.rendered import EVERYTHING, objects
from tests.tools import kustomize, npm
from tests.tools.kube_network import Peer, may_connect
from tests.tools.kube_objects import fields, misspelt
from tests.tools.kube_schemas import complaints
from tests.tools.kustomize import Object

# --- npm ------------------------------------------------------------------------------------


def _installed(home: Path, name: str, version: str) -> Path:
    """As npm leaves it."""
    folder = home / f"{name}-{version}" / "node_modules" / name
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": name, "version": version}))
    return folder


def test_a_package_that_is_there_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    folder = _installed(tmp_path, "some", "1.2.3")

    assert npm.install("some", "1.2.3", tmp_path) == folder


def test_another_version_is_fetched_and_what_npm_cannot_do_is_said_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    _installed(tmp_path, "some", "1.2.3")

    with pytest.raises(
        npm.Missing, match=r"npm cannot fetch some@1\.2\.4.*npm config set registry"
    ) as missing:
        npm.install("some", "1.2.4", tmp_path)

    assert "ECONNREFUSED" in str(missing.value), "npm's own words"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["lock", "some-1.2.3"], (
        "nothing half done is left"
    )


def test_kustomize_is_the_program_that_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kustomize, "DIGEST", "0" * 64)
    kustomize.program.cache_clear()

    with pytest.raises(npm.Missing, match="not the program that was expected"):
        kustomize.program()


def test_what_kustomize_cannot_render_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [absent.yaml]\n")

    with pytest.raises(kustomize.Refused, match=r"absent\.yaml"):
        kustomize.text(tmp_path)


def test_a_typo_in_a_kustomization_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resorces: []\nconfigMapGenerator: []\n")

    for render in kustomize.renderers().values():
        with pytest.raises(kustomize.Refused, match="resorces"):
            render(tmp_path)


# --- schemas --------------------------------------------------------------------------------


def test_every_complaint_is_about_its_own_object() -> None:
    found = objects(EVERYTHING)
    wrong = set(range(0, len(found), 3))
    some = [misspelt(each, ("metadata",)) if number in wrong else each for number, each in enumerate(found)]

    said = complaints(some)

    assert {number for number, each in enumerate(said) if each} == wrong


def test_fields_are_those_that_a_schema_knows() -> None:
    object: Object = {
        "metadata": {"labels": {"a": "b"}},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "ports": [{"name": "http"}]},
    }

    assert set(fields(object)) == {
        ("metadata",),
        ("metadata", "labels"),
        ("spec",),
        ("spec", "selector"),
        ("spec", "selector", "matchLabels"),
        ("spec", "ports"),
        ("spec", "ports", 0, "name"),
    }


# --- policies -------------------------------------------------------------------------------

CLIENT = Peer("a", {"app": "client"})
SERVER = Peer("b", {"app": "server"}, {"web": 80})


def _policy(namespace: str, app: str, kind: str, *rules: Object) -> Object:
    spec = {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": [kind], kind.lower(): list(rules)}
    return {"kind": "NetworkPolicy", "metadata": {"name": app, "namespace": namespace}, "spec": spec}


def _namespace(name: str) -> Object:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


IN = _policy("b", "server", "Ingress")
OPEN_TO_A = _policy("b", "server", "Ingress", {"from": [_namespace("a")], "ports": [{"port": "web"}]})
OUT = _policy("a", "client", "Egress")


@pytest.mark.parametrize(
    ("policies", "port", "is_allowed"),
    [
        pytest.param([], 80, True, id="no policy"),
        pytest.param([IN], 80, False, id="selected, and nothing is allowed"),
        pytest.param([_policy("a", "server", "Ingress")], 80, True, id="of another namespace"),
        pytest.param([IN, OPEN_TO_A], 80, True, id="policies add up"),
        pytest.param([OPEN_TO_A], 81, False, id="another port"),
        pytest.param([OPEN_TO_A, OUT], 80, False, id="both ends have to agree"),
        pytest.param(
            [_policy("b", "server", "Ingress", {})], 22, True, id="a rule without anything is about all"
        ),
        pytest.param(
            [_policy("b", "server", "Ingress", {"from": [{"podSelector": {}}]})],
            80,
            False,
            id="only its own namespace",
        ),
        pytest.param(
            [_policy("b", "server", "Ingress", {"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]})],
            *(80, False),
            id="a block of addresses is not about pods",
        ),
        pytest.param(
            [
                _policy(
                    "b",
                    "server",
                    "Ingress",
                    {"from": [_namespace("a") | {"podSelector": {"matchLabels": {"x": "y"}}}]},
                )
            ],
            *(80, False),
            id="pod and namespace, not either",
        ),
    ],
)
def test_policies_are_read_as_the_reference_reads_them(
    policies: list[Object], port: int, is_allowed: bool
) -> None:
    assert may_connect(policies, CLIENT, SERVER, port) == is_allowed
