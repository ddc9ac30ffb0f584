"""Runs a program whose system resolver asks a name server at 127.0.0.1:53 that exists for it alone.

Rules of this file: namespaces of its own (user, network, mounts), so nothing of the machine changes and no
privileges are needed; what the program does there is up to it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.tools import PATIENCE_S

RESOLV_CONF = "nameserver 127.0.0.1\nsearch mcp.test\noptions timeout:1 attempts:1\n"
NSSWITCH_CONF = "hosts: dns\n"

ROOT = Path(__file__).parents[2]

_UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--mount")
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


def is_possible() -> bool:
    """Some containers forbid namespaces."""
    return subprocess.run([*_UNSHARE, "true"], capture_output=True, timeout=PATIENCE_S).returncode == 0


def run_isolated(program: Path, *arguments: str) -> str:
    """What the Python program printed; it must end well."""
    with tempfile.TemporaryDirectory() as directory:
        for name, text in (("resolv.conf", RESOLV_CONF), ("nsswitch.conf", NSSWITCH_CONF)):
            Path(directory, name).write_text(text)
        mounts = " && ".join(
            f"mount --bind {directory}/{name} /etc/{name}" for name in ("resolv.conf", "nsswitch.conf")
        )
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        shell = f'{mounts} && exec "$@"'
        done = subprocess.run(
            [*_UNSHARE, "sh", "-c", shell, "sh", sys.executable, str(program), *arguments],
            capture_output=True, text=True, timeout=PATIENCE_S, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
    if done.returncode:
        raise AssertionError(f"exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def raise_loopback() -> None:
    """In a new network namespace it is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as some:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(some, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(some, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
