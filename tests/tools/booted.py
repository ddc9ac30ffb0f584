"""A Debian 12 with a systemd of its own, booted in namespaces, with the proxy in /opt/mcp-proxy.

Rules of this file: nothing of this machine's systemd is asked or changed; the machine has a network of its
own without a way out, and goes with everything in it at the end of the ``with``. Needs root and
systemd-nspawn.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.tools import PATIENCE_S
from tests.tools.container import Image

BOOT_S = 60.0


class Machine:
    def __init__(self, leader: int, root: Path) -> None:
        self._leader = leader
        self.root = root
        """Its files, from outside."""

    def run(self, *argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """As root in the machine, in /srv."""
        enter = ["nsenter", f"--target={self._leader}", "--all", "--root", "--", "/usr/bin/env", "-i"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        words = [*enter, path, "SYSTEMD_PAGER=", "sh", "-c", 'cd /srv && exec "$@"', "sh", *argv]
        return subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=120)

    def says(self, *argv: str) -> str:
        """What a command prints, which has to succeed."""
        done = self.run(*argv)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def write(self, path: str, text: str) -> None:
        done = self.run("sh", "-c", f"mkdir -p $(dirname {path}) && cat >{path}", stdin=text)
        assert done.returncode == 0, done.stderr

    def property(self, name: str, unit: str = "mcp-proxy") -> str:
        return self.says("systemctl", "show", "--property", name, "--value", unit)

    def until(self, name: str, *values: str) -> str:
        """Waits until a property of the service is one of these."""
        end = time.monotonic() + PATIENCE_S
        while (value := self.property(name)) not in values:
            assert time.monotonic() < end, f"{name} stayed {value}: {self.journal()}"
        return value

    def journal(self) -> str:
        return self.says("journalctl", "--unit", "mcp-proxy", "--lines", "60", "--output", "cat")


@contextlib.contextmanager
def booted(image: Image, folder: Path) -> Iterator[Machine]:
    """``image``: with systemd, and a folder /srv. ``folder`` does not exist yet."""
    assert shutil.which("systemd-nspawn"), "systemd-nspawn is not installed (make setup)"
    for name in ("root", "upper", "work"):
        (folder / name).mkdir(parents=True)
    overlay = f"lowerdir={image.layer}:{image.base},upperdir={folder}/upper,workdir={folder}/work"
    script = 'mount --make-rprivate / && mount -t overlay overlay -o "$1" "$2" && shift 2 && exec "$@"'
    nspawn = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network"]
    nspawn += ["--console=pipe", "--boot", f"--directory={folder}/root"]
    spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
    with (folder / "console").open("wb") as console:
        process = subprocess.Popen(
            [*spaces, "sh", "-c", script, "sh", overlay, str(folder / "root"), *nspawn],
            stdin=subprocess.DEVNULL, stdout=console, stderr=console,
        )  # fmt: skip
    try:
        leader = _leader(process)
        machine = Machine(leader, Path(f"/proc/{leader}/root"))
        _await_boot(machine, process, folder / "console")
        yield machine
    finally:
        process.kill()  # and with it, by --kill-child, all of the machine
        process.wait(PATIENCE_S)


def _leader(process: subprocess.Popen[bytes]) -> int:
    """Of the processes unshare, systemd-nspawn, systemd the last."""
    end = time.monotonic() + BOOT_S
    while time.monotonic() < end and process.poll() is None:
        pid, depth = process.pid, 0
        with contextlib.suppress(OSError):
            while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                pid, depth = int(children[0]), depth + 1
                if depth == 2 and Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                    return pid
        time.sleep(0.05)  # nothing tells when it is there
    raise AssertionError("the machine did not boot")


def _await_boot(machine: Machine, process: subprocess.Popen[bytes], console: Path) -> None:
    end = time.monotonic() + BOOT_S
    while machine.run("systemctl", "is-system-running").stdout.strip() not in ("running", "degraded"):
        assert process.poll() is None, console.read_text(errors="replace")
        assert time.monotonic() < end, console.read_text(errors="replace")
        time.sleep(0.2)  # nothing tells when it is done
