"""The checklist: every field that makes the difference between a pod that runs and a proxy that can be
operated.

Rules of this file: asserted on what is rendered, in the overlay for production unless it is about something
else. Where numbers depend on each other they are compared, not repeated. The reasons are in the manifests.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.rendered import EVERYTHING, PRODUCTION, SETS, bytes_of, config, cpu_of, deployment, objects
from tests.tools.kube_objects import at, containers, only, pod, workloads
from tests.tools.kustomize import Object


def proxy(name: str = PRODUCTION) -> Object:
    """The container."""
    (found,) = containers(deployment(name))
    return found


def spec(name: str = PRODUCTION) -> Object:
    found: Object = pod(deployment(name))["spec"]
    return found


# --- rollouts and ends ----------------------------------------------------------------------


def test_a_rollout_takes_no_replica_away_before_there_is_another() -> None:
    strategy = deployment(PRODUCTION)["spec"]["strategy"]

    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    assert deployment(PRODUCTION)["spec"]["minReadySeconds"] >= 5


@pytest.mark.parametrize("name", SETS)
def test_a_pod_lives_until_it_has_drained(name: str, tmp_path: Path) -> None:
    limits = config(name, tmp_path).limits
    sleep = at(proxy(name), "lifecycle", "preStop", "sleep", "seconds") or 0

    assert spec(name)["terminationGracePeriodSeconds"] >= sleep + limits.drain_delay + limits.drain + 15


@pytest.mark.parametrize("name", SETS)
def test_nothing_sleeps_before_the_proxy_is_told_because_it_drains_better_by_itself(name: str) -> None:
    assert "lifecycle" not in proxy(name)


@pytest.mark.parametrize("name", SETS)
def test_who_looks_at_readiness_sees_the_drain_before_the_listener_closes(name: str, tmp_path: Path) -> None:
    readiness = proxy(name)["readinessProbe"]
    noticed_s = readiness["periodSeconds"] * readiness["failureThreshold"] + readiness["timeoutSeconds"]

    assert noticed_s < config(name, tmp_path).limits.drain_delay


def test_a_budget_keeps_all_but_one_and_no_node_from_being_emptied() -> None:
    for name in ("mcp-proxy", "mcp-server"):
        budget = only(objects(EVERYTHING), "PodDisruptionBudget", name)["spec"]
        assert budget["maxUnavailable"] == 1
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


# --- probes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_probes_ask_the_admin_listener_and_only_readiness_asks_for_readiness(name: str) -> None:
    probes = {kind: proxy(name)[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")}

    asked = {kind: probe["httpGet"] for kind, probe in probes.items()}
    assert asked == {
        "startup": {"path": "/livez", "port": "admin"},
        "liveness": {"path": "/livez", "port": "admin"},
        "readiness": {"path": "/readyz", "port": "admin"},
    }
    assert probes["readiness"]["periodSeconds"] == 2
    # A machine that is slow for a moment must not restart a proxy with thousands of streams.
    assert probes["liveness"]["periodSeconds"] * probes["liveness"]["failureThreshold"] >= 30


# --- where pods go ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_replicas_of_one_version_are_spread_over_nodes_and_zones(name: str) -> None:
    constraints = {each["topologyKey"]: each for each in spec(name)["topologySpreadConstraints"]}

    assert list(constraints) == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    for each in constraints.values():
        assert each["matchLabelKeys"] == ["pod-template-hash"]
        assert each["labelSelector"] == deployment(name)["spec"]["selector"]
        assert each["maxSkew"] == 1
    is_strict = constraints["kubernetes.io/hostname"]["whenUnsatisfiable"] == "DoNotSchedule"
    assert is_strict == (name == PRODUCTION)


def test_traffic_stays_in_its_zone_and_no_client_is_tied_to_a_replica() -> None:
    service = only(objects(PRODUCTION), "Service", "mcp-proxy")["spec"]

    assert service["trafficDistribution"] == "PreferSameZone"
    assert service["type"] == "ClusterIP"
    assert "sessionAffinity" not in service


def test_the_admin_service_has_the_addresses_of_replicas_that_are_not_ready() -> None:
    service = only(objects(PRODUCTION), "Service", "mcp-proxy-admin")["spec"]

    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True


def test_nothing_is_published_outside_of_the_cluster_by_a_service() -> None:
    types = {each["spec"]["type"] for each in objects(EVERYTHING) if each["kind"] == "Service"}

    assert types == {"ClusterIP"}


@pytest.mark.parametrize("name", SETS)
def test_priority_is_for_those_who_ask_for_it(name: str) -> None:
    assert ("priorityClassName" in spec(name)) == (name == EVERYTHING)


# --- what pods may do ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_every_pod_is_as_restricted_as_the_standard_for_pods_asks(name: str) -> None:
    """Pod Security Standards, "restricted"; and more: the root is read-only."""
    for workload in workloads(objects(name)):
        inside = pod(workload)["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & inside.keys()
        assert inside["securityContext"]["runAsNonRoot"] is True
        assert inside["securityContext"]["runAsUser"] > 0
        assert inside["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert inside["enableServiceLinks"] is False
        for container in containers(workload):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert not [port for port in container["ports"] if "hostPort" in port]
    labels = only(objects(name), "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("name", SETS)
def test_only_a_proxy_that_watches_the_api_has_a_token_for_it(name: str) -> None:
    for each in objects(name):
        if each["kind"] == "ServiceAccount":
            assert each["automountServiceAccountToken"] is False
    with_token = [
        each["metadata"]["name"]
        for each in workloads(objects(name))
        if pod(each)["spec"]["automountServiceAccountToken"] is not False
    ]
    assert with_token == (["mcp-proxy"] if name == EVERYTHING else [])


def test_the_api_may_be_asked_for_endpoint_slices_and_nothing_else() -> None:
    assert only(objects(EVERYTHING), "Role")["rules"] == [
        {
            "apiGroups": ["discovery.k8s.io"],
            "resources": ["endpointslices"],
            "verbs": ["get", "list", "watch"],
        }
    ]


@pytest.mark.parametrize("name", SETS)
def test_the_proxy_runs_as_the_user_of_its_image(name: str) -> None:
    context = spec(name)["securityContext"]

    assert (context["runAsUser"], context["runAsGroup"]) == (10001, 10001)
    assert "USER 10001:10001" in (Path(__file__).parents[2] / "Dockerfile").read_text()


# --- resources and scaling ------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_memory_is_limited_and_cpu_is_not(name: str) -> None:
    for workload in workloads(objects(name)):
        for container in containers(workload):
            resources = container["resources"]
            assert set(resources["limits"]) == {"memory"}
            assert set(resources["requests"]) == {"cpu", "memory"}
            assert bytes_of(resources["requests"]["memory"]) <= bytes_of(resources["limits"]["memory"])


@pytest.mark.parametrize("name", SETS)
def test_the_proxy_refuses_more_before_the_kernel_ends_it(name: str, tmp_path: Path) -> None:
    """Above 110 % of limits.memory nothing is taken any more."""
    memory = config(name, tmp_path).limits.memory
    assert memory is not None

    assert memory * 1.1 < 0.9 * bytes_of(proxy(name)["resources"]["limits"]["memory"])


@pytest.mark.parametrize("name", SETS)
def test_one_pod_is_one_process(name: str, tmp_path: Path) -> None:
    assert config(name, tmp_path).workers == 1


@pytest.mark.parametrize("name", ["base", PRODUCTION, EVERYTHING])
def test_replicas_follow_cpu_and_streams_and_go_slowly(name: str, tmp_path: Path) -> None:
    scaler = only(objects(name), "HorizontalPodAutoscaler")["spec"]
    cpu, streams = scaler["metrics"]
    limits = config(name, tmp_path).limits

    assert "replicas" not in deployment(name)["spec"], "an apply would take the autoscaler's decision back"
    assert cpu["containerResource"]["container"] == proxy(name)["name"]
    one_core = cpu_of(proxy(name)["resources"]["requests"]["cpu"]) * (
        cpu["containerResource"]["target"]["averageUtilization"] / 100
    )
    assert 0.25 <= one_core <= 0.6, "a process that uses one core at most has to have room for a peak"
    assert streams["pods"]["metric"]["name"] == "mcp_proxy_open_streams"
    assert int(streams["pods"]["target"]["averageValue"]) == limits.streams // 2
    assert scaler["behavior"]["scaleDown"] == {
        "stabilizationWindowSeconds": 1800,
        "policies": [{"type": "Pods", "value": 1, "periodSeconds": 600}],
    }
    assert scaler["behavior"]["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert 2 <= scaler["minReplicas"] < scaler["maxReplicas"]


def test_development_needs_no_autoscaler() -> None:
    assert not [each for each in objects("overlays/dev") if each["kind"] == "HorizontalPodAutoscaler"]
    assert deployment("overlays/dev")["spec"]["replicas"] == 2


# --- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_a_change_of_the_configuration_is_no_rollout(name: str) -> None:
    """The name has no hash, and the directory is mounted, which follows changes."""
    (volume,) = [each for each in spec(name)["volumes"] if "configMap" in each]
    (mount,) = proxy(name)["volumeMounts"]

    assert volume["configMap"] == {"name": "mcp-proxy"}
    assert mount == {"name": volume["name"], "mountPath": "/etc/mcp-proxy", "readOnly": True}
    assert [*proxy(name)["command"], *proxy(name)["args"]] == [
        *("mcp-proxy", "serve", "--config", "/etc/mcp-proxy/proxy.yaml")
    ]


@pytest.mark.parametrize("name", SETS)
def test_replicas_share_what_they_know_of_sessions(name: str, tmp_path: Path) -> None:
    sessions = config(name, tmp_path).sessions

    assert sessions.store == ("redis" if name in (PRODUCTION, EVERYTHING) else "signed")
    names = [each["name"] for each in proxy(name)["env"]]
    if sessions.store == "redis":
        assert sessions.url == "redis://:a-password@mcp-proxy-redis:6379/0"
        assert sorted(names) == [
            "MCP_PROXY_ADMIN_TOKEN",
            "MCP_PROXY_METRICS_TOKEN",
            "MCP_PROXY_SESSIONS",
            "REDIS_PASSWORD",
        ]
        assert names.index("REDIS_PASSWORD") < names.index("MCP_PROXY_SESSIONS")
    else:
        assert names == ["MCP_PROXY_ADMIN_TOKEN", "MCP_PROXY_SESSIONS", "MCP_PROXY_SESSION_KEY"]


@pytest.mark.parametrize("name", SETS)
def test_the_configuration_listens_where_the_ports_say(name: str, tmp_path: Path) -> None:
    said = config(name, tmp_path)
    assert said.admin.listen is not None

    ports = {port["name"]: port["containerPort"] for port in proxy(name)["ports"]}
    assert ports == {"http": said.listen.port, "admin": said.admin.listen.port}
    assert ports == {"http": 8080, "admin": 9901}
    assert said.admin.token is not None
