"""What runs the documentation can tell a page that is right from one that is wrong.

Rules of this file: made-up pages, each wrong in one way.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.deploy.docs_stage import Page
from tests.deploy.test_docs_commands import complaint, script
from tests.tools.documents import Malformed, blocks, commands, prints, slugged
from tests.tools.terminal import Done, Step, run

FENCE = "```"


def page(*lines: str) -> str:
    return "\n".join(["# A page", "", f"{FENCE}console", *lines, FENCE, ""])


ENVIRON = {
    **os.environ,
    "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
}
"""What is installed beside this Python is found, however the tests were started."""


def wrongs(text: str, cwd: Path) -> list[str | None]:
    """What is wrong with each command of a page with this text."""
    typed = list(script("x.md", text, Page()))
    became = run([each.step for each in typed], cwd=cwd, environ=ENVIRON)
    return [
        complaint("x.md", each.command, done)
        for each, done in zip(typed, became, strict=False)
        if each.command is not None
    ]


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        (["$ echo one", "one"], ""),
        (["$ printf 'a 1 z\\nb\\nc\\n'", "a ... z", "...", "c"], ""),
        (["$ A=1", "$ echo $A", "1"], ""),
        (["$ cat > f <<'END'", "$ no command", "END", "$ wc -l < f", "1"], ""),
        (["$ echo one", "two"], "prints\none"),
        (["$ echo one; echo two", "one"], "prints\none"),
        (["$ echo one", "one", "..."], ""),
        (["$ false"], "exit code 1"),
        (["$ false | cat"], "exit code 1"),
        (["$ no-such-program"], "exit code 127"),
        (["$ if then"], "exit code 2"),
        (["$ mcp-proxy serve --config no-such-file"], "no such file"),
        (["$ mcp-proxy tap"], "cannot reach"),
    ],
)
def test_a_page_is_right_or_it_is_said_what_is_wrong(lines: list[str], wrong: str, tmp_path: Path) -> None:
    last = wrongs(page(*lines), tmp_path)[-1]

    assert (wrong in last) if last else not wrong


def test_a_command_that_stays_is_there_for_the_next_ones_of_its_block(tmp_path: Path) -> None:
    lines = ["$ mcp-proxy http://10.0.0.11:8000/mcp", "$ curl -s http://127.0.0.1:9901/livez", "$ echo done"]
    gone = ["$ curl -s http://127.0.0.1:9901/livez"]

    said = wrongs(page(*lines) + page(*gone), tmp_path)

    assert said[:3] == [None, None, None]
    assert "exit code 7" in (said[3] or "")


def test_a_program_in_the_background_is_there_until_the_end(tmp_path: Path) -> None:
    begin = ["$ mcp-proxy http://10.0.0.11:8000/mcp > access.log &"]
    use = ["$ curl -s http://127.0.0.1:9901/livez"]

    assert wrongs(page(*begin) + page(*use), tmp_path) == [None, None]


def test_nothing_outside_can_be_reached_and_every_address_of_the_examples_can(tmp_path: Path) -> None:
    lines = [
        Step("python3 -c 'import socket; socket.create_server((\"10.0.0.77\", 80))'"),
        Step("tail -n +2 /proc/net/route | wc -l"),
    ]

    assert run(lines, cwd=tmp_path, environ=ENVIRON) == [Done("", 0, ""), Done("0\n", 0, "")]


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    (lives,) = run([Step("sleep 1000 & echo $PPID")], cwd=tmp_path, environ=ENVIRON)

    # The first process of its own namespace has the shell for a child, and with it went the rest.
    assert lives.output.strip() == "1"


def test_output_without_a_command_is_refused() -> None:
    (block,) = blocks("x.md", page("one", "$ echo"), "console")

    with pytest.raises(Malformed, match=r"x.md:4: output without a command: 'one'"):
        commands(block)


def test_a_command_without_an_end_is_refused() -> None:
    (block,) = blocks("x.md", page("$ echo 'a", "b"), "console")

    with pytest.raises(Malformed, match=r"x.md:4: a command without an end"):
        commands(block)


def test_a_command_has_its_line() -> None:
    (block,) = blocks("x.md", page("# needs a cluster", "$ a \\", "  b", "out", "$ c"), "console")

    assert [(each.line, each.text, each.expected) for each in commands(block)] == [
        (5, "a \\\n  b", "out"),
        (8, "c", ""),
    ]


def test_text_is_compared_as_it_is() -> None:
    assert prints("a.c", "a.c\n")
    assert not prints("a.c", "abc\n")
    assert prints("a", "a  \r\n")


@pytest.mark.parametrize(
    ("title", "anchor"),
    [
        ("`a.b`: c, d", "ab-c-d"),
        ("pools.*.backends[]", "poolsbackends"),
        ("A [link](x.md) here", "a-link-here"),
    ],
)
def test_an_anchor_is_what_github_makes_of_a_heading(title: str, anchor: str) -> None:
    assert slugged(title) == anchor
