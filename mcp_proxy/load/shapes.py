"""How many users there are at which moment, by the name of a shape. Pure.

Rules of this file: a shape is a function of the time that has passed. ``steady`` is the part in which nothing
changes: figures of the generator's own load are of that part, and a command (``--during``) runs in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple


class Shape(NamedTuple):
    about: str
    time_s: float
    """Default of ``--time``."""
    users: int
    """Default of ``--users``."""
    share: Callable[[float], float]
    """Part of all users, by part of the time."""
    steady: tuple[float, float]
    """From and to, as parts of the time."""


def _smoke(at: float) -> float:
    return 1.0


def _ramp(at: float) -> float:
    return min(1.0, (math.floor(at * 10) + 1) / 9)


def _spike(at: float) -> float:
    return 1.0 if 0.4 <= at < 0.6 else 0.1


def _soak(at: float) -> float:
    return min(1.0, 0.2 + at / 0.05)


SHAPES: Final = {
    "smoke": Shape("a few users of every kind", 15.0, 13, _smoke, (0.1, 1.0)),
    "ramp": Shape("more and more users, in ten steps", 120.0, 104, _ramp, (0.8, 1.0)),
    "spike": Shape("ten times the users at once, and back", 60.0, 104, _spike, (0.4, 0.6)),
    "soak": Shape("the same load for long", 1800.0, 26, _soak, (0.05, 1.0)),
    "drain": Shape("steady load while --during restarts what serves it", 30.0, 26, _smoke, (0.1, 1.0)),
}

SPAWN_PER_S: Final = 50.0
"""locust warns above 100; a hundred users are there within two seconds."""


def users_at(shape: str, total: int, at_s: float, time_s: float) -> int:
    """Never fewer than one."""
    part = min(max(at_s / time_s, 0.0), 1.0)
    return max(1, round(total * SHAPES[shape].share(part)))


def is_steady(shape: str, at_s: float, time_s: float) -> bool:
    since, until = SHAPES[shape].steady
    return since <= at_s / time_s <= until


def is_constant(shape: str) -> bool:
    """The number of users never changes."""
    return SHAPES[shape].share is _smoke


def share_of(total: int, number: int, processes: int) -> int:
    """Users of process ``number`` (from 0) of so many; all shares together are ``total``."""
    return total // processes + (number < total % processes)
