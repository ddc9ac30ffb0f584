"""A terminal on a machine of its own: a shell that has the loopback interface and 10.0.0.0/24 to itself.

Rules of this file: ``run`` is called by a test; it starts this file as a program in new network and process
namespaces, so that well-known ports are free, nothing is reached from elsewhere, and every process that was
started ends with it, whatever it does. One bash for all steps, so variables and jobs are those of a reader
who types them. A step fails alone; the rest is still run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Final, NamedTuple

from tests.tools import PATIENCE_S

NETWORK: Final = "10.0.0.0/24"
"""All of these addresses are this machine, as in the examples of the documentation."""

_ROOT: Final = Path(__file__).parents[2]
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8916, 0x891C, 0x8913, 0x8914
_IFF_UP: Final = 0x1
_NAMESPACES: Final = ("unshare", "--net", "--pid", "--fork", "--kill-child")
_AS_ROOT_OF_MY_OWN: Final = (*_NAMESPACES, "--user", "--map-root-user")
_POLL_S: Final = 0.02


class NoNamespaces(Exception):
    """The machine does not allow what the tests need."""


class Step(NamedTuple):
    """Something that is typed."""

    command: str
    stays: bool = False
    """It runs until Ctrl-C, so the next step is typed elsewhere."""
    ready: str = ""
    """What it prints, standing there or sent to the background, once others may use it; a pattern."""
    listens: str = ""
    """The address, ``host:port``, that accepts connections then."""
    connects: int = 0
    """The port to which it has a connection then."""
    ends_others: bool = False
    """Before it, Ctrl-C is pressed wherever something stays."""


class Done(NamedTuple):
    """What became of a step. ``code`` None: it has not ended."""

    output: str
    code: int | None
    fault: str


class Server(NamedTuple):
    """Something that is there before the first step."""

    command: Sequence[str]
    listens: Sequence[str]
    """Addresses, ``host:port``, that accept connections once it is there."""


def run(
    steps: Sequence[Step], *, cwd: Path, environ: Mapping[str, str], servers: Sequence[Server] = ()
) -> list[Done]:
    """What becomes of the steps, as far as they are taken: nothing can follow one that hangs.

    Raises NoNamespaces, and AssertionError if the machine cannot be set up.
    """
    job = {"steps": steps, "servers": servers, "cwd": str(cwd), "environ": dict(environ)}
    path = os.pathsep.join(filter(None, (str(_ROOT), environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [*_unshare(), sys.executable, "-m", "tests.tools.terminal"],
        input=json.dumps(job), capture_output=True, text=True, cwd=_ROOT, env={**environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [Done(*each) for each in json.loads(done.stdout)]


def _unshare() -> tuple[str, ...]:
    """Root needs no user namespace, and some containers forbid them; everybody else needs one."""
    said = []
    for attempt in (_NAMESPACES, _AS_ROOT_OF_MY_OWN):
        tried = subprocess.run([*attempt, "true"], capture_output=True, text=True, timeout=PATIENCE_S)
        if tried.returncode == 0:
            return attempt
        said.append(tried.stderr.strip())
    raise NoNamespaces(
        "The commands of the documentation are run in network and process namespaces of their own, which "
        f"this machine does not allow ({'; '.join(said)}): run the tests as root with CAP_SYS_ADMIN, or "
        "allow unprivileged user namespaces."
    )


# --- inside ------------------------------------------------------------------------------------------


def _raise_network() -> None:
    """What ``ip link set lo up`` and ``ip address add 10.0.0.1/24 dev lo`` do, where there is no ``ip``.
    Behind a loopback address with a netmask all addresses of that network are local."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as some:
        flags = struct.unpack("16sH14x", fcntl.ioctl(some, _SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0)))[
            1
        ]
        fcntl.ioctl(some, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
        for request, address in ((_SIOCSIFADDR, "10.0.0.1"), (_SIOCSIFNETMASK, "255.255.255.0")):
            packed = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(address))
            fcntl.ioctl(some, request, packed)


class Hangs(Exception):
    """A step does not end, and so nothing can be typed any more."""


class _Shell:
    """One bash. Its own output says what became of commands; theirs goes to a file each."""

    def __init__(self, cwd: str, environ: Mapping[str, str], folder: Path) -> None:
        self._folder = folder
        self._staying: dict[int, int] = {}
        """Numbers of steps by their processes."""
        self.done: list[Done] = []
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            cwd=cwd, env=environ,
        )  # fmt: skip
        self._type("set -m; set -o pipefail")  # each job a process group, as in a terminal

    def _type(self, line: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{line}\n")
        self._bash.stdin.flush()

    def _heard(self) -> int:
        assert self._bash.stdout is not None
        return int(self._bash.stdout.readline())

    def take(self, step: Step) -> None:
        if step.ends_others:
            self.interrupt()
        output = self._folder / str(len(self.done) + 1)
        output.touch()
        typed = f"eval {quote(step.command)} >{output} 2>&1 </dev/null"
        code, pid = None, 0
        if step.stays:
            self._type(f"{typed} & echo $!")
            pid = self._heard()
            self._staying[pid] = len(self.done)
        else:
            self._type(f"{typed}; echo $?")
            try:
                with _patience():
                    code = self._heard()
            except TimeoutError as error:
                self.done.append(Done(output.read_text(errors="replace"), None, str(error)))
                raise Hangs from None
        fault = ""
        if step.ready:
            fault = _awaited(lambda: _says(output, step.ready), pid, f"it has not printed {step.ready!r}")
        if step.connects:
            fault = _awaited(lambda: _is_connected(step.connects), pid, "it has not connected")
        if step.listens:
            fault = _awaited(lambda: _accepts(step.listens), pid, f"nobody listens on {step.listens}")
        self.done.append(Done(output.read_text(errors="replace"), code, fault))

    def interrupt(self) -> None:
        """All that stays; nobody waits for a drain here. What has ended by itself did not stay."""
        for pid, number in self._staying.items():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            self._type(f"wait {pid}; echo $?")
            code = self._heard()
            if code != 128 + signal.SIGKILL:
                output = (self._folder / str(number + 1)).read_text(errors="replace")
                self.done[number] = Done(output, code, "it ended by itself")
        self._staying.clear()


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Raises TimeoutError in the block."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"a command has not ended within {2 * PATIENCE_S:.0f} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(int(2 * PATIENCE_S))
    try:
        yield
    finally:
        signal.alarm(0)


def _awaited(condition: Callable[[], bool], pid: int, complaint: str) -> str:
    """Empty once the condition is true; else why it never will be. ``pid`` 0: of nobody in particular."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        if pid and not _lives(pid):
            return "it ended"
        if time.monotonic() > until:
            return complaint
        time.sleep(_POLL_S)
    return ""


def _says(output: Path, ready: str) -> bool:
    return re.search(ready, output.read_text(errors="replace"), re.M) is not None


def _is_connected(port: int) -> bool:
    """Somebody has a connection to it (proc_pid_net(5): state 01)."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[2].endswith(f":{port:04X}") and line.split()[3] == "01" for line in lines)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE_S).close()
    except OSError:
        return False
    return True


def main() -> None:
    """The program: a job on standard input, what became of it on standard output."""
    job = json.load(sys.stdin)
    _raise_network()
    for command, _ in job["servers"]:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    for address in (address for _, listens in job["servers"] for address in listens):
        fault = _awaited(partial(_accepts, address), 0, f"nobody listens on {address}")
        if fault:
            raise TimeoutError(fault)
    with tempfile.TemporaryDirectory(prefix="terminal-") as folder:
        shell = _Shell(job["cwd"], job["environ"], Path(folder))
        with contextlib.suppress(Hangs):
            for step in job["steps"]:
                shell.take(Step(*step))
            shell.interrupt()
        print(json.dumps(shell.done), flush=True)
    os._exit(0)  # the first process of its namespace: all others end with it


if __name__ == "__main__":
    main()
