"""``mcp-proxy load`` as it is typed: what is refused before anything is started, and in which words.

Rules of this file: the command runs in this process as far as the decision that it may start; what it does
then is a matter of processes (``tests/wire/test_load_command.py``).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mcp_proxy.cli.load import _Progress
from mcp_proxy.cli.load_order import read_order
from mcp_proxy.cli.main import commands
from mcp_proxy.load import Tool
from mcp_proxy.load.campaign import Order, Said
from mcp_proxy.load.conduct import Tick, check_installed
from mcp_proxy.load.thresholds import Thresholds
from tests.tools import PATIENCE_S
from tests.unit.loadrig import running_stub

URL = "http://localhost:3000/mcp"


def run(*args: str) -> Result:
    return CliRunner().invoke(commands, ["load", *args], prog_name="mcp-proxy")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["localhost:3000"], "'localhost:3000' is no URL of an MCP server"),
        ([URL, "--shape", "square"], "'square' is not one of"),
        ([URL, "--time", "soon"], "--time: 'soon' is not a duration"),
        ([URL, "--time", "0s"], "--time: '0s' would expire at once"),
        ([URL, "--users", "0"], "--users"),
        ([URL, "--mix", "nobody=1"], "--mix: 'nobody=1' is no part of a mix"),
        ([URL, "--pace", "fast"], "--pace: 'fast' is no number of turns"),
        ([URL, "--pace", "0"], "--pace: '0' is no number of turns"),
        ([URL, "--pace", "nan"], "--pace: 'nan' is no number of turns"),
        ([URL, "--header", "Authorization"], "--header: 'Authorization' is no header"),
        ([URL, "--header", "A b: c"], "--header: 'A b' is no header"),
        ([URL, "--header", "A: b\r\nc: d"], "--header: the value of A has characters"),
        ([URL, "--header", "Host: b"], "--header: Host is the load test's own"),
        ([URL, "--header", "content-length: 1"], "--header: content-length is the load test's own"),
        ([URL, "--header", "Transfer-Encoding: chunked"], "--header: Transfer-Encoding is the load test's"),
        ([URL, "--header", "Connection: close"], "--header: Connection is the load test's own"),
        ([URL, "--header", "A: env:NOT_SET_ANYWHERE"], "--header: A: the environment variable"),
        ([URL, "--header", "A: file:/nowhere/x"], "--header: A: cannot read the secret file"),
        ([URL, "--read-only", "--tool", "x"], "--read-only and --tool do not go together"),
        ([URL, "--arguments", "{}"], "--arguments are those of a --tool"),
        ([URL, "--tool", "x", "--arguments", "[]"], "--arguments: write a JSON object"),
        ([URL, "--tool", "x", "--arguments", "{"], "--arguments: write a JSON object"),
        ([URL, "--max-failures", "1"], "--max-failures: '1' is no share"),
        ([URL, "--p99", "fast"], "--p99: 'fast' is not a duration"),
        ([URL, "--shape", "drain"], "--shape drain needs --during COMMAND"),
        ([URL, "--compare", "direct"], "--compare needs two names or more"),
        ([URL, "--compare", "direct,haproxy"], "'haproxy' is none of direct, nginx, proxy, nginx+proxy"),
        ([URL, "--compare", "direct,direct"], "'direct' is there twice"),
        ([URL, "--compare", "direct,other=nowhere"], "--compare: 'nowhere' is no URL"),
        ([URL, "--compare", "direct,proxy", "--during", "true"], "do not go together"),
        ([URL, "--compare", "direct,proxy", "--time", "5s"], "--time is too short for 3 rounds"),
        ([URL, "--report", "/dev/null/x"], "--report: cannot write to /dev/null/x"),
        ([URL, "--sahpe", "smoke"], "--shape"),
    ],
)
def test_2_and_a_sentence_for_what_cannot_be_meant(args: list[str], words: str) -> None:
    result = run(*args)

    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


WITHOUT_LOCUST = """
import sys
sys.modules["locust"] = None
from mcp_proxy.cli.main import commands
commands(sys.argv[1:], prog_name="mcp-proxy")
"""


@pytest.mark.parametrize("args", [(URL, "--report", "off"), ("--self-test",)])
def test_3_and_what_to_install_without_locust(args: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LOCUST, "load", *args],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert done.returncode == 3
    assert done.stderr == "mcp-proxy load: locust is not installed: pip install 'mcp-reverse-proxy[load]'\n"


def test_looking_for_locust_does_not_import_it() -> None:
    """Importing it patches sockets and threads of the whole process."""
    check_installed()
    assert "locust" not in sys.modules
    assert "gevent" not in sys.modules


def asked(url: str | None = URL, **over: Any) -> Order:
    """As click would give it, with everything at its default."""
    names = ("duration", "users", "mix", "during", "tool", "arguments", "max_failed_posts", "p50", "p99")
    given: dict[str, Any] = dict.fromkeys((*names, "first_event_p99", "min_rate", "compare"))
    given |= {"shape": "smoke", "pace": "10", "processes": 1, "seed": 1, "headers": (), "insecure": False}
    given |= {"read_only": False}
    given |= {"max_failures": "0%", "rounds": 3, "timeout": "30s", **over}
    return read_order(url, given)


def test_a_shape_brings_its_time_and_its_users() -> None:
    order = asked(shape="ramp")
    assert (order.time_s, order.users, order.pace) == (120.0, 104, 10.0)
    order = asked(shape="ramp", duration="1m", users=7, pace="none")
    assert (order.time_s, order.users, order.pace) == (60.0, 7, None)


def test_a_drain_allows_no_failed_post_unless_told_otherwise() -> None:
    assert asked(shape="drain", during="true").thresholds == Thresholds(max_failed_posts=0)
    assert asked(shape="drain", during="true", max_failed_posts=3).thresholds.max_failed_posts == 3
    assert asked().thresholds == Thresholds()


def test_a_comparison_is_one_of_time_and_leaves_abuse_out_unless_it_is_asked_for() -> None:
    order = asked(compare="direct,proxy,mine=http://a/mcp", duration="60s")
    assert [(name, where and where.url) for name, where in order.compare] == [
        ("direct", None),
        ("proxy", None),
        ("mine", "http://a/mcp"),
    ]
    assert "abuse" not in order.mix
    assert asked(compare="direct,proxy", duration="60s", mix="abuse=1").mix == {"abuse": 1.0}
    assert "abuse" in asked().mix


def test_headers_and_tool_are_read() -> None:
    order = asked(headers=("X-A: b: c", "Authorization:Bearer x"), tool="t", arguments='{"a":1}')
    assert order.headers == [("X-A", "b: c"), ("Authorization", "Bearer x")]
    assert order.tool == Tool("t", {"a": 1})


def test_a_header_may_be_a_secret_that_nobody_sees_in_the_list_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCP_LOAD_TOKEN", "Bearer abc")
    file = tmp_path / "token"
    file.write_text("xyz\n")
    order = asked(headers=("Authorization: env:MCP_LOAD_TOKEN", f"X-Key: file:{file}"))
    assert order.headers == [("Authorization", "Bearer abc"), ("X-Key", "xyz")]


def test_without_a_url_there_is_no_target() -> None:
    assert asked(None).target is None


# --- how it ends ------------------------------------------------------------------------------


def test_progress_says_what_is_wrong_and_nothing_that_a_terminal_obeys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = _Progress()
    progress.tell(Said("it \x1b[31mbegins"))
    progress.tell(Said(tick=Tick(1.0, 3, 1000, 2, 1), time_s=5.0))
    assert capsys.readouterr().err.splitlines() == [
        "it ?[31mbegins",
        "1 of 5 s, 3 users, 1,000 answers, 2 failures, told to wait 1 times",
    ]


def test_progress_is_a_line_now_and_then_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    progress = _Progress()
    for second in range(25):
        progress.tell(Said(tick=Tick(float(second), 1, second), title="round 1", time_s=25.0))
    progress.end()
    assert [line.split(" of")[0] for line in capsys.readouterr().err.splitlines()] == [
        "round 1: 0",
        "round 1: 10",
        "round 1: 20",
    ]


def test_progress_is_one_line_that_changes_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    progress = _Progress()
    progress._is_person = True
    for second in range(3):
        progress.tell(Said(tick=Tick(float(second), 1, second), time_s=25.0))
    progress.tell(Said("something else"))
    said = capsys.readouterr().err
    assert said.count("\r") == 3
    assert said.endswith("\nsomething else\n")


def test_1_when_the_report_cannot_be_written_in_the_end(tmp_path: Path) -> None:
    """What was found is on the terminal all the same."""
    (tmp_path / "report.html").mkdir()
    with running_stub() as server:
        done = CliRunner().invoke(
            commands,
            [
                *("load", server.target.url, "--time", "1s", "--mix", "session=1", "--users", "1"),
                *("--report", str(tmp_path)),
            ],
        )
    assert done.exit_code == 1
    assert "ok   failures: 0 of" in done.output
    assert f"mcp-proxy load: cannot write to {tmp_path}: Is a directory" in done.output


def test_the_report_goes_where_it_was_asked_for(tmp_path: Path) -> None:
    with running_stub() as server:
        done = CliRunner().invoke(
            commands,
            [
                *("load", server.target.url, "--time", "1s", "--mix", "session=1", "--users", "1"),
                *("--report", str(tmp_path / "a" / "b"), "--p99", "10s"),
            ],
        )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a" / "b" / "report.html").exists()
    assert f"Report: {tmp_path}/a/b/report.html" in done.output
