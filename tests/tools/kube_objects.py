"""Kubernetes objects as documents: found, walked, and asked for what they refer to.

Rules of this file: it knows the fields that the manifests of this repository use, and no more. A reference to
something that nothing here can mean is an error of the caller's test, not an empty answer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from tests.tools.kustomize import Object

WORKLOADS: Final = ("Deployment", "StatefulSet", "DaemonSet", "Job")

FREE: Final = frozenset(
    {"annotations", "data", "labels", "limits", "matchLabels", "nodeSelector", "requests", "stringData"}
)
"""Maps whose keys are anybody's words, so that no schema can know a typo in them."""

Path = tuple[str | int, ...]


class Ref(NamedTuple):
    """Another object that has to exist. ``key``: and has this key."""

    kind: str
    name: str
    key: str | None = None


def only(objects: Sequence[Object], kind: str, name: str | None = None) -> Object:
    """The only one of this kind (and name)."""
    found = [each for each in objects if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}"
    return found[0]


def at(value: Any, *path: str | int) -> Any:
    """What stands there; None where there is nothing."""
    for step in path:
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def identity(object: Object) -> tuple[str, str, str]:
    metadata = object["metadata"]
    return object["kind"], metadata.get("namespace", ""), metadata["name"]


# --- walking ----------------------------------------------------------------------------


def fields(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every field whose name a schema knows, at any depth."""
    if isinstance(value, Mapping):
        is_free = bool(path) and (path[-1] in FREE or path[-2:] == ("spec", "selector"))
        for key, inner in value.items():
            if not is_free or key == "matchLabels":
                yield (*path, key)
            yield from fields(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from fields(inner, (*path, index))


def misspelt(object: Object, path: Path) -> Object:
    """The same with a typo in the name of this field."""
    changed = copy.deepcopy(object)
    holder = at(changed, *path[:-1])
    holder[f"{path[-1]}x"] = holder.pop(path[-1])
    return changed


# --- pods -------------------------------------------------------------------------------


def workloads(objects: Sequence[Object]) -> list[Object]:
    return [each for each in objects if each["kind"] in WORKLOADS]


def pod(workload: Object) -> Object:
    """Its pods: ``metadata`` and ``spec``."""
    template: Object = workload["spec"]["template"]
    return template


def containers(workload: Object) -> list[Object]:
    spec = pod(workload)["spec"]
    return [*spec["containers"], *spec.get("initContainers", ())]


def ports(workload: Object) -> dict[str, int]:
    """Those of its containers, by their names."""
    return {
        port["name"]: port["containerPort"]
        for container in containers(workload)
        for port in container.get("ports", ())
    }


def selects(selector: Mapping[str, str], workload: Object) -> bool:
    """Whether these labels select its pods. Nothing selects nothing here, because nobody may mean that."""
    labels = pod(workload)["metadata"]["labels"]
    return bool(selector) and selector.items() <= labels.items()


# --- references -------------------------------------------------------------------------


def references(object: Object) -> Iterator[Ref]:
    """What it needs by name, in its own namespace."""
    kind, spec = object["kind"], object.get("spec", {})
    if kind in WORKLOADS:
        yield from _of_pod(pod(object)["spec"])
    if kind == "StatefulSet":
        yield Ref("Service", spec["serviceName"])
    if kind == "HorizontalPodAutoscaler":
        yield Ref(spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
    if kind == "RoleBinding":
        yield from (Ref(each["kind"], each["name"]) for each in (object["roleRef"], *object["subjects"]))
    if kind == "ServiceMonitor":
        yield from (_of_key("Secret", each["authorization"]["credentials"]) for each in spec["endpoints"])
    if kind in ("HTTPRoute", "Ingress"):
        yield from _of_way_in(spec)


def _of_way_in(spec: Object) -> Iterator[Ref]:
    yield from (Ref("Secret", each["secretName"]) for each in spec.get("tls", ()))
    for rule in spec["rules"]:
        yield from (Ref(each["kind"], each["name"]) for each in rule.get("backendRefs", ()))
        for path in at(rule, "http", "paths") or ():
            yield Ref("Service", path["backend"]["service"]["name"])


def _of_pod(spec: Object) -> Iterator[Ref]:
    yield Ref("ServiceAccount", spec["serviceAccountName"])
    if "priorityClassName" in spec:
        yield Ref("PriorityClass", spec["priorityClassName"])
    for volume in spec.get("volumes", ()):
        if "configMap" in volume:
            yield Ref("ConfigMap", volume["configMap"]["name"])
        else:
            assert "emptyDir" in volume, f"a volume that is not understood: {volume}"
    for container in spec["containers"]:
        assert "envFrom" not in container, "what it refers to is not understood"
        for variable in container.get("env", ()):
            source = variable.get("valueFrom", {})
            if "secretKeyRef" in source:
                yield _of_key("Secret", source["secretKeyRef"])
            else:
                assert not source, f"a source that is not understood: {source}"


def _of_key(kind: str, reference: Mapping[str, str]) -> Ref:
    return Ref(kind, reference["name"], reference["key"])
