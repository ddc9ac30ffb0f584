"""What must not happen to all connections in the same instant.

Rules of this file: pure but for its callback; the time is given. No timer and no task per item.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from mcp_proxy.clock import TICK_S

T = TypeVar("T", bound=Hashable)


class Stagger(Generic[T]):
    """Hands its items to ``release`` one after the other, evenly within ``window_s`` of the first
    sweep that found some, and at least one in every sweep: few are gone at once."""

    __slots__ = ("_items", "_release", "_until_s", "window_s")

    def __init__(self, window_s: float, release: Callable[[T], None]) -> None:
        self._items: dict[T, None] = {}
        self._release = release
        self.window_s = window_s
        self._until_s: float | None = None

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: T) -> None:
        """Once is as good as twice. What comes after the window is released by the next sweep."""
        self._items[item] = None

    def discard(self, item: T) -> None:
        self._items.pop(item, None)

    def sweep(self, at_s: float) -> None:
        """To be called every ``TICK_S``. ``release`` may add and discard freely."""
        items = self._items
        if not items:
            return
        if self._until_s is None:
            self._until_s = at_s + self.window_s
        sweeps_left = max(1.0, (self._until_s - at_s) / TICK_S)
        for _ in range(math.ceil(len(items) / sweeps_left)):
            if not items:
                return
            item = next(iter(items))
            del items[item]
            self._release(item)
