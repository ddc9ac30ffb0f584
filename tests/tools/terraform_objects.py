"""Kubernetes objects out of a Terraform module, and where they differ from others.

Rules of this file: names become those of the API by one rule (``run_as_user``, ``runAsUser``), and the tables
below have what the rule does not know: kinds, and the blocks that may be there more than once. Values are
compared as they are read: Terraform writes some numbers as text, so all scalars count as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

from tests.tools.hcl import Module

KINDS: Final = {
    "kubernetes_config_map_v1": "ConfigMap",
    "kubernetes_deployment_v1": "Deployment",
    "kubernetes_horizontal_pod_autoscaler_v2": "HorizontalPodAutoscaler",
    "kubernetes_namespace_v1": "Namespace",
    "kubernetes_network_policy_v1": "NetworkPolicy",
    "kubernetes_pod_disruption_budget_v1": "PodDisruptionBudget",
    "kubernetes_service_account_v1": "ServiceAccount",
    "kubernetes_service_v1": "Service",
}

LISTS: Final = {
    "container": "containers",
    "egress": "egress",
    "env": "env",
    "from": "from",
    "image_pull_secrets": "imagePullSecrets",
    "ingress": "ingress",
    "policy": "policies",
    "port": "ports",
    "ports": "ports",
    "to": "to",
    "topology_spread_constraint": "topologySpreadConstraints",
    "volume": "volumes",
    "volume_mount": "volumeMounts",
}
"""Blocks that are lists in the API. ``metric`` is one in an autoscaler, and none in its metrics."""

OTHERWISE: Final = {"cidr": "cidr", "cluster_ip": "clusterIP"}

AS_THEY_ARE: Final = {"labels", "annotations", "match_labels", "data", "limits", "requests", "node_selector"}
"""Their keys are the user's."""

NOT_OF_THE_API: Final = {"timeouts"}

UNORDERED: Final = {"env": "name", "metrics": "type"}
"""Lists whose order has no meaning here, with what names an element."""

Place = tuple[str, str, str]


@dataclass(frozen=True)
class Difference:
    kind: str
    name: str
    path: str
    why: str

    @property
    def place(self) -> Place:
        return self.kind, self.name, self.path


# --- objects --------------------------------------------------------------------------------------------


def objects_of(module: Module, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What there would be in the cluster for these values of variables."""
    return [
        {"kind": KINDS[of_type], **_object(body)}
        for (of_type, _), body in sorted(module.rendered(values).items())
    ]


def _object(body: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in body.items():
        # What is null or an empty map is not sent. An empty block is: a selector without labels selects
        # everything.
        if key in NOT_OF_THE_API or value is None or value == {}:
            continue
        found[_name(key, value)] = _value(key, value)
    return found


def _name(key: str, value: Any) -> str:
    if key == "metric" and isinstance(value, list) and "type" in value[0]:
        return "metrics"
    if key in LISTS and isinstance(value, list):
        return LISTS[key]
    return OTHERWISE.get(key) or re.sub(r"_(\w)", lambda found: found[1].upper(), key)


def _value(key: str, value: Any) -> Any:
    blocks_given = isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value)
    if key in AS_THEY_ARE or not blocks_given:
        return value
    blocks = [_object(each) for each in value]
    if key in LISTS or _name(key, value) == "metrics":
        return blocks
    (block,) = blocks
    return block


# --- comparing ------------------------------------------------------------------------------------------


def differences(theirs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> set[Place]:
    """Where the two differ; ``""`` as the path of an object that only one of them has."""
    left, right = _by_name(theirs), _by_name(ours)
    found = {(*which, "") for which in left.keys() ^ right.keys()}
    for which in left.keys() & right.keys():
        one, other = dict(_leaves("", left[which])), dict(_leaves("", right[which]))
        found |= {(*which, path) for path in one.keys() | other.keys() if one.get(path) != other.get(path)}
    return found


def _by_name(objects: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Each value by its path, list elements by their number or name."""
    last = path.rpartition(".")[2]
    match value:
        case Mapping() if value:
            for key, each in value.items():
                if path or key != "apiVersion":
                    yield from _leaves(f"{path}.{key}".lstrip("."), each)
        case list() if last in UNORDERED:
            for each in value:
                yield from _leaves(f"{path}[{each[UNORDERED[last]]}]", each)
        case list() if value and isinstance(value[0], Mapping):
            for number, each in enumerate(value):
                yield from _leaves(f"{path}[{number}]", each)
        case str() if path.startswith("data.") and path.endswith("yaml"):
            yield path, yaml.safe_load(value)
        case bool() | int() | float() | str():
            yield path, str(value)
        case _:
            yield path, value
