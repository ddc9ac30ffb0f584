"""Who may talk to whom, by the NetworkPolicies of a set of manifests.

Rules of this file: the semantics of networking.k8s.io/v1, as its reference has them: a pod that no policy
selects for a direction may do anything in it; one that is selected may do what any of these policies allows,
and a connection needs both ends. Written from the reference, so it proves what the policies say, not what a
network plugin makes of them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.tools.kube_objects import pod, ports, workloads
from tests.tools.kustomize import Object


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod of some namespace, or with ``ip`` something that is no pod."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    ip: str = ""


def peers(objects: Sequence[Object]) -> dict[str, Peer]:
    """The pods of these manifests, by the names of their workloads."""
    return {
        each["metadata"]["name"]: Peer(
            each["metadata"]["namespace"], pod(each)["metadata"]["labels"], ports(each)
        )
        for each in workloads(objects)
    }


def may_connect(
    objects: Sequence[Object], source: Peer, target: Peer, port: int, protocol: str = "TCP"
) -> bool:
    """Whether the policies in ``objects`` let ``source`` open a connection to this port of ``target``."""
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    leaves = _passes(policies, "Egress", source, target, target, port, protocol)
    return leaves and _passes(policies, "Ingress", target, source, target, port, protocol)


def is_isolated(objects: Sequence[Object], peer: Peer, direction: str) -> bool:
    """Whether any policy selects this pod for the direction."""
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    return any(_selecting(policies, direction, peer))


def _selecting(policies: Sequence[Object], direction: str, subject: Peer) -> Iterator[Object]:
    for policy in policies:
        is_here = not subject.ip and policy["metadata"]["namespace"] == subject.namespace
        is_about = is_here and direction in policy["spec"]["policyTypes"]
        if is_about and _matches(policy["spec"]["podSelector"], subject.labels):
            yield policy


def _passes(
    policies: Sequence[Object],
    direction: str,
    subject: Peer,
    other: Peer,
    target: Peer,
    port: int,
    protocol: str,
) -> bool:
    selecting = list(_selecting(policies, direction, subject))
    key, side = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    return not selecting or any(
        _is_peer(rule.get(side), other, policy["metadata"]["namespace"])
        and _is_port(rule.get("ports"), target, port, protocol)
        for policy in selecting
        for rule in policy["spec"].get(key, ())
    )


def _is_peer(peers: Sequence[Object] | None, other: Peer, namespace: str) -> bool:
    if not peers:
        return True  # a rule without peers is about everybody
    return any(_is_this(each, other, namespace) for each in peers)


def _is_this(peer: Object, other: Peer, namespace: str) -> bool:
    if "ipBlock" in peer:
        block = ipaddress.ip_network(peer["ipBlock"]["cidr"])
        return bool(other.ip) and ipaddress.ip_address(other.ip) in block
    if other.ip:
        return False
    if "namespaceSelector" in peer:
        # The one label that every namespace has by itself.
        name = {"kubernetes.io/metadata.name": other.namespace}
        if not _matches(peer["namespaceSelector"], name):
            return False
    elif other.namespace != namespace:
        return False
    return _matches(peer.get("podSelector", {}), other.labels)


def _is_port(ports: Sequence[Object] | None, target: Peer, port: int, protocol: str) -> bool:
    if not ports:
        return True
    return any(
        each.get("protocol", "TCP") == protocol and _number(each.get("port"), target) in (None, port)
        for each in ports
    )


def _number(port: Any, target: Peer) -> int | None:
    """A name means what the pod that is connected to calls so. -1: nothing there is called so."""
    return target.ports.get(port, -1) if isinstance(port, str) else port


def _matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """An empty selector selects everything."""
    assert selector.keys() <= {"matchLabels"}, f"expressions are not understood: {selector}"
    return bool(selector.get("matchLabels", {}).items() <= labels.items())
