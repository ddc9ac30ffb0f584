"""``make load`` in short: the shipped nginx, two proxies, Redis, two servers, and users of every kind.

Rules of this file: it is the very program of ``make load``, with less time. What it finds it says by its exit
code and its report.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tools import PATIENCE_S
from tests.tools.proxy import ROOT


def run(folder: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tests.load", *arguments, "--report", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=6 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "report.json").read_text())


def test_users_of_every_kind_get_the_right_answers_through_the_shipped_nginx(tmp_path: Path) -> None:
    summary = run(tmp_path, "--time", "3s")

    (endpoint,) = summary["endpoints"]
    assert {row["kind"] for row in endpoint["rows"]} == {"session", "modern", "stream", "reconnect", "abuse"}
    assert endpoint["failures"] == 0
    assert any("through mcp-proxy" in note for note in summary["notes"])
    assert {"session_not_found", "parse_error", "forbidden_origin"} <= set(endpoint["refusals"])


@pytest.mark.timeout(180)
def test_no_post_fails_while_both_proxies_are_restarted_one_after_the_other(tmp_path: Path) -> None:
    summary = run(tmp_path, "--rolls", "1", "--shape", "drain", "--time", "3s", "--users", "13")

    assert summary["during"]["output"] == "times that every replica was restarted: 1"
    assert {verdict["name"]: verdict["is_kept"] for verdict in summary["verdicts"]} == {
        "failures": True,
        "failed POSTs": True,
        "the command": True,
    }
    ends = sum(row["ends"] for row in summary["endpoints"][0]["rows"])
    assert ends > 0, "streams were ended by the restart, properly"
