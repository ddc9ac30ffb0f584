"""Markdown pages as tests see them: fenced blocks, the commands in them, links and anchors.

Rules of this file: it reads what this project writes, not all of Markdown, and refuses the rest. A console
block is a terminal as a reader sees it: ``$ `` begins a command, a line that ends with a backslash, within
quotes or with a here-document goes on, and what follows until the next ``$ `` is what the command prints.
There ``...`` stands for any text within a line, and alone on a line for any number of lines.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
REPOSITORY: Final = "https://github.com/mcp-proxy/mcp-proxy"

_FENCE: Final = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S
)
_HERE: Final = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
_HEADING: Final = re.compile(r"^(#{1,6}) +(.+?) *#*$", re.M)
_LINK: Final = re.compile(r"(?<!\\)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+(?:\([^()\s]*\))?)\)")
_HTML_LINK: Final = re.compile(r"<(?:a|img)\s[^>]*(?:href|src)=\"([^\"]+)\"")


class Block(NamedTuple):
    """A fenced block. ``line`` is that of its first line, counted from 1."""

    page: str
    line: int
    language: str
    text: str


class Command(NamedTuple):
    """What a reader types, and what the page says that it prints; empty if it says nothing."""

    line: int
    text: str
    expected: str


class Malformed(Exception):
    """The page has something that no rule of this file covers."""


def pages() -> list[Path]:
    """README and all of docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: str, text: str, language: str = "") -> list[Block]:
    """Every fenced block, or those in ``language``."""
    found = []
    for match in _FENCE.finditer(text):
        if not language or match["language"] == language:
            indent = len(match["indent"])
            lines = [line[indent:] for line in match["text"].splitlines()]
            at = text.count("\n", 0, match.start()) + 2
            found.append(Block(page, at, match["language"], "\n".join(lines)))
    return found


def note(block: Block) -> str:
    """The comment that a console block begins with, without its mark; empty if there is none."""
    first = block.text.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def commands(block: Block) -> list[Command]:
    """What is typed in a console block, in order."""
    lines = block.text.split("\n")
    at = 1 if note(block) else 0
    found: list[Command] = []
    while at < len(lines):
        if not lines[at].startswith("$ "):
            raise Malformed(f"{block.page}:{block.line + at}: output without a command: {lines[at]!r}")
        begin, at = at, at + 1
        typed = lines[begin][2:]
        while goes_on(typed):
            if at == len(lines):
                raise Malformed(f"{block.page}:{block.line + begin}: a command without an end: {typed!r}")
            typed, at = f"{typed}\n{lines[at]}", at + 1
        printed = []
        while at < len(lines) and not lines[at].startswith("$ "):
            printed.append(lines[at])
            at += 1
        found.append(Command(block.line + begin, typed, "\n".join(printed).strip()))
    return found


def goes_on(typed: str) -> bool:
    """The command is not whole: a backslash at the end, an open quote, a here-document without its end."""
    lines = typed.split("\n")
    if any(word not in lines[1:] for _, word in _HERE.findall(lines[0])):
        return True
    if _HERE.search(lines[0]):
        return False
    try:
        shlex.split(typed, comments=True)
    except ValueError:
        return True
    return typed.endswith("\\")


def pattern(expected: str) -> re.Pattern[str]:
    """Matches the whole output of a command that prints what the page says."""
    parts = []
    for line in expected.split("\n"):
        if line.strip() == "...":
            parts.append(r"(?:.*\n)*")
        else:
            parts.append(".*".join(re.escape(piece.rstrip()) for piece in line.split("...")) + r"[ \t]*\n")
    return re.compile("".join(parts))


def prints(expected: str, output: str) -> bool:
    """The page is right about the output, line ends and spaces at the end of lines aside."""
    lines = [line.rstrip() for line in output.replace("\r", "").strip().split("\n")]
    return pattern(expected).fullmatch("\n".join(lines) + "\n") is not None


# --- links -------------------------------------------------------------------------------------------


def prose(text: str) -> str:
    """The page without its fenced blocks and comments."""
    return re.sub(r"<!--.*?-->", "", _FENCE.sub("", text), flags=re.S)


def links(text: str) -> Iterator[str]:
    """Targets of the links in the prose, code spans aside."""
    plain = re.sub(r"`[^`\n]*`", "``", prose(text))
    yield from _LINK.findall(plain)
    yield from _HTML_LINK.findall(plain)


def anchors(text: str) -> set[str]:
    """What may stand behind ``#``: headings as GitHub and the site name them."""
    found: dict[str, int] = {}
    for _, title in _HEADING.findall(_FENCE.sub("", text)):
        slug = slugged(title)
        found[slug] = found.get(slug, -1) + 1
        if found[slug]:
            found[f"{slug}-{found[slug]}"] = 0
    return found.keys() | set(re.findall(r"<a (?:id|name)=\"([\w-]+)\"", text))


def slugged(title: str) -> str:
    """The anchor of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
    return re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
