"""``mcp-proxy load``: when it cannot start, and what may run beside it.

Rules of this file: those of ``test_load_command.py``.
"""

from __future__ import annotations

import csv
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tools import PATIENCE_S
from tests.tools.ports import free_ports
from tests.tools.proxy import ROOT
from tests.unit.loadrig import http, raw_server, running_stub
from tests.wire.server_processes import OFFICIAL, Server

SHORT = ("--time", "2s", "--pace", "20")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mcp_proxy", "load", *arguments]


def load(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=3 * PATIENCE_S, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def report(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text())


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


# --- one that cannot be -----------------------------------------------------------------------


def test_3_when_nobody_listens() -> None:
    (port,) = free_ports(1)
    done = load(f"http://127.0.0.1:{port}/mcp", "--report", "off")

    assert (done.returncode, done.stdout) == (3, "")
    assert f"http://127.0.0.1:{port}/mcp cannot be reached: cannot connect: connection refused" in done.stderr


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            http(404, b"nothing here", kind="text/html"),
            "does not speak MCP: initialize and server/discover got HTTP 404",
        ),
        (http(401, b""), "asks for credentials (HTTP 401); use --header 'Authorization: Bearer ...'"),
    ],
)
def test_3_when_it_is_no_mcp_server(answer: bytes, sentence: str) -> None:
    with raw_server(answer) as server:
        done = load(server.target.url, "--report", "off")

    assert (done.returncode, done.stdout) == (3, "")
    assert sentence in done.stderr


# --- beside it --------------------------------------------------------------------------------


def test_a_command_runs_while_the_load_is_steady_which_lasts_until_it_has_ended(tmp_path: Path) -> None:
    """The command waits for the load, so the load must wait for the command: its time alone is too short."""
    with running_stub() as server, socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(PATIENCE_S)
        port = door.getsockname()[1]
        told: list[int] = []

        def let_it_end() -> None:
            connection, _ = door.accept()
            with connection:
                before = len(server.requests)
                until = time.monotonic() + PATIENCE_S
                while len(server.requests) < before + 200 and time.monotonic() < until:
                    threading.Event().wait(0.01)
                told.append(len(server.requests) - before)

        waiting = threading.Thread(target=let_it_end)
        waiting.start()
        wait = (
            f"{sys.executable} -c \"import socket; socket.create_connection(('127.0.0.1', {port})).recv(1)\""
        )
        done = load(
            *(server.target.url, "--time", "1s", "--pace", "20", "--during", f"{wait} && echo done"),
            *("--report", str(tmp_path)),
        )
        waiting.join(PATIENCE_S)

    assert done.returncode == 0, done.stdout + done.stderr
    assert told[0] >= 200
    during = report(tmp_path)["during"]
    assert (during["exit_code"], during["output"]) == (0, "done")


def test_1_when_the_command_fails() -> None:
    done = load(*SHORT, "--during", "echo it broke; exit 7", "--report", "off")

    assert done.returncode == 1
    assert "The command said: it broke" in done.stdout
    assert "FAIL the command: ended with 7" in done.stdout


def test_a_restart_that_kills_is_seen_as_failed_posts(tmp_path: Path) -> None:
    """What the shape ``drain`` is for: it can fail."""
    with Server("official", tmp_path, program=OFFICIAL) as server:
        _until_connected(server.port)
        assert server._popen is not None
        done = load(
            *(server.url, "--shape", "drain", "--time", "1s", "--users", "4", "--mix", "session=1"),
            *("--during", f"kill -9 {server._popen.pid}", "--report", str(tmp_path)),
        )

    assert done.returncode == 1
    assert "FAIL failed POSTs:" in done.stdout
    assert report(tmp_path)["endpoints"][0]["failed_posts"] > 0
    assert {failure["reason"] for failure in rows(tmp_path, "failures.csv")} & {
        "cannot connect: connection refused",
        "connection closed before the answer",
        "connection lost: connection reset by peer",
    }


def test_the_self_test_can_be_run_alone() -> None:
    done = load("--self-test")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "The generator sees every event when it comes.\n"


def test_locust_takes_the_users_as_they_are(tmp_path: Path) -> None:
    with running_stub() as server:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "locust", "-f", "mcp_proxy/load/locustfile.py", "--headless"),
                *(
                    "--users",
                    "5",
                    "--run-time",
                    "2s",
                    "--host",
                    server.target.url,
                    "--json-file",
                    str(tmp_path / "x"),
                ),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE_S,
            check=False,
        )

    assert done.returncode == 0, done.stderr
    assert "tools that are called: echo, count" in done.stderr
    entries = json.loads((tmp_path / "x.json").read_text())
    assert {"session", "modern"} <= {entry["method"] for entry in entries}
    assert all(entry["num_failures"] == 0 for entry in entries)


def _until_connected(port: int) -> None:
    """It accepts what waits for it as soon as it is there."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
        connection.settimeout(PATIENCE_S)
        connection.sendall(b"GET /facts HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert connection.recv(1)
