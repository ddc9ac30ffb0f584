"""``docs/kubernetes.md`` is about the manifests that are here: its objects, overlays, numbers, paths and
tables.

Rules of this file: nothing is repeated that the page could say wrongly; what stands there is compared with
what is rendered. Commands that need no cluster are run by ``test_docs_commands.py``.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from mcp_proxy.replies import TABLE
from tests.deploy.rendered import (
    COMPONENTS,
    K8S,
    OF_THE_OPERATOR,
    PRODUCTION,
    ROOT,
    config,
    deployment,
    objects,
)
from tests.tools import kustomize
from tests.tools.kube_objects import at, containers, only
from tests.tools.kube_schemas import NEWEST, OLDEST, complaints
from tests.tools.kustomize import Object

MANUAL = ROOT / "docs/kubernetes.md"


@pytest.fixture
def text() -> str:
    return MANUAL.read_text()


def documents(text: str) -> list[Object]:
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    return [each for block in blocks for each in yaml.safe_load_all(block)]


def rows(text: str, heading: str) -> list[list[str]]:
    """Of the first table below the heading, without its head."""
    table = re.search(rf"^#+ {heading}\n(?:(?!^#).*\n)*?((?:\|.*\n)+)", text, re.M)
    assert table, heading
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()[2:]]


# --- what it shows ----------------------------------------------------------------------------


def test_objects_are_accepted(text: str) -> None:
    shown = [each for each in documents(text) if each.get("kind", "Kustomization") != "Kustomization"]

    assert shown
    assert [said for said in complaints(shown) if said] == []


def test_the_gateway_that_is_shown_is_the_one_that_the_route_wants(text: str) -> None:
    gateway = only([each for each in documents(text) if "kind" in each], "Gateway")
    (parent,) = only(objects(PRODUCTION), "HTTPRoute")["spec"]["parentRefs"]

    assert (parent["name"], parent["namespace"]) == (
        gateway["metadata"]["name"],
        gateway["metadata"]["namespace"],
    )
    assert [each["hostname"] for each in gateway["spec"]["listeners"]] == at(
        only(objects(PRODUCTION), "HTTPRoute"), "spec", "hostnames"
    )


def test_the_overlay_that_is_shown_can_be_rendered_and_uses_another_redis(text: str, tmp_path: Path) -> None:
    (overlay,) = [each for each in documents(text) if each.get("kind") == "Kustomization"]
    shutil.copytree(K8S, tmp_path / "k8s")
    mine = tmp_path / "k8s/overlays/mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(overlay))

    for render in kustomize.renderers().values():
        found = kustomize.objects(render(mine))
        assert [said for said in complaints(found) if said] == []
        (container,) = containers(only(found, "Deployment"))
        variables = {each["name"]: each for each in container["env"]}
        assert set(variables) == {"REDIS_URL", "MCP_PROXY_SESSIONS", "MCP_PROXY_ADMIN_TOKEN"}
        assert list(variables).index("REDIS_URL") < list(variables).index("MCP_PROXY_SESSIONS")
        assert variables["MCP_PROXY_SESSIONS"]["value"] == "$(REDIS_URL)"


@pytest.mark.parametrize(("kind", "name"), OF_THE_OPERATOR)
def test_it_says_how_to_make_what_is_the_operators(text: str, kind: str, name: str) -> None:
    (line,) = [
        each for each in text.splitlines() if f" create {kind.lower()} " in each and f" {name} " in each
    ]

    for key in OF_THE_OPERATOR[kind, name]:
        flag = {"tls.crt": "--cert=", "tls.key": "--key="}.get(key, f"--from-literal={key}=")
        assert flag in line


# --- what it says -----------------------------------------------------------------------------


def test_it_promises_the_versions_that_are_judged(text: str) -> None:
    assert f"Kubernetes {OLDEST} or newer" in text
    assert f"Kubernetes {OLDEST} and {NEWEST}" in " ".join(text.split())


def test_it_explains_every_part(text: str) -> None:
    said = [cell.strip("`") for cell, *_ in rows(text, "Kubernetes")]
    here = [
        f"{folder}/{each.name}" for folder in ("components", "overlays") for each in (K8S / folder).iterdir()
    ]

    assert sorted(said) == sorted(["base", *here])


def test_paths_are_there(text: str) -> None:
    found = set(re.findall(r"(?<![\w/])(?:k8s|components|overlays)/[\w./-]*\w", text)) - {
        "k8s/overlays/mine/kustomization.yaml"
    }

    assert len(found) > 10
    for path in found:
        assert (ROOT / path).exists() or (K8S / path).exists(), path


def test_the_table_of_the_network_names_every_part_that_opens_something(text: str) -> None:
    said = {row[-1].strip("`") for row in rows(text, "The network")}

    assert said == {"base"} | {
        each
        for each in COMPONENTS
        if "kind: NetworkPolicy"
        in "".join(file.read_text() for file in (K8S / "components" / each).glob("*.yaml"))
    }


def test_its_arithmetic_is_that_of_the_manifests(text: str, tmp_path: Path) -> None:
    limits = config(PRODUCTION, tmp_path).limits
    said = {
        name.strip("`"): int(value.removesuffix(" s"))
        for name, value, _ in rows(text, "Ends, and their arithmetic")
    }

    assert said["limits.drain_delay"] == limits.drain_delay
    assert said["limits.drain"] == limits.drain
    grace = said["terminationGracePeriodSeconds"]
    assert grace == deployment(PRODUCTION)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= limits.drain_delay + limits.drain + said["and what comes after"]


def test_its_arithmetic_of_servers_is_that_of_the_example(text: str, tmp_path: Path) -> None:
    server = only(objects("overlays/dev"), "StatefulSet")
    sleep = containers(server)[0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = server["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    drain = config("overlays/dev", tmp_path).pools["mcp-server"].drain

    said = f"{sleep - drain:g} + {drain:g} = {sleep}, and {sleep} + {grace - sleep} = {grace}"
    assert said in " ".join(text.split())


def test_its_sizes_are_those_of_the_manifests(text: str, tmp_path: Path) -> None:
    (container,) = containers(deployment("base"))
    limits = config("base", tmp_path).limits
    said = {name.strip("`"): value for name, value, _ in rows(text, "Sizing")}

    assert said["CPU"] == f"{container['resources']['requests']['cpu']} requested, no limit"
    assert said["memory"] == f"{container['resources']['limits']['memory']} requested and limit"
    assert limits.memory is not None
    assert said["limits.memory"] == f"{limits.memory >> 20}MiB"
    assert said["limits.streams"] == str(limits.streams)


def test_words_of_the_proxy_are_its_own(text: str) -> None:
    words = set(re.findall(r"503 `(\w+)`", text))

    assert words
    assert words <= TABLE.keys()
