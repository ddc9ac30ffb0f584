"""What is reported about a configuration: one Problem per cause, all of them at once.

Rules of this file: records only; no message ever holds a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

Loc = tuple[str | int, ...]
"""Path of keys and list indexes from the top of the configuration."""


Signature = tuple[int, int, int, int]
"""Of a file: device, inode, size and time of the last change in nanoseconds."""

Files = dict[Path, Signature | None]
"""Files by name. None: there was none."""

Sections = Mapping[str, Any]
"""Fields of a model by name. One that is absent is broken and has a problem of its own."""


class Issue(NamedTuple):
    """Something wrong with values. ``loc`` is where the cure belongs."""

    loc: Loc
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or warning, and where the cure belongs."""

    source: str
    """File, variable (``MCP_PROXY_LISTEN``) or flag (``--listen``)."""
    line: int | None
    """Counted from 1; None unless ``source`` is a file."""
    key: str
    """``pools.weather.backends[1].weight``; empty when no single key is at fault."""
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        key = f"{self.key}: " if self.key and self.line is not None else ""
        return f"{where}: {key}{self.message}" + (f" ({self.hint})" if self.hint else "")


class ConfigErrors(Exception):
    """The configuration cannot be used. ``problems`` is never empty; ``str`` shows one per line."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems
        self.files: Files = {}
        """Every file that was asked for: when one changes, it may be worth another try."""


def key_path(loc: Loc) -> str:
    """``("pools", "a", "backends", 0)`` → ``pools.a.backends[0]``."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
