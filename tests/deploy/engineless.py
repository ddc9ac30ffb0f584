"""Images that are built once for all tests of a run, without an engine, under ``build/image``.

Rules of this file: made when first asked for, removed when the run ends. The base image is Debian's Python of
the release that the base image of the Dockerfile is made of.
"""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

from tests.tools.container import Image
from tests.tools.debian_root import debian, python_slim
from tests.tools.dockerfile import parse
from tests.tools.image import Builder, send
from tests.tools.proxy import ROOT

PROXY = "dns,http2,kubernetes,otlp"
"""The extras of the image as it is published; ``test_container_file.py`` compares."""
VERSION = "1.2.3"


@cache
def scratch() -> Path:
    """A folder that carries overlays, and goes at the end."""
    parent = ROOT / "build" / "image"
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    atexit.register(shutil.rmtree, folder)
    return folder


@cache
def base() -> Path:
    suite = re.search(r"^ARG PYTHON_IMAGE=\S+-slim-(\w+)@", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert suite is not None
    return python_slim(suite[1])


@cache
def context() -> Path:
    """The files at one moment, for every build: somebody may be editing them."""
    return send(scratch() / "context")


@cache
def built(extras: str = PROXY, attempt: int = 0) -> Image:
    """``docker build --build-arg EXTRAS=... --build-arg VERSION=...``; another ``attempt`` builds again."""
    folder = Path(tempfile.mkdtemp(dir=scratch()))
    dockerfile = parse((ROOT / "Dockerfile").read_text())
    return Builder(dockerfile, base(), context(), folder, EXTRAS=extras, VERSION=VERSION).build()


INSTALL = """\
FROM debian
WORKDIR /srv
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY mcp_proxy mcp_proxy
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \\
    python3 -m venv /opt/mcp-proxy \\
    && /opt/mcp-proxy/bin/pip install --quiet --constraint constraints.txt .
"""
"""What docs/container.md says before the files of the unit are installed; the machine has no network for
it."""


@cache
def installed() -> Image:
    """Debian 12 with systemd, and the proxy as its administrator installs it."""
    folder = Path(tempfile.mkdtemp(dir=scratch()))
    packages = ("ca-certificates", "dbus", "openssl", "procps", "python3", "python3-venv", "systemd-sysv")
    return Builder(parse(INSTALL), debian("bookworm", *packages), context(), folder).build()


@cache
def fresh() -> Path:
    """The parent of folders for containers."""
    folder = scratch() / "containers"
    folder.mkdir()
    return folder


def place() -> Path:
    """For one container, on a file system that carries overlays; does not exist yet."""
    return Path(tempfile.mkdtemp(dir=fresh())) / "container"
