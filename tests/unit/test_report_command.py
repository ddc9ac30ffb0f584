"""``mcp-proxy report`` as it is typed: on logs that the access log wrote, for people and for programs."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from mcp_proxy.cli import report as command
from mcp_proxy.cli.main import commands
from mcp_proxy.telemetry import RequestRecord
from mcp_proxy.telemetry.access_log import AccessLog
from mcp_proxy.telemetry.report import DIMENSIONS
from mcp_proxy.telemetry.report.sketch import RELATIVE_ERROR
from mcp_proxy.telemetry.report.totals import GROUP_LIMIT, SORTS
from tests.tools import PATIENCE_S
from tests.unit.reported import line
from tests.unit.test_access_log import call

COMMAND = (sys.executable, "-m", "mcp_proxy", "report")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(commands, ["report", *map(str, args)], prog_name="mcp-proxy")


def process(*args: str | Path, **how: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run((*COMMAND, *args), capture_output=True, timeout=PATIENCE_S, check=False, **how)


def logged(path: Path, *records: RequestRecord) -> Path:
    log = AccessLog(path)
    for record in records:
        log.record(record)
    log.close()
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Nine calls of two tools, a refusal and a stream, as the proxy writes them."""
    stream = call(http_method="GET", method="", name="", is_stream=True, duration_s=60.0)
    refusal = call(
        upstream_s=0.0, method="", name="", status=503, duration_s=0.0, attempts=0, reason="overloaded"
    )
    forecasts = [call() for _ in range(6)]
    alerts = [call(name="get_alerts", route="/internal/weather/mcp") for _ in range(3)]
    return logged(tmp_path / "access.log", *forecasts, refusal, *alerts, stream)


# --- for people ---------------------------------------------------------------------------------------


def test_a_table_has_a_line_for_each_group_aligned_and_a_sum(log: Path) -> None:
    result = run(log)

    assert (result.exit_code, result.stderr) == (0, "")
    titles, *rows, empty, caption = result.stdout.splitlines()
    assert titles.split("  ")[0] == "ROUTE"
    assert titles.split()[1:] == [
        *("METHOD", "TOOL", "CALLS", "ERRORS", "STREAMS", "IN", "OUT"),
        *("P50", "P99", "OWN", "P50", "OWN", "P99"),
    ]
    assert [row.split()[:6] for row in rows] == [
        ["/weather/mcp", "tools/call", "get_forecast", "6", "0", "0"],
        ["/internal/weather/mcp", "tools/call", "get_alerts", "3", "0", "0"],
        ["/weather/mcp", "POST", "-", "1", "1", "0"],
        ["/weather/mcp", "GET", "-", "0", "0", "1"],
        ["(total)", "10", "1", "1", rows[4].split()[4], rows[4].split()[5]],
    ]
    assert rows[0].split()[-4:-2] == ["12.4ms", "12.4ms"]
    assert rows[2].split()[-4:] == ["-"] * 4
    assert len({len(row) for row in (titles, *rows)}) == 1
    assert (empty, caption) == (
        "",
        "From 2025-11-21 01:53:20 to 2025-11-21 01:53:20 UTC; quantiles are within 1%.",
    )


# --- for programs -------------------------------------------------------------------------------------


def test_json_is_one_object_with_every_figure(log: Path) -> None:
    document = json.loads(run(log, "--format", "json", "--by", "tool", "--top", "1").stdout)

    assert document["by"] == ["tool"]
    assert [each["tool"] for each in document["groups"]] == ["get_forecast"]
    figures = {"calls", "streams", "errors", "bytes_in", "bytes_out"} | {
        f"{kind}p{part}_ms" for kind in ("", "overhead_") for part in (50, 99)
    }
    assert document["groups"][0].keys() == figures | {"tool"}
    assert document["other"].keys() == document["total"].keys() == figures
    assert document["other"]["calls"] + document["groups"][0]["calls"] == document["total"]["calls"] == 10
    assert (document["first"][:10], document["last"][:10]) == ("2025-11-21", "2025-11-21")
    assert (document["skipped"], document["folded"], document["unreadable"]) == (0, 0, 0)
    assert document["relative_error"] == RELATIVE_ERROR


def test_csv_has_a_line_for_each_group_as_rfc_4180_has_it(log: Path) -> None:
    text = process(log, "--format", "csv", "--top", "2").stdout.decode()

    assert text.count("\r\n") == text.count("\n") == 4
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["row"] for row in rows] == ["group", "group", "other"]
    assert rows[0]["tool"] == "get_forecast"
    assert rows[2]["route"] == ""
    assert sum(int(row["calls"]) for row in rows) == 10


def test_json_is_ascii_whatever_a_client_wrote(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    file.write_bytes(line(name="\x1b[31m\x7f\u202eü"))

    text = run(file, "--format", "json").stdout

    assert text.isascii()
    assert all(character.isprintable() for character in text.replace("\n", ""))
    assert json.loads(text)["groups"][0]["tool"] == "\x1b[31m\x7f\u202eü"


def test_sorting_and_dimensions_are_those_of_the_report() -> None:
    assert tuple(SORTS) == command._SORTS
    assert DIMENSIONS == command._DIMENSIONS


# --- where lines come from ------------------------------------------------------------------------------


def test_several_files_packed_or_not_and_standard_input_are_one_report(log: Path, tmp_path: Path) -> None:
    packed = tmp_path / "access.log.2.gz"
    packed.write_bytes(gzip.compress(log.read_bytes()))
    as_json = ("--format", "json")

    once = json.loads(run(log, *as_json).stdout)
    thrice = json.loads(process(log, packed, "-", *as_json, input=log.read_bytes()).stdout)

    assert thrice["total"]["calls"] == 3 * once["total"]["calls"]
    assert process(*as_json, input=packed.read_bytes()).stdout.decode() == run(packed, *as_json).stdout


def test_lines_may_be_of_a_certain_time(log: Path) -> None:
    def calls(*args: str) -> int:
        total = json.loads(run(log, *args, "--format", "json").stdout)["total"]
        return int(total["calls"])

    assert calls("--since", "2025-11-21T01:53:20Z") == 10
    assert calls("--since", "2025-11-21T01:53:21Z") == 0
    assert calls("--until", "2025-11-21T02:53:21+01:00") == 10
    assert calls("--until", "2025-11-21") == 0
    assert calls("--since", "1m") == 0


def test_lines_that_are_none_are_named_in_a_sentence(log: Path) -> None:
    log.write_bytes(b"started\n" + log.read_bytes() + b'{"ts":"20')

    result = run(log)

    assert (result.exit_code, result.stderr) == (0, "2 lines were left out: no access lines.\n")
    assert "(total)" in result.stdout


def test_too_many_groups_are_named_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    file.write_bytes(b"".join(line(name=f"tool-{number}") for number in range(GROUP_LIMIT + 7)))

    result = run(file, "--top", "1")

    assert result.exit_code == 0
    assert result.stderr == "There are too many groups: 7 exchanges are in none, but in other. Use --by.\n"
    assert "(other)" in result.stdout


@pytest.mark.parametrize(
    ("args", "word"), [((), "no access lines"), (("--since", "2026-01-01"), "of that time")]
)
def test_a_log_without_lines_is_an_empty_table(log: Path, args: tuple[str, ...], word: str) -> None:
    if not args:
        log.write_bytes(b"")

    result = run(log, *args)

    assert (result.exit_code, result.stdout) == (0, "")
    assert word in result.stderr


def test_a_file_that_breaks_off_is_1_and_the_rest_is_reported(log: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(log.read_bytes())[:-4])

    result = run(broken, log)

    assert result.exit_code == 1
    assert result.stderr.startswith(f"{broken}: the compressed data ends before its end")
    assert "(total)" in result.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere.log"], "cannot read nowhere.log: No such file"),
        (["/"], "cannot read /: Is a directory"),
        (["--by", "route,pool"], "'pool' is none of route, method, tool, principal"),
        (["--by", "route,route"], "twice"),
        (["--by", ""], "is none of"),
        (["--since", "yesterday"], "'yesterday' is no time"),
        (["--until", "9h9m"], "is no time"),
        (["--top", "0"], "0 is not in the range"),
        (["--sort", "names"], "'names' is not one of"),
        (["--format", "xml"], "'xml' is not one of"),
    ],
)
def test_bad_usage_is_2_with_its_cure(args: list[str], words: str) -> None:
    result = run(*args)

    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


# --- terminals, readers that leave, Ctrl-C --------------------------------------------------------------


def on_a_terminal(*args: str | Path) -> tuple[int, str]:
    """Exit code and everything that a person saw."""
    ours, theirs = pty.openpty()
    with subprocess.Popen((*COMMAND, *args), stdin=theirs, stdout=theirs, stderr=theirs) as running:
        os.close(theirs)
        seen = b""
        try:
            while piece := os.read(ours, 65536):
                seen += piece
        except OSError as error:
            if error.errno != errno.EIO:  # with which Linux says that the other side is closed
                raise
        os.close(ours)
        return running.wait(PATIENCE_S), seen.decode()


def test_a_person_sees_how_far_it_is(log: Path) -> None:
    code, seen = on_a_terminal(log)

    assert code == 0
    assert "Reading" in seen
    assert "100%" in seen
    assert seen.rindex("100%") < seen.index("ROUTE")


def test_nobody_else_does(log: Path) -> None:
    assert process(log).stderr == b""


def test_a_person_who_names_no_file_is_told_to() -> None:
    code, seen = on_a_terminal()

    assert code == 2
    assert "give a FILE" in seen


def test_a_reader_that_has_seen_enough_is_no_failure(log: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen((*COMMAND, log), stdout=writer, stderr=subprocess.PIPE) as running:
        os.close(writer)
        _, said = running.communicate(timeout=PATIENCE_S)

    assert (running.returncode, said) == (0, b"")


def test_an_interrupt_ends_it_without_a_word(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # The FIFO opens here when it has been opened there.
    with subprocess.Popen((*COMMAND, fifo), **pipes) as running, fifo.open("wb"):
        running.send_signal(signal.SIGINT)
        out, said = running.communicate(timeout=PATIENCE_S)

    assert (running.returncode, out, said.strip()) == (1, b"", b"")


# --- size ---------------------------------------------------------------------------------------------------


def peak_kib(path: Path, rounds: int, block: bytes) -> tuple[int, int]:
    """Peak memory of the command on ``rounds`` blocks of lines, and the calls that it found."""
    with path.open("wb") as out:
        for _ in range(rounds):
            out.write(block)
    with subprocess.Popen((*COMMAND, path, "--format", "json"), stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        document = msgspec.json.decode(running.stdout.read())
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    path.unlink()
    return usage.ru_maxrss, document["total"]["calls"]


def test_ten_times_the_lines_take_no_more_memory(tmp_path: Path) -> None:
    block = b"".join(
        line(name=f"tool-{number % 50}", duration_ms=1.01**number, overhead_ms=number / 100)
        for number in range(1000)
    )

    small, few = peak_kib(tmp_path / "small.log", 30, block)
    large, many = peak_kib(tmp_path / "large.log", 300, block)

    assert (few, many) == (30_000, 300_000)
    assert large < small + 4096
