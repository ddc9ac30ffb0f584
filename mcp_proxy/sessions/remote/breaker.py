"""When to stop asking a server that does not answer, and when to ask again.

Rules of this file: a pure machine; the caller brings the time and does the asking. Closed: ask.
Open: do not. Half-open: one probe is under way, nobody else asks. Only a probe closes a breaker
that has opened: an answer that was on its way before says nothing about now.

    CLOSED     -- THRESHOLD failures in a row, or a failed probe -->  OPEN
    OPEN       -- the time of a probe has come -->                    HALF_OPEN
    HALF_OPEN  -- the probe was answered -->                          CLOSED
    HALF_OPEN  -- it was not -->                                      OPEN
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum
from typing import Final

THRESHOLD: Final = 5
"""Failures in a row. One lost connection fails what was on it, and is no outage."""

FIRST_PROBE_S: Final = 0.05
"""After opening: a server that only restarted its connections is back by then."""

PROBE_S: Final = 0.5
"""Between probes; four of them fit into the two seconds after which all must work again."""

JITTER: Final = 0.25
"""Of the time between probes, up and down: replicas that failed together must not ask together."""


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """The breaker of one server. ``draw`` returns a number from 0 to 1."""

    __slots__ = ("_draw", "_failures", "failing_since_s", "probe_at_s", "state")

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self.state = State.CLOSED
        self.failing_since_s: float | None = None
        """The first failure after the last success; None while all is well."""
        self.probe_at_s = 0.0
        """While open: when the next probe is due."""
        self._failures = 0
        self._draw = draw

    @property
    def is_closed(self) -> bool:
        return self.state is State.CLOSED

    def succeeded(self) -> None:
        """The server answered somebody."""
        if self.state is State.CLOSED:
            self._failures = 0
            self.failing_since_s = None

    def failed(self, at_s: float) -> bool:
        """The server did not answer somebody; True if the breaker opens now."""
        if self.state is not State.CLOSED:
            return False
        self._count(at_s)
        return self._failures >= THRESHOLD and self._open(at_s + FIRST_PROBE_S)

    def probe(self, at_s: float) -> bool:
        """Whether the caller is to probe now, and to say how it went."""
        if self.state is not State.OPEN or at_s < self.probe_at_s:
            return False
        self.state = State.HALF_OPEN
        return True

    def probed(self, ok: bool, at_s: float) -> bool:
        """The outcome of a probe, also of one that was made out of suspicion while all seemed
        well; True if the breaker opens or closes now."""
        was_closed = self.state is State.CLOSED
        if ok:
            self.state = State.CLOSED
            self.succeeded()
            return not was_closed
        self._count(at_s)
        self._open(at_s + PROBE_S * (1 - JITTER + 2 * JITTER * self._draw()))
        return was_closed

    def _count(self, at_s: float) -> None:
        self._failures += 1
        if self.failing_since_s is None:
            self.failing_since_s = at_s

    def _open(self, probe_at_s: float) -> bool:
        self.state = State.OPEN
        self.probe_at_s = probe_at_s
        return True
