"""Whether to believe what a look has found: a record without answers never empties a pool at once.

Rules of this file: pure; the caller brings answers and the time. A failed look is no answer and is not
told here: it neither confirms a doubt nor ends it. An answer is taken at once, unless

- it is empty. Then it must stay so for ``EMPTY_S`` and ``EMPTY_LOOKS``: a name server that has just been
  restarted, or a Service whose selector is wrong for a moment, must not end every session of a pool;
- it has fewer than half of the endpoints that there were. Then the next look must agree, ``FEWER_S`` later:
  some name servers answer with a part of a large record when they are in a hurry. To wait is cheap, as a
  backend that cannot be reached gets no new sessions anyway. To believe it is not: what is missing is
  drained, and what is drained and cannot be reached has lost its sessions. Half is not fewer than half, so
  a pool of two lets go of one at once; and a replica that is replaced by another leaves the number as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mcp_proxy.backends import Endpoint

EMPTY_S: Final = 30.0
"""Longer than a name server or an API server takes to restart."""

EMPTY_LOOKS: Final = 3
"""However seldom it is looked: two may have met the same cache."""

FEWER_S: Final = 1.0
FEWER_LOOKS: Final = 2


class Steady:
    """The last answer that was believed, and what speaks against it."""

    __slots__ = ("_empty", "_fewer", "last")

    def __init__(self) -> None:
        self.last: tuple[Endpoint, ...] | None = None
        """None: nothing was believed yet."""
        self._empty = _Streak()
        self._fewer = _Streak()

    @property
    def doubt(self) -> str | None:
        """What the last answer had, if that is not believed so far."""
        if self._empty.looks:
            return "none"
        return "fewer than half" if self._fewer.looks else None

    @property
    def recheck_s(self) -> float | None:
        """After how long the next look should be, at the latest, to settle a doubt."""
        if self._empty.looks:
            return EMPTY_S / EMPTY_LOOKS
        return FEWER_S if self._fewer.looks else None

    def offer(self, found: Iterable[Endpoint], at_s: float) -> tuple[Endpoint, ...] | None:
        """All endpoints that a look has found; what is to be published, sorted, or None if nothing is.
        A first answer that is empty is in doubt, too: there may be backends from before a reload."""
        answer = tuple(sorted(set(found)))
        if answer:
            self._empty.clear()
        if answer == self.last or not self._is_doubtful(answer, at_s):
            self._empty.clear()
            self._fewer.clear()
            is_news, self.last = answer != self.last, answer
            return answer if is_news else None
        return None

    def _is_doubtful(self, answer: tuple[Endpoint, ...], at_s: float) -> bool:
        if answer and 2 * len(answer) >= len(self.last or ()):
            return False
        # Also an empty answer says that there are fewer: else two that alternate would be held for ever.
        self._fewer.add(at_s)
        if answer:
            return not self._fewer.has(FEWER_LOOKS, FEWER_S, at_s)
        self._empty.add(at_s)
        return not self._empty.has(EMPTY_LOOKS, EMPTY_S, at_s)


class _Streak:
    """Looks in a row that agree."""

    __slots__ = ("_since_s", "looks")

    def __init__(self) -> None:
        self.looks = 0
        self._since_s = 0.0

    def add(self, at_s: float) -> None:
        if not self.looks:
            self._since_s = at_s
        self.looks += 1

    def has(self, looks: int, seconds: float, at_s: float) -> bool:
        return self.looks >= looks and at_s - self._since_s >= seconds

    def clear(self) -> None:
        self.looks = 0
