"""Which users there are, how many of each, and in which process. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Final

from mcp_proxy.load import CLASSES

DEFAULT: Final = {"session": 6.0, "modern": 3.0, "stream": 2.0, "reconnect": 1.0, "abuse": 1.0}

_ENTRY: Final = re.compile(r"([a-z]+)=(\d{1,4})", re.ASCII)


def parse(text: str) -> dict[str, float]:
    """``"session=6,abuse=0"`` → weights of what is not 0. Raises ValueError with a sentence."""
    found: dict[str, float] = {}
    for entry in text.split(","):
        match = _ENTRY.fullmatch(entry.strip())
        if match is None or match[1] not in CLASSES:
            raise ValueError(
                f"{entry!r} is no part of a mix; write such as session=6,modern=3 of {', '.join(CLASSES)}"
            )
        if match[1] in found:
            raise ValueError(f"{match[1]} is there twice")
        found[match[1]] = float(match[2])
    mix = {kind: found[kind] for kind in CLASSES if found.get(kind)}
    if not mix:
        raise ValueError("a mix needs users of some kind")
    return mix


def written(mix: Mapping[str, float]) -> str:
    return ",".join(f"{kind}={weight:g}" for kind, weight in mix.items())


def users_of(mix: Mapping[str, float], total: int) -> list[str]:
    """The kind of each of ``total`` users, spread evenly; the first ones are one of every kind."""
    kinds = list(mix)
    users = kinds[:total]
    counts = Counter(users)
    for _ in range(total - len(users)):
        # whoever is furthest behind its share; kinds that are equally far in their order
        kind = min(kinds, key=lambda each: counts[each] / mix[each])
        counts[kind] += 1
        users.append(kind)
    return users


def share(users: list[str], number: int, processes: int) -> dict[str, int]:
    """How many of each kind process ``number`` (from 0) runs."""
    counted = Counter(users[number::processes])
    return {kind: counted[kind] for kind in CLASSES if counted[kind]}
