"""What a whole process says in its application log: its level, its hooks, its standard error.

Rules of this file: every case is a process of its own, seen from outside.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

from mcp_proxy.telemetry.app_log import LEVELS

BEGIN = "from mcp_proxy.telemetry import app_log\napp_log.begin('info', 'text')\n"
MANUAL = Path(__file__).parents[2] / "docs" / "telemetry.md"


def run(
    program: str,
    form: str,
    level: str = "info",
    *,
    stderr: int | IO[bytes] = subprocess.PIPE,
    encoding: str = "",
) -> subprocess.CompletedProcess[bytes]:
    """A process that has begun like this."""
    begin = f"import logging\nfrom mcp_proxy.telemetry import app_log\napp_log.begin({level!r}, {form!r})\n"
    return subprocess.run(
        [sys.executable, "-c", begin + program],
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        timeout=30,
        check=False,
    )


def said_by(program: str, form: str, level: str = "info", encoding: str = "") -> list[str]:
    """The lines of its standard error."""
    ended = run(program, form, level, encoding=encoding)
    assert ended.stdout == b""
    return ended.stderr.decode("ascii").splitlines()


def lines_of(program: str, level: str = "info") -> list[dict[str, Any]]:
    return [json.loads(line) for line in said_by(program, "json", level)]


ENDS = {
    "a task nobody waits for": (
        "import asyncio\n"
        "async def fail(): raise ValueError('odd')\n"
        "async def main():\n"
        "    asyncio.ensure_future(fail())\n"
        "    await asyncio.sleep(0)\n"
        "asyncio.run(main())",
        "asyncio",
    ),
    "a callback": (
        "import uvloop\n"
        "def fail(): raise ValueError('odd')\n"
        "async def main():\n"
        "    import asyncio\n"
        "    asyncio.get_running_loop().call_soon(fail)\n"
        "    await asyncio.sleep(0)\n"
        "uvloop.run(main())",
        "asyncio",
    ),
    "the process": ("raise ValueError('odd')", "mcp_proxy"),
    "a thread": (
        "import threading\n"
        "def fail(): raise ValueError('odd')\n"
        "thread = threading.Thread(target=fail)\n"
        "thread.start()\n"
        "thread.join()",
        "mcp_proxy",
    ),
    "a finalizer": ("class A:\n    def __del__(self): raise ValueError('odd')\nA()", "mcp_proxy"),
}


@pytest.mark.parametrize("what", ENDS)
@pytest.mark.parametrize("form", ["json", "text"])
def test_whatever_fails_is_said_in_this_form(what: str, form: str) -> None:
    program, name = ENDS[what]
    if form == "json":
        (line,) = lines_of(program)
        assert (line["logger"], line["error"]) == (name, "ValueError")
        assert line["traceback"].endswith("ValueError: odd")
    else:
        first, *rest = said_by(program, form)
        assert f" {name}: " in first
        assert rest
        assert all(line.startswith("  ") for line in rest)


def test_warnings_and_libraries_use_the_form() -> None:
    lines = lines_of(
        "import warnings\n"
        "warnings.warn('old')\n"
        "logging.getLogger('uvicorn.error').warning('Invalid HTTP request received.')\n"
    )
    assert [line["logger"] for line in lines] == ["py.warnings", "uvicorn.error"]
    assert "UserWarning: old" in lines[0]["msg"]


def test_libraries_are_not_heard_below_warning_whatever_the_level() -> None:
    program = (
        "for name in ('httpx2', 'httpcore2.http11', 'redis', 'uvicorn.error', 'asyncio', 'mcp_proxy'):\n"
        "    for level in (10, 20, 30, 50): logging.getLogger(name).log(level, 'x')\n"
    )
    for level, own, theirs in (("debug", 4, 2), ("warning", 2, 2), ("critical", 1, 1)):
        said = [line["logger"] for line in lines_of(program, level)]
        assert said.count("mcp_proxy") == own
        assert said.count("httpcore2.http11") == said.count("redis") == theirs


def test_the_level_changes_and_the_change_is_said_at_every_level() -> None:
    lines = lines_of(
        "log = logging.getLogger('mcp_proxy')\n"
        "for level in app_log.LEVELS:\n"
        "    app_log.set_level(level)\n"
        "    assert app_log.level() == level\n"
        "    app_log.announce('now ' + level)\n"
        "    log.debug('heard')\n"
    )
    assert [line["msg"] for line in lines] == [*(f"now {level}" for level in LEVELS), "heard"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("form", ["json", "text"])
def test_standard_error_may_have_any_encoding(form: str, encoding: str) -> None:
    (line,) = said_by("app_log.logger.error('na\\u4e16 \\ud83d\\ude00')", form, encoding=encoding)
    if form == "json":
        assert json.loads(line)["msg"].startswith("na\u4e16 ")
    else:
        assert "\\u4e16" in line


def test_a_full_disk_ends_nothing() -> None:
    with Path("/dev/full").open("wb") as full:
        process = run("app_log.logger.error('x' * 100_000)\nprint('goes on')", "json", stderr=full)
    assert process.stdout == b"goes on\n"


def test_the_configuration_of_the_manual_gives_another_server_the_form() -> None:
    (block,) = re.findall(r"^```json\n(.*?)^```", MANUAL.read_text(), re.M | re.S)
    program = (
        "import logging.config, json\n"
        f"logging.config.dictConfig(json.loads({block!r}))\n"
        "logging.getLogger('mcp_proxy').info('heard')\n"
        "logging.getLogger('httpx2').info('not heard')\n"
    )
    assert [line["msg"] for line in lines_of(program)] == ["heard"]


@pytest.mark.parametrize("size", [1, 5000], ids=["short", "longer than a page of the pipe"])
def test_a_reader_of_standard_error_that_stops_reading_stops_nobody(size: int) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        program = f"for _ in range(2000): app_log.logger.info('x' * {size})\nprint('done')"
        with os.fdopen(writer, "wb") as stalled:
            assert run(program, "text", stderr=stalled).stdout == b"done\n"
        said = pipe.read().splitlines()
    assert 0 < len(said) < 2000
    assert {line.rpartition(b" ")[2] for line in said[:-1]} == {b"x" * size}


def test_a_line_that_was_torn_is_ended_before_the_next_one() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe, os.fdopen(writer, "wb") as stalled:
        program = (
            "import os\n"
            "for _ in range(20): app_log.logger.error('no', exc_info=ValueError('x' * 9000))\n"
            f"os.read({reader}, 1 << 20)\n"
            "app_log.logger.info('next')\n"
        )
        command = [sys.executable, "-c", BEGIN + program]
        subprocess.run(command, stderr=stalled, pass_fds=[reader], timeout=30, check=True)
        stalled.close()
        (end, line) = pipe.read().splitlines()
    assert end == b""
    assert line.endswith(b"mcp_proxy: next")
