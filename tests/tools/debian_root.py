"""Root file systems of Debian, made by mmdebstrap: what stands in for a base image where there is no engine.

Rules of this file: made once and kept under ``build/roots`` (never committed), because nothing changes in
them; used read-only, as the lower layer of an overlay. Needs root.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

from tests.tools.proxy import ROOT

ROOTS = ROOT / "build" / "roots"
LIMIT_S = 600.0
_OWN_SOURCES = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d/debian.sources"))


def python_slim(suite: str) -> Path:
    """A root like the image ``python:3-slim-<suite>``: Debian's Python of that release under the names that
    the image has, without bytecode of the standard library, as there."""
    root = debian(suite, "ca-certificates", "python3", "python3-venv")
    marker = root / "usr/local/bin/python"
    if not marker.is_symlink():
        for cache in root.glob("usr/lib/python3*/**/__pycache__"):
            shutil.rmtree(cache)
        (root / "usr/local/bin/python3").unlink(missing_ok=True)  # of a run that was killed
        (root / "usr/local/bin/python3").symlink_to("/usr/bin/python3")
        marker.symlink_to("python3")
    return root


def debian(suite: str, *packages: str) -> Path:
    """A minimal Debian with these packages, from wherever this machine gets its own."""
    name = f"{suite}-{hashlib.sha256(' '.join(packages).encode()).hexdigest()[:8]}"
    ROOTS.mkdir(parents=True, exist_ok=True)
    with (ROOTS / f"{name}.lock").open("w") as lock:  # other test processes wait for the one that makes it
        fcntl.flock(lock, fcntl.LOCK_EX)
        root = ROOTS / name
        if not root.exists():
            _make(suite, packages, ROOTS / f"{name}.new")
            (ROOTS / f"{name}.new").rename(root)
    return root


def _make(suite: str, packages: tuple[str, ...], target: Path) -> None:
    assert shutil.which("mmdebstrap"), "mmdebstrap is not installed (make setup)"
    if target.exists():  # of a run that was killed
        shutil.rmtree(target)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
    command += ["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*"]
    # Its mounts go with the namespace, also when it is killed.
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *command]
    made = subprocess.run(
        [*command, suite, str(target), *_sources(suite, target.with_suffix(".sources"))],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert made.returncode == 0, made.stderr[-4000:]


def _sources(suite: str, scratch: Path) -> list[str]:
    """This machine's sources, for another release; nothing (mmdebstrap's default) where it is no Debian."""
    release = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE)
    found = [source for source in _OWN_SOURCES if source.exists() and source.read_text().strip()]
    if release is None or not found or "ID=debian" not in Path("/etc/os-release").read_text().splitlines():
        return []
    written = []
    for number, source in enumerate(found):
        file = scratch.with_suffix(f".{number}{source.suffix}")
        file.write_text(source.read_text().replace(release[1], suite))
        written.append(str(file))
    return written
