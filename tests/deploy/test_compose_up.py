"""``docker compose up``, without an engine: all of it starts, and what docs/container.md shows works.

Rules of this file: run by ``make image`` (needs root). The services are those of compose.yaml, in the order,
networks and confinement that it says (``tests/tools/composed.py``); proxies and servers run in images that
are built from the Dockerfile, nginx and Redis are Debian's.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.engineless import PROXY, built, place, scratch
from tests.tools.composed import Composed, load
from tests.tools.container import Image
from tests.tools.debian_root import debian
from tests.tools.documents import blocks, commands
from tests.tools.proxy import ROOT

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(900)]

INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}


def stand_ins() -> dict[str, Image]:
    """nginx and Redis of Debian 13 in the place of the images that are named, with what those have."""
    root = debian("trixie", "ca-certificates", "nginx-light", "redis-server", "curl")
    layer = scratch() / "stand-in"
    (layer / "var/log/nginx").mkdir(parents=True)
    (layer / "var/log/nginx/access.log").symlink_to("/dev/stdout")
    (layer / "var/log/nginx/error.log").symlink_to("/dev/stderr")
    services = load()["services"]
    return {
        services["nginx"]["image"]: Image(
            root, layer, stop_signal="SIGQUIT", stand_in_tmpfs=("/var/lib/nginx",)
        ),
        services["redis"]["image"]: Image(root, layer, cwd="/data"),
    }


@pytest.fixture(scope="module")
def up() -> Iterator[Composed]:
    images = {
        **stand_ins(),
        "mcp-proxy:compose": built(PROXY),
        "mcp-proxy:compose-server": built("demo"),
    }
    folder = place()
    folder.mkdir()
    with Composed(images, folder) as composed:
        composed.up()
        yield composed


@pytest.fixture
def cwd(up: Composed, tmp_path: Path) -> Path:
    """Where somebody works who has the certificate."""
    (tmp_path / "tls.crt").write_text(up.containers["nginx"].execute("cat", "/etc/nginx/tls/tls.crt").stdout)
    return tmp_path


def ask(up: Composed, cwd: Path, message: dict[str, Any], *headers: str) -> tuple[str, Any]:
    """Head and document of the answer to a POST."""
    fields = ["Content-Type: application/json", "Accept: application/json, text/event-stream", *headers]
    words = ["curl", "--silent", "--show-error", "--include", "--cacert", "tls.crt", "--http1.1"]
    words += [word for field in fields for word in ("--header", field)]
    words += ["--data", json.dumps({"jsonrpc": "2.0", **message}), "https://localhost:8443/mcp"]
    done = up.client(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    head, _, body = done.stdout.replace("\r", "").partition("\n\n")
    data = body.split("data: ", 1)[1] if "data: " in body else body
    return head, json.loads(data) if data.strip() else None


def documented() -> list[str]:
    """The calls of docs/container.md that need nothing but the services, as one script for each block."""
    page = "docs/container.md"
    found = blocks(page, (ROOT / page).read_text(), "console")
    scripts = ["\n".join(each.text for each in commands(block)) for block in found]
    return [script for script in scripts if "localhost:8443" in script]


def test_the_calls_of_the_documentation_work(up: Composed, cwd: Path) -> None:
    once, session = documented()
    done = up.client("bash", "-euo", "pipefail", "-c", once, cwd=cwd)
    assert re.search(r'"replica":"server-[12]","visit":null', done.stdout), done.stdout + done.stderr
    done = up.client("bash", "-euo", "pipefail", "-c", session, cwd=cwd)
    visits = re.findall(r'"replica":"(server-[12])","visit":(\d)', done.stdout)
    assert [visit for _, visit in visits] == ["1", "2", "3"], done.stdout + done.stderr
    assert len({server for server, _ in visits}) == 1


def test_sessions_stick_to_their_server_whichever_proxy_is_asked(up: Composed, cwd: Path) -> None:
    visits: dict[str, list[tuple[str, int]]] = {}
    for _ in range(4):
        head, _ = ask(up, cwd, {"id": 1, "method": "initialize", "params": INITIALIZE})
        session = re.search(r"^mcp-session-id: (\S+)$", head, re.M | re.I)
        assert session is not None, head
        field = f"Mcp-Session-Id: {session[1]}"
        ask(up, cwd, {"method": "notifications/initialized"}, field)
        for number in range(2, 6):
            params = {"name": "whoami", "arguments": {}}
            _, answer = ask(up, cwd, {"id": number, "method": "tools/call", "params": params}, field)
            said = answer["result"]["structuredContent"]
            visits.setdefault(session[1], []).append((said["replica"], said["visit"]))
    assert [visit for each in visits.values() for _, visit in each] == [1, 2, 3, 4] * 4
    homes = [{server for server, _ in each} for each in visits.values()]
    assert all(len(each) == 1 for each in homes)
    assert set.union(*homes) == {"server-1", "server-2"}
    for proxy in ("proxy-1", "proxy-2"):
        assert '"method":"tools/call"' in up.containers[proxy].output, "both were asked"


def test_the_client_that_is_seen_is_the_one_outside(up: Composed, cwd: Path) -> None:
    ask(up, cwd, {"id": 1, "method": "initialize", "params": INITIALIZE})
    lines = [line for name in ("proxy-1", "proxy-2") for line in up.containers[name].output.splitlines()]
    peers = {json.loads(line)["peer"] for line in lines if line.startswith("{")}
    assert peers == {"10.77.0.1"}, "the address that nginx saw, not that of nginx"


def test_metrics_and_status_are_not_reachable_from_outside(up: Composed, cwd: Path) -> None:
    for path in ("/metrics", "/status.json", "/readyz", "/"):
        words = ("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", "tls.crt")
        assert up.client(*words, f"https://localhost:8443{path}", cwd=cwd).stdout == "404", path


def test_the_admin_commands_work_inside_of_a_container(up: Composed) -> None:
    done = up.containers["proxy-2"].execute("mcp-proxy", "backends", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "http://server-1:8000/mcp" in done.stdout


def test_nginx_cannot_reach_redis_or_a_server(up: Composed) -> None:
    for name in ("redis", "server-1"):
        done = up.containers["nginx"].execute("curl", "--silent", "--max-time", "2", f"http://{name}:8000/")
        assert done.returncode == 6, f"{name} has a name there"


def test_each_runs_as_nobody_in_particular(up: Composed) -> None:
    for name, container in up.containers.items():
        if name == "certificate":
            continue
        status = Path(f"/proc/{container.pid}/status").read_text()
        assert re.search(r"^CapEff:\s+0{16}$", status, re.M), name
        assert not re.search(r"^Uid:\s+0\s", status, re.M), name


async def test_a_proxy_that_is_stopped_leaves_with_0_and_the_other_serves_its_sessions(
    up: Composed, cwd: Path
) -> None:
    head, _ = ask(up, cwd, {"id": 1, "method": "initialize", "params": INITIALIZE})
    session = re.search(r"^mcp-session-id: (\S+)$", head, re.M | re.I)
    assert session is not None
    field = f"Mcp-Session-Id: {session[1]}"
    ask(up, cwd, {"method": "notifications/initialized"}, field)
    stopping = asyncio.create_task(asyncio.to_thread(up.stop, "proxy-1"))
    answers = 0
    while not stopping.done() or answers < 5:
        params = {"name": "whoami", "arguments": {}}
        _, answer = await asyncio.to_thread(
            ask, up, cwd, {"id": 2, "method": "tools/call", "params": params}, field
        )
        answers += 1
        assert answer["result"]["structuredContent"]["visit"] == answers
    assert await stopping == 0, up.containers["proxy-1"].output


def test_everything_else_stops_when_asked(up: Composed) -> None:
    codes = {name: up.stop(name) for name in ("nginx", "proxy-2", "server-1", "server-2", "redis")}
    assert set(codes.values()) == {0}, codes
