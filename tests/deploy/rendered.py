"""What the folder ``k8s`` makes, as objects: base, overlays, and an overlay with every component."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import yaml

from mcp_proxy.config import Config, load
from tests.tools import kustomize
from tests.tools.kube_objects import only
from tests.tools.kustomize import Object

ROOT: Final = Path(__file__).parents[2]
K8S: Final = ROOT / "k8s"
COMPONENTS: Final = sorted(folder.name for folder in (K8S / "components").iterdir())

PRODUCTION: Final = "overlays/production"
DEVELOPMENT: Final = "overlays/dev"
FOLDERS: Final = ("base", DEVELOPMENT, PRODUCTION)
EVERYTHING: Final = "base and every component"
SETS: Final = (*FOLDERS, EVERYTHING)

SECRETS: Final = {
    "MCP_PROXY_ADMIN_TOKEN": "an-admin-token",
    "MCP_PROXY_METRICS_TOKEN": "a-token-for-metrics",
    "MCP_PROXY_SESSION_KEY": "a session key of more than 32 characters",
    "REDIS_PASSWORD": "a-password",
    "REDISCLI_AUTH": "a-password",
}
"""What the Secrets of the manifests bring, by the variables that they fill."""

OF_THE_OPERATOR: Final = {
    ("Secret", "mcp-proxy"): {"admin-token", "metrics-token", "session-key"},
    ("Secret", "mcp-proxy-redis"): {"password"},
    ("Secret", "mcp-example-com-tls"): {"tls.crt", "tls.key"},
}
"""What docs/kubernetes.md tells operators to make, with its keys."""


@cache
def text(name: str) -> str:
    """One of SETS, rendered."""
    return rendered_by(kustomize.text, name)


def objects(name: str) -> list[Object]:
    return kustomize.objects(text(name))


def rendered_by(render: Callable[[Path], str], name: str) -> str:
    if name != EVERYTHING:
        return render(K8S / name)
    return composed(render, "base", COMPONENTS)


def composed(render: Callable[[Path], str], base: str, components: list[str]) -> str:
    """An overlay that somebody else might write, outside of this repository."""
    with tempfile.TemporaryDirectory() as folder:
        here = os.path.relpath(K8S, os.path.realpath(folder))
        overlay = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "mcp",
            "resources": [f"{here}/{base}"],
            "components": [f"{here}/components/{each}" for each in components],
        }
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        return render(Path(folder))


# --- the proxy of a set -------------------------------------------------------------------


def deployment(name: str) -> Object:
    return only(objects(name), "Deployment", "mcp-proxy")


def environment(container: Object) -> dict[str, str]:
    """The variables that its process sees: secrets are those of SECRETS, and what is set before a variable is
    put into its value, as a kubelet does it."""
    found: dict[str, str] = {}
    for variable in container.get("env", ()):
        value = variable["value"] if "value" in variable else SECRETS[variable["name"]]
        found[variable["name"]] = expanded(value, found)
    return found


def expanded(text: str, environ: dict[str, str]) -> str:
    for name, value in environ.items():
        text = text.replace(f"$({name})", value)
    assert "$(" not in text, f"a variable that is not set before it is used: {text}"
    return text


def proxy_yaml(name: str) -> str:
    data: dict[str, str] = only(objects(name), "ConfigMap", "mcp-proxy")["data"]
    assert list(data) == ["proxy.yaml"]
    return data["proxy.yaml"]


def config(name: str, folder: Path) -> Config:
    """The configuration that its proxies run with, read as they read it."""
    file = folder / "proxy.yaml"
    file.write_text(proxy_yaml(name))
    (container,) = deployment(name)["spec"]["template"]["spec"]["containers"]
    return load(file, environment(container), {})


# --- amounts ------------------------------------------------------------------------------

_BINARY: Final = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def bytes_of(quantity: str) -> int:
    return int(quantity[:-2]) * _BINARY[quantity[-2:]]


def cpu_of(quantity: str) -> float:
    """Cores."""
    return int(quantity.removesuffix("m")) / 1000 if quantity.endswith("m") else float(quantity)
