"""The containers of a rendered set as processes of this machine: their commands, files and variables, as a
kubelet would give them.

Rules of this file: what is rendered is run as it stands, but for addresses and for where files are; probes
are sent as kubelets send them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.rendered import deployment, environment, objects, proxy_yaml
from tests.tools import PATIENCE_S
from tests.tools.client import Answer, Client
from tests.tools.kube_objects import containers, only, pod, ports
from tests.tools.kustomize import Object
from tests.tools.ports import free_ports
from tests.tools.proxy import ProxyProcess, launch, merge
from tests.tools.redis_server import eventually


@contextlib.asynccontextmanager
async def proxy(
    name: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    server: int,
    redis: int | None = None,
    is_hasty: bool = True,
    discover: Object | None = None,
) -> AsyncIterator[ProxyProcess]:
    """The proxy of a set, in front of the example server at the port ``server``. ``folder`` exists.
    ``is_hasty``: it does not wait for anybody to see that it ends. ``discover``: how it finds servers, if not
    as the set says."""
    (container,) = containers(deployment(name))
    for variable, value in environment(container).items():
        monkeypatch.setenv(variable, value.replace("@mcp-proxy-redis:6379", f"@127.0.0.1:{redis}"))
    config = yaml.safe_load(proxy_yaml(name))
    assert config["pools"]["mcp-server"]["discover"]["dns"] == "mcp-server"
    pool = config["pools"]["mcp-server"]
    pool["discover"] = discover or pool["discover"] | {"dns": "localhost", "port": server}
    over: dict[str, Any] = {}
    if is_hasty:
        over["limits"] = {"drain_delay": "0s"}
    async with launch(merge(config, over), folder) as running:
        token = environment(container)["MCP_PROXY_ADMIN_TOKEN"]
        running.admin_fields = (f"Authorization: Bearer {token}",)
        yield running


async def probed(running: ProxyProcess, container: Object, kind: str) -> Answer:
    """As a kubelet asks: by the address of the pod, and without a token. Anything from 200 to 399 is well."""
    probe = container[f"{kind}Probe"]["httpGet"]
    assert probe["port"] == "admin"
    head = f"GET {probe['path']} HTTP/1.1\r\nHost: 10.1.2.3:9901\r\nUser-Agent: kube-probe/1.37\r\n"
    client = await Client.connect(running.admin_port)
    try:
        return await client.ask(f"{head}Accept: */*\r\nConnection: close\r\n\r\n".encode(), "GET")
    finally:
        client.close()


@contextlib.contextmanager
def example_server(folder: Path, name: str = "overlays/dev") -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The example of a server, and its port."""
    found = objects(name)
    workload = only(found, "StatefulSet", "mcp-server")
    (container,) = containers(workload)
    files = _mounted(found, workload, folder)
    (port,) = free_ports(1)
    swap = {"0.0.0.0": "127.0.0.1", str(ports(workload)["mcp"]): str(port)} | files
    assert container["command"] == ["python3"]
    command = [sys.executable, *(swap.get(each, each) for each in container["args"])]
    with _process(command) as process:
        eventually(lambda: _accepts(port), "the example server listens")
        yield port, process


class Redis:
    """The Redis of a set; ``with Redis(...)`` runs it. It may be killed and started again."""

    def __init__(self, folder: Path, name: str) -> None:
        found = objects(name)
        workload = only(found, "StatefulSet", "mcp-proxy-redis")
        (self.container,) = containers(workload)
        (self.port,) = free_ports(1)
        data = folder / "data"
        data.mkdir(parents=True)
        self.environ = {**os.environ, **environment(self.container)}
        here = _mounted(found, workload, folder)
        arguments = [_put(each, here, environment(self.container)) for each in self.container["args"]]
        (file,) = here.values()
        Path(file).write_text(Path(file).read_text().replace("\ndir /data\n", f"\ndir {data}\n"))
        address = ["--bind", "127.0.0.1", "--port", str(self.port)]
        self._command = [*self.container["command"], *arguments, *address]

    def __enter__(self) -> Redis:
        self._stack = contextlib.ExitStack()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Returns when its own startup probe is content."""
        self.process = self._stack.enter_context(_process(self._command))
        eventually(lambda: self.probed("startup") == 0, "Redis is up")

    def kill(self) -> None:
        """As a node dies: no goodbye."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def probed(self, kind: str, *, password: str | None = None) -> int:
        """The exit code of the probe's command, which a kubelet runs in the container."""
        command = self.container[f"{kind}Probe"]["exec"]["command"]
        assert command[0] == "redis-cli"
        environ = self.environ if password is None else self.environ | {"REDISCLI_AUTH": password}
        return subprocess.run(
            [command[0], "-p", str(self.port), *command[1:]],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        ).returncode


def _mounted(found: list[Object], workload: Object, folder: Path) -> dict[str, str]:
    """The files of its ConfigMaps, written to ``folder``: where each is, by where it would be."""
    (container,) = containers(workload)
    maps = {
        each["name"]: each["configMap"]["name"]
        for each in pod(workload)["spec"]["volumes"]
        if "configMap" in each
    }
    places = {}
    for mount in container["volumeMounts"]:
        if mount["name"] in maps:
            for key, text in only(found, "ConfigMap", maps[mount["name"]])["data"].items():
                folder.mkdir(parents=True, exist_ok=True)
                (folder / key).write_text(text)
                places[f"{mount['mountPath']}/{key}"] = str(folder / key)
    return places


def _put(argument: str, places: dict[str, str], environ: dict[str, str]) -> str:
    for name, value in environ.items():
        argument = argument.replace(f"$({name})", value)
    return places.get(argument, argument)


def _accepts(port: int) -> bool:
    socket.create_connection(("127.0.0.1", port), PATIENCE_S).close()
    return True


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield popen
    finally:
        popen.kill()
        popen.wait(PATIENCE_S)
