"""Runs an image without an engine, with what an engine takes away: other root, own processes, no capability.

Rules of this file: what is started is stopped, all of it, at the end of a ``with``; namespaces see to that,
however the test ends. The jail (``jail.py``) refuses what it cannot do, so that nothing here is confined less
than it says. Not done: limits of memory and processes, and the seccomp filter of engines. Needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tools import PATIENCE_S, jail

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OF_THE_MACHINE = ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt")


@dataclass
class Image:
    """``layer`` on top of ``base``, and what the metadata of an image says."""

    base: Path
    layer: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    user: str = ""
    cwd: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    stop_signal: str = "SIGTERM"
    ports: list[str] = field(default_factory=list)
    stand_in_tmpfs: tuple[str, ...] = ()
    """What has to be writable in an image that stands in for another, and is elsewhere there."""

    def find(self, path: str) -> Path:
        """A file of the image, from outside."""
        added = self.layer / path.lstrip("/")
        return added if added.exists() or added.is_symlink() else self.base / path.lstrip("/")


@dataclass(frozen=True)
class Bind:
    """A file or folder of this machine at a place in the container."""

    what: Path
    to: str
    is_writable: bool = False


@dataclass(frozen=True, kw_only=True)
class Run:
    """How an image is run, where it is not as the image says. The root is read-only."""

    command: Sequence[str] | None = None
    entrypoint: Sequence[str] | None = None
    user: str = ""
    binds: Sequence[Bind] = ()
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    """Options of mount by place; without them it is as the directory below it is: root's."""
    env: Mapping[str, str] = field(default_factory=dict)
    writable: Path | None = None
    """Catches what is written to a root that is not read-only."""
    hosts: str | None = None
    """/etc/hosts; None for that of this machine."""
    hostname: str = "container"
    has_own_network: bool = False
    """Without an interface; the program starts once ``Container.go`` is called."""


class Container:
    """A running image. Made by ``running``."""

    def __init__(self, image: Image, run: Run, process: subprocess.Popen[bytes], log: Path) -> None:
        self.image, self.run = image, run
        self.process, self.log = process, log
        self.pid = _child_of(process)
        """Of process 1 of the container, as seen from outside."""

    @property
    def output(self) -> str:
        return self.log.read_text()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.close()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """What an engine's ``stop`` sends; the exit code."""
        os.kill(self.pid, number)
        return self.process.wait(PATIENCE_S)

    def execute(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """``docker exec``: a command beside process 1, as the same user."""
        until = time.monotonic() + PATIENCE_S
        while jail.__file__.encode() in Path(f"/proc/{self.pid}/cmdline").read_bytes():
            assert time.monotonic() < until, "the jail never became the program"
            time.sleep(0.01)
        uid, gid = _ids(self.run.user or self.image.user)
        spaces = ["--mount", "--pid", "--net", "--ipc", "--uts", "--root", "--wd=/"]
        enter = ["nsenter", f"--target={self.pid}", *spaces, f"--setuid={uid}", f"--setgid={gid}"]
        env = [f"{name}={value}" for name, value in {**self.image.env, **self.run.env}.items()]
        words = [*enter, "--", "/usr/bin/env", "-i", *env, *argv]
        return subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S
        )


@contextlib.contextmanager
def running(image: Image, folder: Path, run: Run | None = None) -> Iterator[Container]:
    """The image's ENTRYPOINT and CMD as its USER, without capabilities. ``folder`` does not exist yet."""
    run = run or Run()
    at = folder / "root"
    at.mkdir(parents=True)
    engine = engine_layer(folder / "engine", *_mount_points(run), network=run.hosts is None)
    if run.hosts is not None:
        (engine / "etc").mkdir(exist_ok=True)
        (engine / "etc/hosts").write_text(run.hosts)
    overlay: dict[str, Any] = {"at": str(at), "lower": [str(engine), str(image.layer), str(image.base)]}
    if run.writable is not None:
        for path in (run.writable, folder / "work"):
            path.mkdir()
            path.chmod(0o777)  # whatever anybody might write is caught
        overlay |= {"upper": str(run.writable), "work": str(folder / "work")}
    entrypoint = image.entrypoint if run.entrypoint is None else run.entrypoint
    command = (image.command if run.entrypoint is None else []) if run.command is None else run.command
    words = jailed(
        root=at,
        overlays=[overlay],
        binds=[{"from": str(bind.what), "to": bind.to, "rw": bind.is_writable} for bind in run.binds],
        tmpfs=run.tmpfs,
        argv=[*entrypoint, *command],
        env={**image.env, **run.env},
        cwd=image.cwd,
        user=_ids(run.user or image.user),
        hostname=run.hostname,
        is_confined=True,
        waits=run.has_own_network,
    )
    with (folder / "log").open("wb") as log:
        (folder / "log").chmod(0o666)  # an engine gives standard output to the user of the container
        stdin = subprocess.PIPE if run.has_own_network else subprocess.DEVNULL
        process = subprocess.Popen(words, stdin=stdin, stdout=log, stderr=log)
    try:
        yield Container(image, run, process, folder / "log")
    finally:
        process.kill()  # and with it, by --kill-child, all of the container
        process.wait(PATIENCE_S)
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()


def _mount_points(run: Run) -> list[str]:
    """Those that are not in what is mounted before them."""
    tops = [bind for bind in run.binds if not any(bind.to.startswith(f"{other.to}/") for other in run.binds)]
    points = [f"{bind.to}/" if bind.what.is_dir() else bind.to for bind in tops]
    return points + [f"{path}/" for path in run.tmpfs]


def _ids(user: str) -> tuple[int, int]:
    uid, _, gid = user.partition(":")
    return int(uid), int(gid)


def jailed(**specification: Any) -> list[str]:
    """The command that runs a program in a jail; see there."""
    namespaces = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
    if specification.get("waits"):
        namespaces.append("--net")
    return [*namespaces, "--", sys.executable, "-S", jail.__file__, json.dumps(specification, default=str)]


def engine_layer(folder: Path, *mount_points: str, network: bool) -> Path:
    """What an engine puts into a root: mount points (one that ends with a slash is a folder), and with
    ``network`` what this machine has to resolve names and to check certificates."""
    folder.mkdir(parents=True)
    for path in _OF_THE_MACHINE if network else ():
        if Path(path).exists():
            (folder / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path[1:])
    for path in mount_points:
        point = folder / path.strip("/")
        if path.endswith("/"):
            point.mkdir(parents=True, exist_ok=True)
        else:
            point.parent.mkdir(parents=True, exist_ok=True)
            point.touch()
    return folder


def _child_of(process: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        if found := children.read_text().split():
            return int(found[0])
    raise AssertionError("the jail did not start")
