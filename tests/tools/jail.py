"""Runs one program as a container engine does: other root, own processes, fewer rights. For root, on Linux.

    unshare --mount --pid --fork --kill-child [--net] -- python jail.py SPECIFICATION

Rules of this file: a program of its own, with the standard library only, that ends in ``exec``, so that the
program becomes process 1 of the namespaces that ``unshare`` has made; everything it mounts goes with them.
What it cannot do is an error: a jail with a hole would prove nothing.

The specification (JSON): ``overlays`` [{at, lower, upper, work}] (no upper: read-only), ``root`` (one of
them), ``binds`` [{from, to, rw}], ``tmpfs`` {path: options}, ``argv``, ``env``, ``cwd``, ``user`` [uid, gid],
``hostname``, ``is_confined`` (no capability, no new privilege), ``waits`` (for a line on standard input,
before the program starts).
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _overlay(at: str, lower: list[str], upper: str | None = None, work: str | None = None) -> None:
    options = f"lowerdir={':'.join(lower)}"
    if upper is not None:
        options += f",upperdir={upper},workdir={work}"
    _mount("-t", "overlay", "overlay", "-o", options, at)


def _devices(folder: Path) -> None:
    _mount("-t", "tmpfs", "-o", "mode=755,nosuid", "tmpfs", str(folder))
    for name in _DEVICES:
        (folder / name).touch()
        _mount("--bind", f"/dev/{name}", str(folder / name))
    for name, target in {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}.items():
        (folder / name).symlink_to(f"/proc/self/fd{target}")
    (folder / "shm").mkdir(mode=0o1777)
    _mount("-o", "remount,ro", str(folder))


def _confine() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in range(last + 1):
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), f"capability {capability} cannot be dropped")
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")


def _mount_all(spec: dict[str, Any], root: str) -> None:
    _mount("--make-rprivate", "/")
    for overlay in spec["overlays"]:
        _overlay(**overlay)
    _mount("-t", "proc", "proc", f"{root}/proc")
    _devices(Path(root, "dev"))
    for bind in spec["binds"]:
        _mount("--bind", bind["from"], f"{root}{bind['to']}")
        if not bind.get("rw"):
            _mount("-o", "remount,bind,ro", f"{root}{bind['to']}")
    for path, options in spec.get("tmpfs", {}).items():
        _mount("-t", "tmpfs", "-o", f"nosuid,nodev,noexec,{options}", "tmpfs", f"{root}{path}")


def main() -> None:
    spec: dict[str, Any] = json.loads(sys.argv[1])
    _mount_all(spec, spec["root"])
    if "hostname" in spec:
        subprocess.run(["hostname", spec["hostname"]], check=True)
    if spec.get("waits"):
        if not os.read(0, 1):
            sys.exit("the jail was left before it began")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chroot(spec["root"])
    os.chdir(spec["cwd"])
    if spec.get("is_confined"):
        _confine()
    if "user" in spec:
        uid, gid = spec["user"]
        os.setgroups([gid])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    os.umask(0o022)
    os.execvpe(spec["argv"][0], spec["argv"], spec["env"])


if __name__ == "__main__":
    main()
