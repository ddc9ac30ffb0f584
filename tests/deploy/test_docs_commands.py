"""Every command of README and docs does what the page says.

Rules of this file: a page is typed from its first command to its last, in a copy of the repository, on a
machine of its own (``terminal.py``) where what the page takes for granted is there (``docs_stage.py``). A
command that stays (a proxy) is there until the next one that stays, or the end of its block; one that is sent
to the background until the end of the page. Each has to succeed, and to print what stands below it. A block
that begins with the name of a file (``# proxy.yaml``) is what the reader has saved under that name by then.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import pytest

from tests.deploy.docs_stage import ADMIN_PORT, FOLLOWS, LISTENS, NOT_RUN, PAGES, READY, Page
from tests.tools.documents import ROOT, Block, Command, blocks, commands, name_of, note, pages, prints
from tests.tools.terminal import Done, Step, run

TEXTS = {name_of(page): page.read_text() for page in pages()}
ELSEWHERE = ("needs a cluster", "needs an engine")
"""Notes of blocks that ``test_docs_elsewhere.py`` judges."""


class Typed(NamedTuple):
    """A step, and the command of the page that it is; None for what the page takes for granted."""

    step: Step
    command: Command | None


def is_run(command: str) -> bool:
    return not any(re.match(pattern, command) for pattern in NOT_RUN)


def run_here(page: str) -> list[Block]:
    return [block for block in blocks(page, TEXTS[page], "console") if note(block) not in ELSEWHERE]


def opening(command: str) -> str:
    """The first line of a command, without what is said beside it."""
    return command.partition("\n")[0].partition(" #")[0].strip()


def ready(command: str) -> str | None:
    """How a command that stays says that it is there; None for one that ends."""
    return next((sign for pattern, sign in READY.items() if re.match(pattern, command)), None)


def step(command: str) -> Step:
    listens, follows = LISTENS.search(command), FOLLOWS.match(command)
    if command.endswith("&"):
        address = f"127.0.0.1:{listens['port']}" if listens else ""
        return Step(command, ready=ready(command) or "", listens=address)
    if follows:
        return Step(command, stays=True, connects=int(follows["port"] or ADMIN_PORT))
    sign = ready(command)
    return Step(command) if sign is None else Step(command, stays=True, ready=sign, ends_others=True)


def script(page: str, text: str, stage: Page) -> Iterator[Typed]:
    """All that is typed for a page."""
    for block in blocks(page, text):
        if block.language != "console" and (named := re.match(r"# ([\w-]+\.(?:yaml|py))\b", block.text)):
            yield Typed(Step(f"cat > {named[1]} <<< {quote(block.text)}"), None)
        if block.language != "console" or note(block) in ELSEWHERE:
            continue
        typed = [command for command in commands(block) if is_run(command.text)]
        if not typed:
            continue
        yield Typed(Step(":", ends_others=True), None)
        for unseen in stage.before.get(opening(typed[0].text), ()):
            yield Typed(step(unseen)._replace(ends_others=False), None)
        for command in typed:
            yield Typed(step(command.text), command)


def copy_of_repository(folder: Path) -> Path:
    """What a clone has. Nothing that a page does to it can harm."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "__pycache__", ".*_cache", ".hypothesis"
    )
    return Path(shutil.copytree(ROOT, folder / "mcp-proxy", ignore=ignored, symlinks=True))


def environment(stage: Page, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MCP_PROXY_")}
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"))
    fixed = {"PATH": path, "HOME": str(home), "TERM": "dumb", "COLUMNS": "120", "LC_ALL": "C.UTF-8"}
    return {**kept, **fixed, **stage.environ}


def complaint(page: str, command: Command, done: Done) -> str | None:
    where = f"{page}:{command.line}: $ {command.text}\n"
    if done.fault:
        return f"{where}{done.fault}\n{done.output}"
    if done.code:
        return f"{where}exit code {done.code}\n{done.output}"
    if command.expected and not prints(command.expected, done.output):
        return f"{where}prints\n{done.output}\nand not\n{command.expected}"
    return None


@pytest.mark.parametrize("page", [page for page in TEXTS if run_here(page)])
@pytest.mark.timeout(300)
def test_every_command_of_a_page_does_what_the_page_says(page: str, tmp_path: Path) -> None:
    stage = PAGES.get(page, Page())
    typed = list(script(page, TEXTS[page], stage))
    cwd = copy_of_repository(tmp_path)
    (cwd / ".venv").symlink_to(Path(sys.executable).parents[1])

    became = run(
        [each.step for each in typed], cwd=cwd, environ=environment(stage, tmp_path), servers=stage.servers
    )

    complaints = [
        f"{page}: before a block: {each.step.command}: {done.fault}\n{done.output}"
        if each.command is None
        else complaint(page, each.command, done)
        for each, done in zip(typed, became, strict=False)
        if each.command is not None or done.fault or done.code
    ]
    assert "\n".join(filter(None, complaints)) == ""
    assert len(became) == len(typed)


# --- the tables --------------------------------------------------------------------------------------

ALL = [command.text for page in TEXTS for block in run_here(page) for command in commands(block)]


INSTALLS = [page for page in TEXTS if "\n$ pip install " in TEXTS[page]]


@pytest.mark.parametrize("page", INSTALLS)
def test_whoever_is_told_to_install_has_an_environment_first(page: str) -> None:
    """pip refuses to touch the Python of a Debian 12 (PEP 668)."""
    lines = [command.text for block in run_here(page) for command in commands(block)]
    first = next(number for number, line in enumerate(lines) if line.startswith("pip install "))

    assert "python3 -m venv .venv && . .venv/bin/activate" in lines[:first]


@pytest.mark.parametrize("pattern", NOT_RUN)
def test_whatever_is_not_run_stands_on_a_page(pattern: str) -> None:
    assert any(re.match(pattern, command) for command in ALL)


@pytest.mark.parametrize("pattern", NOT_RUN)
def test_whatever_is_not_run_is_run_somewhere_else(pattern: str) -> None:
    named = re.findall(r"[\w.]+/[\w./-]+\w", NOT_RUN[pattern])

    assert named
    assert all((ROOT / path).exists() for path in named)


@pytest.mark.parametrize("pattern", [*READY, FOLLOWS.pattern, rf".*{LISTENS.pattern}"])
def test_whatever_may_stay_stands_on_a_page(pattern: str) -> None:
    assert any(re.match(pattern, command) for command in ALL)


@pytest.mark.parametrize("page", PAGES)
def test_whatever_a_page_takes_for_granted_is_needed(page: str) -> None:
    firsts = [
        opening(typed[0])
        for block in run_here(page)
        if (typed := [command.text for command in commands(block) if is_run(command.text)])
    ]

    assert [first for first in PAGES[page].before if firsts.count(first) != 1] == []
