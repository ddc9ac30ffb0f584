"""What an API server would say of an object: its schema, strictly, for a version of Kubernetes.

Rules of this file: an unknown field is a complaint, and so is a kind without a schema. Kinds of Kubernetes
itself are judged by the schemas of kubernetes-validate, custom resources by those of @kubernetes-models from
npm (``crd_check.mjs``), which have one version only.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from kubernetes_validate import utils as schemas  # type: ignore[import-untyped]
from referencing import Registry, Resource

from tests.tools import PATIENCE_S, npm
from tests.tools.kustomize import Object

NEWEST: Final = "1.37"
OLDEST: Final = "1.34"
"""From here on a preStop sleep is there for good, and `PreferSameZone` is known."""

_GATEWAY: Final = ("@kubernetes-models/gateway-api", "2.0.0")
_OPERATOR: Final = ("@kubernetes-models/prometheus-operator", "6.0.0")
_OPERATORS: Final = "ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoringV1"

CUSTOM: Final = {
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): (*_GATEWAY, "IoK8sSigsGatewayApiApisV1HTTPRoute"),
    ("gateway.networking.k8s.io/v1", "Gateway"): (*_GATEWAY, "IoK8sSigsGatewayApiApisV1Gateway"),
    ("monitoring.coreos.com/v1", "PrometheusRule"): (*_OPERATOR, f"{_OPERATORS}PrometheusRule"),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): (*_OPERATOR, f"{_OPERATORS}ServiceMonitor"),
}
"""By apiVersion and kind: package, version, and the module of its schema."""


def complaints(objects: Sequence[Object], version: str = NEWEST) -> list[list[str]]:
    """For each object, in their order, everything that is wrong with it."""
    custom = [each for each in objects if _kind(each) in CUSTOM]
    of_custom = iter(_custom(custom) if custom else ())
    return [next(of_custom) if _kind(each) in CUSTOM else _core(each, version) for each in objects]


def is_refused(object: Object, version: str = NEWEST) -> bool:
    """Whether anything is wrong with an object of Kubernetes itself. Quicker than ``complaints``."""
    validator = _validator(*_kind(object), version)
    return validator is None or not validator.is_valid(object)


def _kind(object: Object) -> tuple[str, str]:
    return str(object.get("apiVersion")), str(object.get("kind"))


def _core(object: Object, version: str) -> list[str]:
    validator = _validator(*_kind(object), version)
    if validator is None:
        return [f"Kubernetes {version} has no {' '.join(_kind(object))}"]
    return [f"/{'/'.join(map(str, each.path))}: {each.message}" for each in validator.iter_errors(object)]


@cache
def _validator(api_version: str, kind: str, version: str) -> Any:
    """None: there is no such kind."""
    group, _, api = api_version.rpartition("/")
    name = "-".join(filter(None, (kind.lower(), group.partition(".")[0], api)))
    try:
        schema = schemas.schema_contents(f"{_folder(version)}/{name}.json", version)
    except FileNotFoundError:
        return None
    # The name is the group's without its domain, and that of another group may be the same.
    if api_version not in schema["properties"]["apiVersion"].get("enum", ()):
        return None
    return Draft202012Validator(schema, registry=_definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    content = schemas.schema_contents(f"{_folder(version)}/_definitions.json", version)
    registry: Registry[Any] = Registry()
    return Resource.from_contents(content) @ registry


def _folder(version: str) -> str:
    return f"kubernetes-json-schema/v{version}.0-local-strict"


def _custom(objects: Sequence[Object]) -> list[list[str]]:
    asked = [{"module": str(_module(*_kind(each))), "object": each} for each in objects]
    script = Path(__file__).with_name("crd_check.mjs")
    done = subprocess.run(
        [str(npm.node()), str(script)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout)
    return found


@cache
def _module(api_version: str, kind: str) -> Path:
    package, version, module = CUSTOM[api_version, kind]
    return npm.install(package, version) / "_schemas" / f"{module}.js"
