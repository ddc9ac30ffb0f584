"""The checklist, second half: Redis, the ways in, monitoring, and the example of a server.

Rules of this file: those of ``test_kubernetes_fields.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.rendered import EVERYTHING, K8S, PRODUCTION, SETS, bytes_of, config, deployment, objects
from tests.tools import kustomize
from tests.tools.kube_objects import containers, only, pod
from tests.tools.kustomize import Object

# --- Redis ----------------------------------------------------------------------------------------


def redis() -> tuple[Object, Object, dict[str, str]]:
    """Its StatefulSet, container, and configuration."""
    found = objects(PRODUCTION)
    server = only(found, "StatefulSet", "mcp-proxy-redis")
    (container,) = containers(server)
    name = pod(server)["spec"]["volumes"][0]["configMap"]["name"]
    lines = only(found, "ConfigMap", name)["data"]["redis.conf"].splitlines()
    pairs = (line.split(" ", 1) for line in lines if line and not line.startswith("#"))
    return server, container, dict(pairs)


def test_redis_keeps_what_it_has_been_told_on_a_volume() -> None:
    server, container, lines = redis()
    (claim,) = server["spec"]["volumeClaimTemplates"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}

    assert (lines["appendonly"], lines["appendfsync"]) == ("yes", "everysec")
    assert mounts[claim["metadata"]["name"]] == lines["dir"] == "/data"
    assert server["spec"]["persistentVolumeClaimRetentionPolicy"] == {
        "whenDeleted": "Retain",
        "whenScaled": "Retain",
    }
    assert (
        pod(server)["spec"]["securityContext"]["fsGroup"]
        == pod(server)["spec"]["securityContext"]["runAsGroup"]
    )


def test_redis_forgets_no_session_and_can_fork() -> None:
    _, container, lines = redis()
    limit = bytes_of(container["resources"]["limits"]["memory"])

    assert lines["maxmemory-policy"] == "noeviction"
    assert 2.5 * int(lines["maxmemory"].removesuffix("mb")) * (1 << 20) <= limit


def test_redis_asks_for_a_password_that_comes_from_a_secret() -> None:
    _, container, lines = redis()
    (variable,) = container["env"]

    assert "requirepass" not in lines
    assert container["args"][-2:] == ["--requirepass", f"$({variable['name']})"]
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "mcp-proxy-redis", "key": "password"}}


# --- ways in --------------------------------------------------------------------------------------


def test_the_route_of_the_gateway_lets_streams_live_and_repeats_nothing(tmp_path: Path) -> None:
    route = only(objects(PRODUCTION), "HTTPRoute")["spec"]

    for rule in route["rules"]:
        assert rule["timeouts"]["request"] == "0s"
        assert not {"retry", "sessionPersistence"} & rule.keys()
    said = config(PRODUCTION, tmp_path)
    assert [said.external_url] == [f"https://{host}" for host in route["hostnames"]]


def is_matched(path: str, kind: str, value: str) -> bool:
    """As Gateway API and Ingress say it: prefixes are of whole elements of a path."""
    assert kind in {"Exact", "PathPrefix", "Prefix"}
    prefix = value.rstrip("/")
    return path == value or (kind != "Exact" and (path == prefix or path.startswith(f"{prefix}/")))


def paths_of(way: Object) -> list[tuple[str, str]]:
    """What leads to the proxy: how it is compared, and with what."""
    spec = way["spec"]
    if way["kind"] == "Ingress":
        rules = [path for rule in spec["rules"] for path in rule["http"]["paths"]]
        return [(each["pathType"], each["path"]) for each in rules]
    matches = [match["path"] for rule in spec["rules"] for match in rule["matches"]]
    return [(each["type"], each["value"]) for each in matches]


@pytest.mark.parametrize(
    ("name", "kind"), [(PRODUCTION, "HTTPRoute"), (EVERYTHING, "HTTPRoute"), (EVERYTHING, "Ingress")]
)
def test_every_route_of_the_proxy_can_be_reached_from_outside(name: str, kind: str, tmp_path: Path) -> None:
    open_paths = paths_of(only(objects(name), kind))

    for route in config(name, tmp_path).routes:
        assert any(is_matched(route.path, *each) for each in open_paths), route.path


def test_the_paths_of_production_are_said_where_its_routes_are() -> None:
    """In the overlay: not in the component, which operators do not change."""
    overlay = K8S / PRODUCTION
    (patch,) = kustomize.objects((overlay / "route.yaml").read_text())
    routes = yaml.safe_load((overlay / "proxy.yaml").read_text())["routes"]

    for route in routes:
        assert any(is_matched(route["path"], *each) for each in paths_of(patch)), route["path"]


def test_a_route_that_nothing_leads_to_would_be_found() -> None:
    assert is_matched("/mcp", "PathPrefix", "/mcp")
    assert is_matched("/mcp/x", "Prefix", "/mcp/")
    assert not is_matched("/mcp2", "PathPrefix", "/mcp")
    assert not is_matched("/mcp/x", "Exact", "/mcp")
    assert not is_matched("/weather/mcp", "PathPrefix", "/mcp")


def test_who_is_trusted_in_production_is_a_handful_of_pods(tmp_path: Path) -> None:
    """docs/security.md: what really stands in front, and nothing wider."""
    trusted = config(PRODUCTION, tmp_path).trusted_proxies

    assert trusted
    assert all(network.num_addresses <= 16 for network in trusted)


def test_the_legacy_ingress_streams_and_repeats_nothing(tmp_path: Path) -> None:
    ingress = only(objects(EVERYTHING), "Ingress")
    prefix = "nginx.ingress.kubernetes.io/"
    said = {name.removeprefix(prefix): value for name, value in ingress["metadata"]["annotations"].items()}
    body = said.pop("proxy-body-size")

    assert said == {
        "proxy-buffering": "off",
        "proxy-request-buffering": "off",
        "proxy-http-version": "1.1",
        "proxy-read-timeout": "3600",
        "proxy-send-timeout": "3600",
        "proxy-next-upstream": "off",
    }
    assert int(body.removesuffix("m")) << 20 >= config(EVERYTHING, tmp_path).limits.body
    assert ingress["spec"]["ingressClassName"] == "nginx"


def test_the_legacy_ingress_says_that_it_is_one() -> None:
    folder = Path(__file__).parents[2] / "k8s/components/ingress-nginx-legacy"

    assert (
        (folder / "kustomization.yaml")
        .read_text()
        .startswith("# LEGACY. ingress-nginx was retired in March 2026")
    )


# --- monitoring -----------------------------------------------------------------------------------


def test_prometheus_scrapes_every_replica_with_the_token() -> None:
    found = objects(PRODUCTION)
    (endpoint,) = only(found, "ServiceMonitor")["spec"]["endpoints"]
    admin = only(found, "Service", "mcp-proxy-admin")

    assert endpoint["port"] in {port["name"] for port in admin["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"
    assert endpoint["authorization"] == {"type": "Bearer", "credentials": _token(PRODUCTION)}
    assert int(endpoint["scrapeTimeout"].rstrip("s")) < int(endpoint["interval"].rstrip("s"))


def _token(name: str) -> Any:
    """Where the proxy itself has it from."""
    (container,) = containers(deployment(name))
    (found,) = [each for each in container["env"] if each["name"] == "MCP_PROXY_METRICS_TOKEN"]
    return found["valueFrom"]["secretKeyRef"]


# --- the example of a server ------------------------------------------------------------------------


def server(name: str = "overlays/dev") -> Object:
    return only(objects(name), "StatefulSet", "mcp-server")


def test_a_server_stays_until_its_sessions_had_the_time_of_their_pool(tmp_path: Path) -> None:
    """It leaves DNS when it is told to go. CoreDNS answers from memory for 5 s; then the proxy looks, and
    once more."""
    (container,) = containers(server())
    pool = config("overlays/dev", tmp_path).pools["mcp-server"]
    assert pool.discover is not None
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert sleep >= pool.drain + 5 + 2 * pool.discover.every + 5
    assert pod(server())["spec"]["terminationGracePeriodSeconds"] >= sleep + 15


def test_a_server_is_probed_without_making_a_session() -> None:
    (container,) = containers(server())

    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["tcpSocket"] == {"port": "mcp"}


def test_every_pool_of_the_configuration_is_a_headless_service_of_a_stateful_set(tmp_path: Path) -> None:
    found = objects("overlays/dev")

    for pool in config("overlays/dev", tmp_path).pools.values():
        assert pool.discover is not None
        service = only(found, "Service", pool.discover.dns)
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["ipFamilyPolicy"] == "SingleStack"
        assert [port["port"] for port in service["spec"]["ports"]] == [pool.discover.port]
        owner = only(found, "StatefulSet", pool.discover.dns)
        assert owner["spec"]["serviceName"] == pool.discover.dns
        assert owner["spec"]["replicas"] >= 2


@pytest.mark.parametrize("name", SETS)
def test_pools_and_routes_of_all_overlays_are_those_of_the_base(name: str, tmp_path: Path) -> None:
    """So that what is proven of the example in one of them is true of all."""
    base, said = config("base", tmp_path), config(name, tmp_path)

    assert said.routes == base.routes
    assert said.pools.keys() == base.pools.keys()
    for key, pool in said.pools.items():
        assert (pool.discover, pool.drain) == (base.pools[key].discover, base.pools[key].drain)
    assert said.limits.drain == base.limits.drain
