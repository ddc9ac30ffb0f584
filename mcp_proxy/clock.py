"""Time. ``now`` is the only clock of the data path; the ticker keeps every deadline.

A timer per request costs as much as the request; instead each *kind* of deadline has one
``Deadlines`` queue. Items of a kind share one delay, so insertion order is expiry order and
a sweep looks only at the front: O(1) to arm, O(1) to disarm, O(expired) per tick.

A process that is paused (a CPU limit, a snapshot of its machine) finds, when it goes on, deadlines that
are over and answers that came in time but were not read. Event loops call timers first; so here a
timer that comes late does not judge before what has come was read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Final, Generic, TypeVar

now = time.monotonic

TICK_S = 0.1
"""Deadlines fire at most this late. A tenth of the shortest sensible timeout (1 s)."""

PAUSE_S: Final = 0.02
"""A timer that fires later than this: it was us who did not come to it."""

T = TypeVar("T", bound=Hashable)


class patience:  # written as ``asyncio.timeout`` is
    """``asyncio.timeout(delay_s)``, except that a pause of this process at its end is made up for, once
    and by no more than ``delay_s``. Raises TimeoutError."""

    __slots__ = ("_delay_s", "_due_s", "_loop", "_timeout", "_timer")

    def __init__(self, delay_s: float | None) -> None:
        self._delay_s = delay_s
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        self._timeout = asyncio.timeout(None)
        await self._timeout.__aenter__()
        if self._delay_s is not None:
            self._loop = asyncio.get_running_loop()
            self._due_s = self._loop.time() + self._delay_s
            self._timer = self._loop.call_at(self._due_s, self._end)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _end(self) -> None:
        assert self._delay_s is not None
        at_s = self._loop.time()
        late_s = at_s - self._due_s
        self._timeout.reschedule(at_s + min(late_s, self._delay_s) if late_s > PAUSE_S else at_s)


class Turn:
    """One turn of the event loop. ``began_s``: when it was first asked about in it, which is before anything
    that came with it was served. ``ended_s``: everything written in it was handed to the kernel; 0 until
    then."""

    __slots__ = ("began_s", "ended_s")

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s
        self.ended_s = 0.0


class Turns:
    """Which turn of the event loop this is. What comes together is served one after the other, and what is
    written leaves at the end of the turn: who looks at ``now`` sees a request for 10 us that was here for
    all of the turn. To be asked as ``turns.turn or turns.begin()``, which spares most who ask a call."""

    __slots__ = ("_end", "_soon", "turn")

    def __init__(self) -> None:
        self.turn: Turn | None = None
        """This one, if somebody has asked about it before."""
        # Kept: to look them up would cost as much as to call them.
        self._end = self._over
        self._soon: Callable[[Callable[[], None]], object] | None = None

    def begin(self) -> Turn:
        """The first to ask in a turn. Needs a running loop."""
        self.turn = turn = Turn(now())
        # Runs behind the writes of this turn and before the loop looks for what has come meanwhile.
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon
        self._soon(self._end)
        return turn

    def _over(self) -> None:
        assert self.turn is not None
        self.turn.ended_s = now()
        self.turn = None


class Deadlines(Generic[T]):
    """A queue of items that expire ``delay_s`` after they were armed. None: never."""

    __slots__ = ("_due", "_expire", "delay_s")

    def __init__(self, delay_s: float | None, expire: Callable[[T], None]) -> None:
        self.delay_s = delay_s
        self._due: dict[T, float] = {}
        self._expire = expire

    def follow(self, delay_s: float | None) -> None:
        """Another delay from now on. What is armed waits no longer than what comes behind it, or that
        would have to wait as well."""
        self.delay_s = delay_s
        if delay_s is not None:
            latest_s = now() + delay_s
            self._due = {item: min(due_s, latest_s) for item, due_s in self._due.items()}

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, item: object) -> bool:
        """Armed, and not expired yet."""
        return item in self._due

    def arm(self, item: T, at_s: float | None = None) -> None:
        """Start or restart the clock of ``item``. ``at_s``: the present, if known."""
        if self.delay_s is None:
            return
        due = self._due
        due.pop(item, None)
        due[item] = (now() if at_s is None else at_s) + self.delay_s

    def take_newest(self) -> T | None:
        """Disarm and return the item that was armed last."""
        return self._due.popitem()[0] if self._due else None

    def disarm(self, item: T) -> None:
        self._due.pop(item, None)

    def trim(self, size: int) -> None:
        """Expire the oldest items above ``size``, due or not."""
        while len(self._due) > size:
            item = next(iter(self._due))
            del self._due[item]
            self._expire(item)

    def sweep(self, at_s: float) -> None:
        """Expire what is due. An ``expire`` callback may arm and disarm freely."""
        due = self._due
        for _ in range(len(due)):  # not what a callback arms
            if not due:
                return
            item = next(iter(due))
            if due[item] > at_s:
                return
            del due[item]
            self._expire(item)


class Ticker:
    """Calls its jobs every ``TICK_S`` on the running loop, except when it comes late by more than that
    for once. ``start`` and ``stop`` are idempotent.

    ``on_lag`` hears of every tick how many seconds late it came; None: nobody wants to know."""

    __slots__ = ("_due_s", "_handle", "_jobs", "_loop", "_was_late", "on_lag")

    def __init__(self, on_lag: Callable[[float], None] | None = None) -> None:
        self.on_lag = on_lag
        self._jobs: list[Callable[[float], None]] = []
        self._handle: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due_s = 0.0
        self._was_late = False

    def add(self, job: Callable[[float], None]) -> None:
        """``job(at_s)`` must not raise and must not block."""
        self._jobs.append(job)

    def start(self) -> None:
        if self._handle is None:
            self._loop = asyncio.get_running_loop()
            self._next(now())

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _next(self, at_s: float) -> None:
        assert self._loop is not None
        self._due_s = at_s + TICK_S
        self._handle = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        at_s = now()
        self._was_late = not self._was_late and at_s - self._due_s > TICK_S
        if self.on_lag is not None:
            # Event loops round: a timer may fire a little early.
            self.on_lag(max(0.0, at_s - self._due_s))
        self._next(at_s)
        if not self._was_late:
            for job in self._jobs:
                job(at_s)
