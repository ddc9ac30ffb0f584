"""An event loop on which waiting takes no time, and which is never ahead of a real Redis.

Rules of this file: timers fire as soon as nothing else can happen. Whether a server still has something
to say is not guessed from how long it has been silent: ``barrier`` returns when it has said all.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

Events = list[tuple[selectors.SelectorKey, int]]


class Stuck(AssertionError):
    """Nothing can ever happen any more."""


class _Selector(selectors.DefaultSelector):
    def __init__(self, barrier: Callable[[], None]) -> None:
        super().__init__()
        self.skipped_s = 0.0
        self._barrier = barrier

    def select(self, timeout: float | None = None) -> Events:
        events = super().select(0)
        if events or timeout == 0:
            return events
        self._barrier()
        events = super().select(0)
        if events:
            return events
        if timeout is None:
            raise Stuck("everybody waits, and nobody for anything")
        self.skipped_s += timeout
        return []


class TimelessLoop(asyncio.SelectorEventLoop):
    """``time`` jumps to the next timer whenever nothing else is left to do. ``barrier`` blocks until
    other processes have written all that they were asked for."""

    def __init__(self, barrier: Callable[[], None]) -> None:
        self._eager = _Selector(barrier)
        self.complaints: list[dict[str, Any]] = []
        """What nobody else caught."""
        super().__init__(self._eager)
        self.set_exception_handler(lambda loop, context: self.complaints.append(context))

    def time(self) -> float:
        return super().time() + self._eager.skipped_s

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.run_until_complete(work)
