"""A Dockerfile as values: its stages, their instructions, and what a build makes of them.

Rules of this file: it knows the instructions that our Dockerfile uses and refuses every other one with its
line, because what is skipped in silence is not tested. Grammar: https://docs.docker.com/reference/dockerfile/
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import translate

_KNOWN = frozenset(
    "FROM ARG ENV RUN COPY WORKDIR USER LABEL EXPOSE STOPSIGNAL ENTRYPOINT CMD".split()  # noqa: SIM905
)
_INSTRUCTION = re.compile(r"([A-Z]+)\s+((?:--\S+\s+)*)(.+)", re.DOTALL)
_VARIABLE = re.compile(r"\\\$|\$\{(\w+)(?::-([^}]*))?\}|\$(\w+)")


@dataclass(frozen=True)
class Instruction:
    line: int
    name: str
    flags: dict[str, str]
    value: str

    def form(self) -> list[str]:
        """The words of the exec form. Raises ValueError for the shell form."""
        words = json.loads(self.value)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"line {self.line}: not the exec form")
        return words

    def pairs(self, variables: Mapping[str, str]) -> dict[str, str]:
        """``NAME=value ...`` of ENV, LABEL and ARG; an ARG without a value is left out."""
        words = shlex.split(expand(self.value, variables))
        return dict(word.split("=", 1) for word in words if "=" in word)


@dataclass(frozen=True)
class Stage:
    base: str
    name: str
    """``""`` for one that nothing refers to."""
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        return [each for each in self.instructions if each.name == name]


@dataclass(frozen=True)
class Dockerfile:
    arguments: dict[str, str]
    """Defaults of the ARGs before the first stage."""
    stages: list[Stage]


def expand(text: str, variables: Mapping[str, str]) -> str:
    """``$NAME``, ``${NAME}`` and ``${NAME:-default}``; one that is not set is empty, as in a build."""

    def value(match: re.Match[str]) -> str:
        if match[0] == r"\$":
            return "$"
        return variables.get(match[1] or match[3], "") or match[2] or ""

    return _VARIABLE.sub(value, text)


def parse(text: str) -> Dockerfile:
    """Raises ValueError for what it does not know."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for instruction in _instructions(text):
        if instruction.name == "FROM":
            base, _, name = re.sub(r"\s+AS\s+", " ", expand(instruction.value, arguments)).partition(" ")
            stages.append(Stage(base, name))
        elif stages:
            stages[-1].instructions.append(instruction)
        elif instruction.name == "ARG":
            arguments |= instruction.pairs(arguments)
        else:
            raise ValueError(f"line {instruction.line}: {instruction.name} before FROM")
    return Dockerfile(arguments, stages)


def _instructions(text: str) -> list[Instruction]:
    found, begun, gathered = [], 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):  # also between the lines of an instruction
            continue
        begun = begun or number
        gathered += line.strip().removesuffix("\\")
        if line.rstrip().endswith("\\"):
            continue
        found.append(_instruction(begun, gathered))
        begun, gathered = 0, ""
    if gathered:
        raise ValueError(f"line {begun}: the instruction has no end")
    return found


def _instruction(line: int, text: str) -> Instruction:
    match = _INSTRUCTION.fullmatch(text)
    if match is None or match[1] not in _KNOWN:
        raise ValueError(f"line {line}: unknown instruction: {text}")
    flags = dict(flag[2:].split("=", 1) for flag in match[2].split())
    return Instruction(line, match[1], flags, match[3])


class Ignored:
    """What ``.dockerignore`` keeps out of the context: the last pattern that matches decides."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        self._rules = [(not line.startswith("!"), _pattern(line.removeprefix("!"))) for line in lines]

    def __call__(self, path: str) -> bool:
        """``path``: of a file, relative to the context, with slashes."""
        ignored = False
        for ignores, pattern in self._rules:
            if pattern.match(path):
                ignored = ignores
        return ignored


def _pattern(line: str) -> re.Pattern[str]:
    """A pattern matches a path, and everything below it; ``**/`` is any depth, and ``*`` no slash."""
    anywhere, rest = ("(.*/)?", line[3:]) if line.startswith("**/") else ("", line.lstrip("/"))
    if "**" in rest or "[" in rest:
        raise ValueError(f".dockerignore: pattern that is not known here: {line}")
    parts = [translate(part).removesuffix(r"\Z")[len("(?s:") : -1] for part in rest.split("/")]
    return re.compile(anywhere + "/".join(part.replace(".*", "[^/]*") for part in parts) + r"(/.*)?\Z")
