"""What schemas cannot see: names that have to be somebody's, and selectors that have to select somebody.

Rules of this file: everything that is referred to is in the same rendered set, or is what docs/kubernetes.md
tells operators to make.
"""

from __future__ import annotations

import pytest

from tests.deploy.rendered import DEVELOPMENT, EVERYTHING, OF_THE_OPERATOR, SETS, environment, objects
from tests.tools.kube_objects import (
    at,
    containers,
    identity,
    only,
    pod,
    ports,
    references,
    selects,
    workloads,
)
from tests.tools.kustomize import Object


def _services(found: list[Object]) -> list[Object]:
    return [each for each in found if each["kind"] == "Service"]


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_nothing_is_there_twice(name: str) -> None:
    names = [identity(each) for each in objects(name)]

    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", SETS)
def test_whatever_is_referred_to_exists_or_is_the_operators(name: str) -> None:
    found = objects(name)
    here = {
        (each["kind"], each["metadata"]["name"]): {*each.get("data", ()), *each.get("stringData", ())}
        for each in found
    }
    known = OF_THE_OPERATOR | here if name == DEVELOPMENT else here | OF_THE_OPERATOR

    for each in found:
        for kind, target, key in references(each):
            assert (kind, target) in known, f"{identity(each)} needs {kind} {target}"
            assert key is None or key in known[kind, target], (
                f"{identity(each)} needs {key} of {kind} {target}"
            )


def test_development_leaves_nothing_to_the_operator() -> None:
    here = {(each["kind"], each["metadata"]["name"]) for each in objects(DEVELOPMENT)}

    assert {(kind, name) for each in objects(DEVELOPMENT) for kind, name, _ in references(each)} <= here


@pytest.mark.parametrize("name", SETS)
def test_every_variable_has_one_source_and_what_is_put_into_it_stands_before_it(name: str) -> None:
    """A patch that adds a source leaves the old value there, which schemas allow and API servers refuse."""
    for workload in workloads(objects(name)):
        for container in containers(workload):
            for variable in container.get("env", ()):
                assert len(variable) == 2, variable
            environment(container)


@pytest.mark.parametrize("name", SETS)
def test_every_generated_config_map_is_used(name: str) -> None:
    """A mount that was renamed would leave the old one behind."""
    found = objects(name)
    maps = {each["metadata"]["name"] for each in found if each["kind"] == "ConfigMap"}
    used = {ref.name for each in found for ref in references(each) if ref.kind == "ConfigMap"}

    assert maps - used <= {"mcp-proxy-dashboard"}, "that is Grafana's, which finds it by its label"


# --- selectors --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_every_service_selects_one_workload_and_names_ports_that_it_has(name: str) -> None:
    found = objects(name)

    for service in _services(found):
        (workload,) = [each for each in workloads(found) if selects(service["spec"]["selector"], each)]
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports(workload), f"{identity(service)}: {port}"
            if service["spec"].get("clusterIP") == "None":
                assert port["port"] == ports(workload)[port["targetPort"]], "nothing translates it"


@pytest.mark.parametrize("name", SETS)
def test_every_workload_selects_its_own_pods_and_no_others(name: str) -> None:
    found = objects(name)

    for workload in workloads(found):
        selector = workload["spec"]["selector"]["matchLabels"]
        assert [each for each in workloads(found) if selects(selector, each)] == [workload]


@pytest.mark.parametrize("name", SETS)
def test_budgets_and_constraints_select_their_own_workload(name: str) -> None:
    found = objects(name)

    for each in found:
        if each["kind"] == "PodDisruptionBudget":
            selector = each["spec"]["selector"]["matchLabels"]
            (workload,) = [one for one in workloads(found) if selects(selector, one)]
            assert workload["metadata"]["name"] == each["metadata"]["name"]
    for workload in workloads(found):
        for constraint in pod(workload)["spec"].get("topologySpreadConstraints", ()):
            assert selects(constraint["labelSelector"]["matchLabels"], workload)


@pytest.mark.parametrize("name", SETS)
def test_probes_and_mounts_name_what_their_pod_has(name: str) -> None:
    for workload in workloads(objects(name)):
        claims = {each["metadata"]["name"] for each in workload["spec"].get("volumeClaimTemplates", ())}
        volumes = {each["name"] for each in pod(workload)["spec"].get("volumes", ())} | claims
        mounted = set()
        for container in containers(workload):
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                port = at(container, probe, "httpGet", "port") or at(container, probe, "tcpSocket", "port")
                assert port is None or port in ports(workload)
                assert port or at(container, probe, "exec", "command")
            mounted |= {each["name"] for each in container["volumeMounts"]}
        assert mounted == volumes


def test_monitors_routes_and_ingresses_lead_to_ports_of_services() -> None:
    found = objects(EVERYTHING)
    service = only(found, "Service", "mcp-proxy")
    by_name = {port["name"]: port["port"] for port in service["spec"]["ports"]}

    for rule in only(found, "HTTPRoute")["spec"]["rules"]:
        assert [(each["name"], each["port"]) for each in rule["backendRefs"]] == [
            ("mcp-proxy", by_name["http"])
        ]
    for rule in only(found, "Ingress")["spec"]["rules"]:
        assert all(path["backend"]["service"]["port"]["name"] in by_name for path in rule["http"]["paths"])
    monitor = only(found, "ServiceMonitor")["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    (scraped,) = [each for each in _services(found) if wanted <= each["metadata"]["labels"].items()]
    assert scraped["metadata"]["name"] == "mcp-proxy-admin"
    assert monitor["jobLabel"] in scraped["metadata"]["labels"]


def test_the_role_is_given_to_the_proxy_in_its_namespace() -> None:
    found = objects(EVERYTHING)
    (subject,) = only(found, "RoleBinding")["subjects"]
    account = pod(only(found, "Deployment"))["spec"]["serviceAccountName"]

    assert subject == {"kind": "ServiceAccount", "name": account, "namespace": "mcp"}
