"""What several endpoints have in common: a comparison is one of the same load. Pure.

Rules of this file: what not all of them serve is asked of none, and said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from mcp_proxy.load import CLASSES, Facts, Tool

_SWITCHES: Final = {
    "get_stream": "GET streams",
    "get_ids": "ids of GET streams",
    "answer_ids": "ids of answers",
    "listen": "subscriptions/listen",
    "lists_tools": "tools/list",
}


def alike(all_facts: Sequence[Facts]) -> tuple[list[Facts], list[str]]:
    """The facts of each as far as all have them, and what is left out of any."""
    legacy = all(facts.legacy is not None for facts in all_facts)
    abuses = [name for name in all_facts[0].abuses if all(name in facts.abuses for facts in all_facts)]
    tool, stream_tool = (
        _same([getattr(each, name) for each in all_facts]) for name in ("tool", "stream_tool")
    )
    switches = {
        name: all(getattr(facts, name) for facts in all_facts) for name in ("modern", "sessions", *_SWITCHES)
    }
    made = [
        msgspec.structs.replace(
            facts,
            legacy=facts.legacy if legacy else None,
            abuses=abuses,
            tool=tool or stream_tool,
            stream_tool=stream_tool,
            **switches,
        )
        for facts in all_facts
    ]
    return made, _left_out(all_facts, made[0])


def _same(found: Sequence[Tool | None]) -> Tool | None:
    first = found[0]
    if first is None or any(each is None or _call(each) != _call(first) for each in found):
        return None
    is_certain = all(each == first for each in found)
    return first if is_certain else msgspec.structs.replace(first, events=None)


def _call(tool: Tool) -> tuple[str, dict[str, object]]:
    return tool.name, tool.arguments


def _left_out(all_facts: Sequence[Facts], common: Facts) -> list[str]:
    """In words, each once."""
    kinds = [
        f"{kind} users"
        for kind in CLASSES
        if any(facts.serves(kind) for facts in all_facts) and not common.serves(kind)
    ]
    switches = [
        text
        for name, text in _SWITCHES.items()
        if any(getattr(facts, name) for facts in all_facts) and not getattr(common, name)
    ]
    kept = _names(common)
    tools = [f"the tool {name}" for facts in all_facts for name in _names(facts) if name not in kept]
    abuses = [
        f"the abuse {name}" for facts in all_facts for name in facts.abuses if name not in common.abuses
    ]
    return list(dict.fromkeys([*kinds, *switches, *tools, *abuses]))


def _names(facts: Facts) -> list[str]:
    return [each.name for each in (facts.tool, facts.stream_tool) if each is not None]
