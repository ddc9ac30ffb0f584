"""Which tools of a server may be called a thousand times. Pure.

Rules of this file: what a tool does is known from what the server says of it. A tool that says that it only
reads comes first; one that says nothing is taken for harmless only by the verb in its name (without a
``readOnlyHint`` the specification's default is "may destroy"); one that needs arguments cannot be called
without knowing it. ``--tool`` says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from mcp_proxy.load import Tool

CANDIDATES: Final = 8
"""So many are tried: enough to find one that streams, few enough to be polite."""

_READS: Final = frozenset(
    [
        "count",
        "describe",
        "echo",
        "fetch",
        "find",
        "get",
        "health",
        "help",
        "hello",
        "info",
        "list",
        "lookup",
        "ping",
        "query",
        "read",
        "search",
        "show",
        "stats",
        "status",
        "time",
        "now",
        "version",
        "whoami",
    ]
)
_WORDS: Final = re.compile(r"[a-z]+|[A-Z][a-z]*")


def candidates(listed: object, *, must_say: bool = False) -> list[Tool]:
    """The best first. ``listed`` is what ``tools/list`` has said. ``must_say``: a name is no proof."""
    if not isinstance(listed, Iterable):
        return []
    ranked = [(rank, tool) for each in listed if (rank := _rank(each)) is not None and (tool := _tool(each))]
    ranked.sort(key=lambda pair: pair[0])
    return [tool for rank, tool in ranked if rank == 0 or not must_say][:CANDIDATES]


def _tool(listed: dict[str, Any]) -> Tool | None:
    name = listed.get("name")
    return Tool(name) if isinstance(name, str) and name else None


def _rank(listed: object) -> int | None:
    """0 before 1; None: never without being told."""
    if not isinstance(listed, dict):
        return None
    schema = listed.get("inputSchema")
    if isinstance(schema, dict) and schema.get("required"):
        return None
    notes = listed.get("annotations")
    notes = notes if isinstance(notes, dict) else {}
    if notes.get("readOnlyHint") is True:
        return 0
    if notes.get("readOnlyHint") is False or notes.get("destructiveHint") is True:
        return None
    words = [word.lower() for word in _WORDS.findall(str(listed.get("name")))]
    return 1 if words and words[0] in _READS else None
