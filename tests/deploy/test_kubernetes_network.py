"""Who may talk to whom: the table of docs/kubernetes.md, cell by cell, by the policies that are rendered.

Rules of this file: what is not in the table is tried as well and must be refused. Kubelets are not asked
about: by the reference of NetworkPolicy a pod can always be reached from its own node.
"""

from __future__ import annotations

from itertools import product

import pytest

from tests.deploy.rendered import EVERYTHING, PRODUCTION, SETS, objects
from tests.tools.kube_network import Peer, is_isolated, may_connect, peers

PROMETHEUS = Peer("monitoring", {"app.kubernetes.io/name": "prometheus"})
GATEWAY = Peer("gateway-system", {"app": "envoy"})
INGRESS = Peer("ingress-nginx", {"app.kubernetes.io/name": "ingress-nginx"})
DNS = Peer("kube-system", {"k8s-app": "kube-dns"})
NEIGHBOUR = Peer("mcp", {"app": "something-else"})
STRANGER = Peer("default", {"app.kubernetes.io/name": "mcp-proxy", "app.kubernetes.io/name2": "prometheus"})
NODE_DNS = Peer(ip="169.254.20.10")
API = Peer(ip="10.96.0.1")
INTERNET = Peer(ip="203.0.113.7")

OUTSIDE = {
    "prometheus": PROMETHEUS,
    "gateway": GATEWAY,
    "ingress-nginx": INGRESS,
    "dns": DNS,
    "neighbour": NEIGHBOUR,
    "stranger": STRANGER,
    "node-dns": NODE_DNS,
    "api": API,
    "internet": INTERNET,
}
PORTS = (53, 80, 443, 6379, 6443, 8000, 8080, 9901)

PROXY = {
    ("mcp-proxy", "dns", 53),
    ("mcp-proxy", "node-dns", 53),
}
ALLOWED = {
    "base": PROXY,
    "overlays/dev": PROXY | {("mcp-proxy", "mcp-server", 8000)},
    PRODUCTION: PROXY
    | {
        ("gateway", "mcp-proxy", 8080),
        ("prometheus", "mcp-proxy", 9901),
        ("mcp-proxy", "mcp-proxy-redis", 6379),
    },
    EVERYTHING: PROXY
    | {
        ("gateway", "mcp-proxy", 8080),
        ("ingress-nginx", "mcp-proxy", 8080),
        ("prometheus", "mcp-proxy", 9901),
        ("mcp-proxy", "mcp-proxy-redis", 6379),
        ("mcp-proxy", "mcp-server", 8000),
    }
    # Of an API server nobody knows the address beforehand.
    | {
        ("mcp-proxy", other, port)
        for other in (
            "dns",
            "node-dns",
            "api",
            "internet",
            "prometheus",
            "gateway",
            "ingress-nginx",
            "neighbour",
            "stranger",
        )
        for port in (443, 6443)
    },
}


@pytest.mark.parametrize("name", SETS)
def test_what_the_table_says_is_allowed_and_nothing_else(name: str) -> None:
    found = objects(name)
    inside = peers(found)
    everybody = inside | OUTSIDE

    allowed = {
        (source, target, port)
        for source, target, port in product(everybody, everybody, PORTS)
        if source != target and (source in inside or target in inside)
        if may_connect(found, everybody[source], everybody[target], port)
    }

    assert allowed == ALLOWED[name]


@pytest.mark.parametrize("name", SETS)
def test_names_are_asked_for_over_udp_too(name: str) -> None:
    found = objects(name)
    proxy = peers(found)["mcp-proxy"]

    assert may_connect(found, proxy, DNS, 53, "UDP")
    assert may_connect(found, proxy, NODE_DNS, 53, "UDP")
    assert not may_connect(found, proxy, INTERNET, 53, "UDP")


@pytest.mark.parametrize("name", SETS)
def test_every_pod_is_closed_in_both_directions_until_something_is_allowed(name: str) -> None:
    found = objects(name)

    for peer in peers(found).values():
        assert is_isolated(found, peer, "Ingress")
        assert is_isolated(found, peer, "Egress")


@pytest.mark.parametrize("name", SETS)
def test_pods_of_others_in_the_namespace_are_left_alone(name: str) -> None:
    found = objects(name)

    assert not is_isolated(found, NEIGHBOUR, "Ingress")
    assert not is_isolated(found, NEIGHBOUR, "Egress")


@pytest.mark.parametrize("name", SETS)
def test_every_policy_selects_a_pod(name: str) -> None:
    found = objects(name)
    policies = [each for each in found if each["kind"] == "NetworkPolicy"]

    for policy in policies:
        for direction in policy["spec"]["policyTypes"]:
            assert any(is_isolated([policy], peer, direction) for peer in peers(found).values()), policy


def test_a_server_with_the_label_is_reached_and_one_without_it_is_not() -> None:
    """What docs/kubernetes.md asks of servers of one's own."""
    found = objects(PRODUCTION)
    proxy = peers(found)["mcp-proxy"]
    mine = Peer("mcp", {"app.kubernetes.io/component": "mcp-server"})

    assert may_connect(found, proxy, mine, 8000)
    assert not may_connect(found, proxy, mine, 22)
    assert not may_connect(found, proxy, Peer("mcp", {"app": "mine"}), 8000)
    assert not may_connect(found, proxy, Peer("other", mine.labels), 8000)
