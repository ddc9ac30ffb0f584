"""The unit, installed as docs/container.md says on a Debian 12 with a systemd of its own, and run by it.

Rules of this file: run by ``make image`` (needs root). Every restriction of the unit is in force: systemd
itself has set it up. The machine has no network but its own loopback.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from shlex import quote
from typing import Any

import pytest

from tests.deploy.engineless import installed, place
from tests.tools.booted import Machine, booted
from tests.tools.documents import blocks
from tests.tools.proxy import ROOT

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(900)]

WORST = 12
"""Tenths of what ``systemd-analyze security`` may say; a unit without any of it has 9.6."""

CONNECT = 'import socket; socket.create_connection(("127.0.0.1", 9901))'

CLIENT = """
import http.client, json, sys
port, method, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
fields = json.loads(sys.argv[4])
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
connection.request(method, path, sys.argv[5] if len(sys.argv) > 5 else None, fields)
answer = connection.getresponse()
print(json.dumps([answer.status, dict(answer.getheaders()), answer.read().decode()]))
"""


def ask(machine: Machine, port: int, method: str, path: str, **more: Any) -> tuple[int, dict[str, str], str]:
    """From inside. ``body``, ``fields``."""
    fields = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    fields |= more.get("fields", {})
    words = ["python3", "-c", CLIENT, str(port), method, path, json.dumps(fields)]
    status, head, body = json.loads(
        machine.says(*words, *([json.dumps(more["body"])] if "body" in more else []))
    )
    return status, {name.lower(): value for name, value in head.items()}, body


def manual() -> list[str]:
    """The commands of the manual, from the first file of the unit on: what comes before needs a network."""
    page = "docs/container.md"
    install = next(
        each for each in blocks(page, (ROOT / page).read_text(), "sh") if "daemon-reload" in each.text
    )
    return [line for line in install.text.splitlines() if "venv" not in line and "pip install" not in line]


def then() -> list[str]:
    page = "docs/container.md"
    block = next(
        each for each in blocks(page, (ROOT / page).read_text(), "sh") if "systemctl status" in each.text
    )
    return block.text.splitlines()


def again(machine: Machine, command: str) -> None:
    """Until the shell command succeeds, for 20 s at most: what it waits for tells nobody."""
    machine.says("sh", "-c", f"for i in $(seq 200); do {command} && exit; sleep 0.1; done; exit 1")


def ready(machine: Machine) -> None:
    """The service is active, and serves; it binds before it says so, so asking waits."""
    machine.until("ActiveState", "active", "failed")
    again(machine, f"python3 -Sc {quote(CONNECT)} 2>/dev/null")
    assert ask(machine, 9901, "GET", "/livez")[0] == 200, machine.journal()


@pytest.fixture(scope="module")
def fresh() -> Iterator[Machine]:
    """Booted, with the files of the repository in /srv, and an MCP server on port 8000."""
    with booted(installed(), place()) as machine:
        for path in sorted((ROOT / "systemd").iterdir()):
            machine.write(f"/srv/systemd/{path.name}", path.read_text())
        server = "k8s/components/example-backend/server.py"
        machine.write("/srv/server.py", (ROOT / server).read_text())
        machine.says("systemd-run", "--unit=server", "--quiet", "python3", "/srv/server.py")
        yield machine


@pytest.fixture(scope="module")
def machine(fresh: Machine) -> Machine:
    for command in manual():
        fresh.says("bash", "-euo", "pipefail", "-c", command)
    ready(fresh)
    return fresh


@pytest.fixture
def running(machine: Machine) -> Iterator[Machine]:
    """The service as the manual leaves it, before and after the test."""
    yield machine
    machine.run("rm", "-rf", "/etc/systemd/system/mcp-proxy.service.d")
    machine.says("cp", "/srv/systemd/proxy.yaml", "/etc/mcp-proxy/proxy.yaml")
    machine.says("systemctl", "daemon-reload")
    machine.run("systemctl", "reset-failed", "mcp-proxy")
    machine.says("systemctl", "restart", "mcp-proxy")
    ready(machine)


def main_process(machine: Machine) -> str:
    pid = machine.property("MainPID")
    return machine.says("cat", f"/proc/{pid}/status")


def change(machine: Machine, old: str, new: str) -> None:
    text = (ROOT / "systemd/proxy.yaml").read_text()
    assert old in text
    machine.write("/etc/mcp-proxy/proxy.yaml", text.replace(old, new))


def test_systemd_finds_nothing_to_complain_about(machine: Machine) -> None:
    done = machine.run("systemd-analyze", "verify", "mcp-proxy.service")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_its_exposure_stays_low_and_without_a_restriction_it_would_not(machine: Machine) -> None:
    threshold = ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={WORST}"]
    assert machine.run(*threshold, "/srv/systemd/mcp-proxy.service").returncode == 0
    loose = (ROOT / "systemd/mcp-proxy.service").read_text().replace("ProtectSystem=strict", "")
    loose = loose.replace("DynamicUser=yes", "").replace("PrivateUsers=yes", "")
    machine.write("/srv/loose/mcp-proxy.service", loose)
    assert machine.run(*threshold, "/srv/loose/mcp-proxy.service").returncode != 0


def test_sessions_work_and_are_sealed_with_the_secret_that_only_root_can_read(machine: Machine) -> None:
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
    status, head, said = ask(machine, 8080, "POST", "/mcp", body=body)
    assert status == 200, said
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "whoami", "arguments": {}}}
    fields = {"Mcp-Session-Id": head["mcp-session-id"]}
    assert ask(machine, 8080, "POST", "/mcp", body=call, fields=fields)[0] == 200
    machine.says("systemctl", "restart", "mcp-proxy")
    ready(machine)
    assert ask(machine, 8080, "POST", "/mcp", body=call, fields=fields)[0] == 200, "the key is the same"
    assert machine.says("stat", "-c", "%a %U", "/etc/mcp-proxy/credentials/session-key") == "600 root"


def test_it_runs_with_the_rights_of_nobody(machine: Machine) -> None:
    status = dict(re.findall(r"^(\w+):\s+(.*)$", main_process(machine), re.MULTILINE))
    uid = int(status["Uid"].split()[0])
    assert 61184 <= uid <= 65519, "the range of dynamic users"
    assert {status[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "CapInh")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


@pytest.mark.parametrize(
    "path",
    ["/etc/mcp-proxy/new", "/opt/mcp-proxy/new", "/usr/new", "/var/lib/new", "/root/.new", "/home/.new"],
)
def test_it_can_write_nowhere(machine: Machine, path: str) -> None:
    pid = machine.property("MainPID")
    # Beside it, in its view of the file system, as root even: the mounts themselves are read-only or hidden.
    done = machine.run("nsenter", f"--target={pid}", "--mount", "touch", path)
    assert done.returncode != 0
    assert re.search("Read-only file system|Permission denied|No such file", done.stderr), done.stderr


def test_it_sees_no_process_of_others(machine: Machine) -> None:
    uid = dict(re.findall(r"^(\w+):\s+(\d+)", main_process(machine), re.MULTILINE))["Uid"]
    listing = ["nsenter", f"--setuid={uid}", f"--setgid={uid}", "ls", "/proc"]
    assert "1" in machine.says(*listing).split(), "everybody else sees process 1"
    inside = ["nsenter", f"--target={machine.property('MainPID')}", "--mount", *listing[1:]]
    assert "1" not in machine.says(*inside).split()


def test_memory_that_can_be_written_cannot_be_executed_in_it(running: Machine) -> None:
    program = "import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)"
    drop_in = f'[Service]\nExecStart=\nExecStart=/opt/mcp-proxy/bin/python -c "{program}"\nRestart=no\n'
    running.write("/etc/systemd/system/mcp-proxy.service.d/test.conf", drop_in)
    running.says("systemctl", "daemon-reload")
    running.says("systemctl", "stop", "mcp-proxy")
    running.run("systemctl", "start", "mcp-proxy")
    running.until("ActiveState", "failed")
    assert "PermissionError: [Errno 1] Operation not permitted" in running.journal()


def test_the_other_commands_of_the_manual_work_and_a_stop_is_no_failure(running: Machine) -> None:
    for command in then():
        running.says("bash", "-euo", "pipefail", "-c", command)
    assert (running.property("ActiveState"), running.property("Result")) == ("inactive", "success")


def test_a_reload_takes_over_what_is_right(running: Machine) -> None:
    pid = running.property("MainPID")
    change(running, "drain: 30s", "drain: 17s")
    running.says("systemctl", "reload", "mcp-proxy")
    again(running, "journalctl -u mcp-proxy | grep -q 'reloaded (limits.drain)'")
    assert json.loads(ask(running, 9901, "GET", "/config")[2])["limits"]["drain"] == 17.0
    assert running.property("MainPID") == pid


def test_a_reload_of_a_mistake_changes_nothing_and_the_journal_says_which(running: Machine) -> None:
    change(running, "drain: 30s", "drian: 17s")
    running.says("systemctl", "reload", "mcp-proxy")
    again(running, "journalctl -u mcp-proxy | grep -q drian")
    assert json.loads(ask(running, 9901, "GET", "/config")[2])["limits"]["drain"] == 30.0


def test_a_process_that_dies_is_started_again(running: Machine) -> None:
    before = running.property("MainPID")
    running.write("/etc/systemd/system/mcp-proxy.service.d/test.conf", "[Service]\nRestartSec=100ms\n")
    running.says("systemctl", "daemon-reload")
    running.says("kill", "-KILL", before)
    running.until("NRestarts", "1")
    ready(running)
    assert running.property("MainPID") not in (before, "0")


def test_a_wrong_configuration_is_not_tried_again(running: Machine) -> None:
    change(running, "listen: 127.0.0.1:8080", "lisen: 127.0.0.1:8080")
    running.run("systemctl", "restart", "mcp-proxy")
    running.until("ActiveState", "failed")
    assert (running.property("ExecMainStatus"), running.property("NRestarts")) == ("2", "0")
    assert "lisen" in running.journal()


def test_a_port_that_is_taken_is_tried_again_until_it_is_free(running: Machine) -> None:
    running.write("/etc/systemd/system/mcp-proxy.service.d/test.conf", "[Service]\nRestartSec=100ms\n")
    running.says("systemctl", "daemon-reload")
    running.says("systemctl", "stop", "mcp-proxy")
    program = 'import socket, time; s = socket.create_server(("127.0.0.1", 8080)); time.sleep(600)'
    running.says("systemd-run", "--unit=squatter", "--quiet", "python3", "-c", program)
    again(running, "grep -q ':1F90 .* 0A ' /proc/net/tcp")
    running.run("systemctl", "start", "mcp-proxy")
    running.until("NRestarts", "1", "2", "3")
    running.says("systemctl", "stop", "squatter")
    ready(running)


def test_a_port_below_1024_works_with_what_the_manual_says(running: Machine) -> None:
    page = "docs/container.md"
    (block,) = blocks(page, (ROOT / page).read_text(), "ini")
    running.write("/etc/systemd/system/mcp-proxy.service.d/test.conf", block.text + "\n")
    running.says("systemctl", "daemon-reload")
    change(running, "listen: 127.0.0.1:8080", "listen: 127.0.0.1:80")
    running.says("systemctl", "restart", "mcp-proxy")
    ready(running)
    assert ask(running, 80, "GET", "/nothing")[0] == 404


def test_without_a_folder_for_secrets_it_does_not_start_as_the_manual_says(running: Machine) -> None:
    running.says("mv", "/etc/mcp-proxy/credentials", "/etc/mcp-proxy/elsewhere")
    try:
        running.run("systemctl", "restart", "mcp-proxy")
        assert running.property("ActiveState") in ("activating", "failed")
    finally:
        running.says("mv", "/etc/mcp-proxy/elsewhere", "/etc/mcp-proxy/credentials")
