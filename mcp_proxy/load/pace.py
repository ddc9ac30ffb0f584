"""When a user's next turn is due. Pure.

Rules of this file: the schedule does not wait for the server. A user who sends only when the last answer has
come asks a slow server less often, and the requests that it did not make are missing from the percentiles
(coordinated omission: Gil Tene, "How NOT to Measure Latency"). So turns are due at fixed times, a late one
is sent at once, and its time is also counted from the moment in which it was due.
"""

from __future__ import annotations

import random


class Pace:
    """``per_s`` turns a second; None: the next turn is due when the last is over."""

    def __init__(self, per_s: float | None, now: float, rng: random.Random) -> None:
        self._interval_s = None if per_s is None else 1 / per_s
        # Users that began together must not ask together for ever.
        self._due = now + (rng.random() * self._interval_s if self._interval_s else 0.0)

    @property
    def due(self) -> float | None:
        """Of the turn that begins now; None without a schedule."""
        return None if self._interval_s is None else self._due

    def wait_s(self, now: float) -> float:
        """Until the next turn. Call it once after every turn."""
        if self._interval_s is None:
            return 0.0
        self._due += self._interval_s
        return max(0.0, self._due - now)
