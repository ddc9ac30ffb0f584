"""When to look: at the next turn, or sooner if somebody asks for it.

Rules of this file: ``Pace`` and ``Backoff`` are pure, the caller brings time and chance; ``PacedWait`` sleeps
by a Pace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from mcp_proxy.clock import now

REFRESH_S: Final = 1.0
"""From the beginning of a look to one that is asked for: requests may ask hundreds of times a second."""

BACKOFF_FIRST_S: Final = 1.0
BACKOFF_LIMIT_S: Final = 30.0
"""A server that has been away for long is found again within this time."""

SHORT_S: Final = 5.0
"""What ends sooner has failed: something in between may close every connection at once."""


class Pace:
    """``due_s`` is when the next look begins; the first one at once."""

    __slots__ = ("_is_looking", "_started_s", "due_s", "is_asked")

    def __init__(self) -> None:
        self.due_s = float("-inf")
        self._started_s = float("-inf")
        self._is_looking = False
        self.is_asked = False
        """During a look: for another one."""

    @property
    def soonest_s(self) -> float:
        """When a look may begin that is asked for."""
        return self._started_s + REFRESH_S

    def start(self, at_s: float) -> None:
        """A look begins."""
        self._started_s = at_s
        self._is_looking = True
        self.is_asked = False

    def done(self, at_s: float, wait_s: float) -> None:
        """It is over, and the next may wait."""
        self._is_looking = False
        self.due_s = self.soonest_s if self.is_asked else at_s + wait_s

    def ask(self) -> None:
        """Look as soon as allowed. During a look: again, for it may have seen what was before."""
        if self._is_looking:
            self.is_asked = True
        else:
            self.due_s = min(self.due_s, self.soonest_s)


class PacedWait:
    """Waits until a Pace says that it is time."""

    __slots__ = ("_changed", "pace")

    def __init__(self) -> None:
        self.pace = Pace()
        self._changed = asyncio.Event()

    def ask(self) -> None:
        self.pace.ask()
        self._changed.set()

    async def until_due(self) -> None:
        while (wait_s := self.pace.due_s - now()) > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                return


class Backoff:
    """How long to wait after looks that did not end as they should. ``draw`` returns a number from 0 to 1:
    replicas that lost the same server must not come back together."""

    __slots__ = ("_draw", "_failures")

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self._failures = 0

    def worked(self) -> None:
        """The last look ended as it should."""
        self._failures = 0

    def failed(self) -> float:
        """It failed; seconds, longer after each."""
        # The exponent is bounded: a float has an end.
        whole_s = min(BACKOFF_FIRST_S * 2 ** min(self._failures, 10), BACKOFF_LIMIT_S)
        self._failures += 1
        return float(whole_s * (1 - self._draw() / 2))

    def ended(self, lasted_s: float) -> float:
        """It worked for so long, and the other side has ended it; seconds."""
        if lasted_s < SHORT_S:
            return self.failed()
        self._failures = 0
        return self._draw() * BACKOFF_FIRST_S
