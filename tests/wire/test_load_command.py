"""``mcp-proxy load`` as people run it: what it does to a server, what it prints, writes, and how it ends.

Rules of this file: the command is a process, the servers are real. Nothing is asserted of how fast anything
was; loads are short and small. What has to go wrong goes wrong for certain, not because a machine is slow.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.tools import PATIENCE_S
from tests.tools.proxy import ROOT
from tests.unit.loadrig import running_stub
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


# --- a load that is kept ----------------------------------------------------------------------


def test_the_bundled_server_is_loaded_by_users_of_every_kind_and_reported(tmp_path: Path) -> None:
    done = load(*SHORT, "--report", str(tmp_path))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok   failures: 0 of" in done.stdout
    summary = report(tmp_path)
    assert summary["headline"] == "All thresholds are kept"
    (endpoint,) = summary["endpoints"]
    assert {row["kind"] for row in endpoint["rows"]} == {"session", "modern", "stream", "reconnect", "abuse"}
    assert endpoint["failures"] == 0
    for kind in ("session", "stream", "reconnect"):
        counts = {row["name"]: row["answers"] for row in endpoint["rows"] if row["kind"] == kind}
        assert counts["initialize"] == counts["DELETE"], "every session that was begun is ended"
    sse = next(
        row for row in endpoint["rows"] if (row["kind"], row["name"]) == ("session", "tools/call (SSE)")
    )
    assert sse["first_event"]["p50"] < sse["time"]["p50"], "the first event comes before the last"
    assert rows(tmp_path, "operations.csv")
    assert len(rows(tmp_path, "history.csv")) >= 2
    assert rows(tmp_path, "failures.csv") == []
    page = (tmp_path / "report.html").read_text()
    assert "All thresholds are kept" in page
    assert "<script" not in page
    assert "<html" in (tmp_path / "locust.html").read_text()


def test_a_server_of_the_official_sdk_gives_what_it_has_and_the_rest_is_left_out(tmp_path: Path) -> None:
    with Server("official", tmp_path, program=OFFICIAL) as server:
        done = load(server.url, *SHORT, "--report", "off")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "speaks MCP 2025-11-25 and 2026-07-28, with sessions" in done.stderr
    assert "tools that are called: whoami" in done.stderr
    assert "no reconnect users: events carry no ids, so nothing can be resumed" in done.stderr
    assert not (ROOT / "mcp-load-report").exists()


def test_endpoints_are_compared_in_turns_and_overhead_is_reported(tmp_path: Path) -> None:
    done = load(
        *("--compare", "direct,nginx,proxy", "--rounds", "1", "--time", "2s", "--pace", "30"),
        *("--report", str(tmp_path)),
    )

    assert done.returncode == 0, done.stdout + done.stderr
    summary = report(tmp_path)
    names = [endpoint["name"] for endpoint in summary["endpoints"]]
    assert names == ["direct", "nginx", "proxy"]
    assert all(endpoint["answers"] > 0 for endpoint in summary["endpoints"])
    above = {each["endpoint"] for each in summary["overheads"] if each["operation"] == "all JSON answers"}
    assert above == {"nginx", "proxy"}
    assert all(each["p50"] > 0 and each["base_p50"] > 0 for each in summary["overheads"])
    assert "Above direct" in done.stdout
    assert "through mcp-proxy" in done.stderr


def test_several_processes_make_one_load(tmp_path: Path) -> None:
    with running_stub() as server:
        done = load(
            *(server.target.url, *SHORT, "--processes", "2", "--users", "6", "--mix", "session=1"),
            *("--report", str(tmp_path)),
        )
        agents = {request.headers["user-agent"] for request in server.requests}

    assert done.returncode == 0, done.stdout + done.stderr
    summary = report(tmp_path)
    assert max(moment["users"] for moment in summary["endpoints"][0]["history"]) == 6
    assert summary["endpoints"][0]["failures"] == 0
    assert len(agents) == 1
    assert server.stub.sessions == {}, "every session was ended"


def test_headers_and_the_tool_are_those_that_were_asked_for() -> None:
    with running_stub() as server:
        done = load(
            *(server.target.url, *SHORT, "--report", "off", "--mix", "session=1,modern=1"),
            *("--header", "Authorization: Bearer abc", "--tool", "echo", "--arguments", '{"city":"Oslo"}'),
        )
        requests = list(server.requests)

    assert done.returncode == 0, done.stdout + done.stderr
    assert {request.headers.get("authorization") for request in requests} == {"Bearer abc"}
    calls = [msgspec.json.decode(request.body) for request in requests if b"tools/call" in request.body]
    assert calls
    assert all(call["params"]["arguments"] == {"city": "Oslo"} for call in calls)


# --- one that is not --------------------------------------------------------------------------


def test_1_when_a_threshold_is_not_kept(tmp_path: Path) -> None:
    """Answers by events take 40 ms in the bundled server."""
    done = load(*SHORT, "--p99", "10ms", "--min-rate", "1", "--report", str(tmp_path))

    assert done.returncode == 1
    assert "FAIL p99:" in done.stdout
    assert "ok   rate:" in done.stdout
    assert report(tmp_path)["headline"] == "Not kept: p99"


def test_1_when_calls_fail_and_the_report_says_how(tmp_path: Path) -> None:
    with running_stub() as server:
        calls = iter(range(10**9))

        def every_third_fails(request: Any, exchange: Any) -> bool:
            if b'"tools/call"' not in request.body or next(calls) % 3:
                return False
            exchange.answer(
                502, b'{"error":"=broken"}', "application/json", "mcp-proxy-reason: upstream_lost"
            )
            return True

        next(calls)
        server.before = every_third_fails
        done = load(server.target.url, *SHORT, "--mix", "session=1", "--report", str(tmp_path))

    assert done.returncode == 1
    assert re.search(r"\d+ x session tools/call: HTTP 502 upstream_lost", done.stdout)
    (failure,) = rows(tmp_path, "failures.csv")
    assert failure["reason"] == "HTTP 502 upstream_lost"
    assert "=broken" in failure["examples"]
    assert report(tmp_path)["endpoints"][0]["refusals"]["upstream_lost"] == int(failure["count"])
    assert "HTTP 502 upstream_lost" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_1_when_it_is_stopped_and_what_there_is_is_reported(tmp_path: Path, number: signal.Signals) -> None:
    with _running("--time", "1h", "--pace", "20", "--report", str(tmp_path)) as process:
        _until_loaded(process)
        process.send_signal(number)
        out, _ = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 1, out
    summary = report(tmp_path)
    assert summary["headline"] == "Stopped before its end"
    assert summary["endpoints"][0]["answers"] > 0
    assert summary["endpoints"][0]["failures"] == 0


def test_1_when_the_generator_dies() -> None:
    with _running("--time", "1h", "--pace", "20", "--report", "off") as process:
        _until_loaded(process)
        (generator,) = [pid for pid in _children(process.pid) if b"mcp_proxy.load\0" in _cmdline(pid)]
        os.kill(generator, signal.SIGKILL)
        _, errors = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 1
    assert "mcp-proxy load: the load generator ended" in errors


def test_nothing_outlives_the_command_however_it_ends(tmp_path: Path) -> None:
    with _running("--compare", "direct,nginx+proxy", "--time", "1h", "--report", "off") as process:
        _until_loaded(process)
        started = _descendants(process.pid)
        assert len(started) >= 4, "the server, the proxy, nginx, the generator"
        process.kill()
        process.communicate(timeout=PATIENCE_S)
        _until_gone(started)


# --- processes --------------------------------------------------------------------------------


@contextlib.contextmanager
def _running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _until_loaded(process: subprocess.Popen[str]) -> None:
    """The first line of progress, which comes with the first second of load."""
    assert process.stderr is not None
    for line in process.stderr:
        if " answers" in line:
            return
    raise AssertionError("it ended before there was any load")


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in file.read_text().split()]
    return found


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        found += _children(each)
    return found[1:]


def _cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _until_gone(pids: list[int]) -> None:
    until = time.monotonic() + PATIENCE_S
    while left := [pid for pid in pids if _is_alive(pid)]:
        assert time.monotonic() < until, [_cmdline(pid) for pid in left]
        threading.Event().wait(0.05)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
