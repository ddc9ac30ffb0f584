"""Backends in order of a number: who has the least of something, or whose turn comes first.

Rules of this file: the first is found in O(1), however many there are, as long as many share a number;
if all differ, it costs a heap, O(log n). A level that has become empty stays until it is met in front,
so that no number stands in the heap twice; there are never many more levels than backends.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from heapq import heapify, heappop, heappush
from typing import Final

from mcp_proxy.backends import Backend

SPARE_LEVELS: Final = 64
"""Empty levels that are kept beside one for each backend: removing them costs a look at all of them, and
is to be rare even for two backends."""


class _Level:
    __slots__ = ("number", "queue")

    def __init__(self, number: float) -> None:
        self.number = number
        # Ordered: a plain dict walks over everything that was removed from its front to find its first.
        self.queue: OrderedDict[Backend, None] = OrderedDict()


class Levels:
    """Each backend at one level; those of one level in the order in which they came to it."""

    __slots__ = ("_heap", "_level_of", "_levels")

    def __init__(self) -> None:
        self._levels: dict[float, _Level] = {}
        self._heap: list[float] = []
        self._level_of: dict[Backend, _Level] = {}

    def __len__(self) -> int:
        return len(self._level_of)

    @property
    def height(self) -> int:
        """Levels that are kept, empty ones too."""
        return len(self._heap)

    def put(self, backend: Backend, number: float) -> None:
        """To the end of that level. A backend that is there already keeps its place."""
        old = self._level_of.get(backend)
        if old is not None:
            if old.number == number:
                return
            del old.queue[backend]
        level = self._levels.get(number)
        if level is None:
            level = self._levels[number] = _Level(number)
            heappush(self._heap, number)
        level.queue[backend] = None
        self._level_of[backend] = level
        if len(self._heap) > 2 * len(self._level_of) + SPARE_LEVELS:
            self._compact()

    def defer(self, backend: Backend) -> None:
        """To the end of the level where it is."""
        self._level_of[backend].queue.move_to_end(backend)

    def drop(self, backend: Backend) -> None:
        level = self._level_of.pop(backend, None)
        if level is not None:
            del level.queue[backend]

    def first(self, tried: Collection[str] = ()) -> Backend | None:
        """The first of the lowest level, of those whose id is not in ``tried``; O(tried)."""
        heap, levels = self._heap, self._levels
        passed: list[float] = []
        found: Backend | None = None
        while heap and found is None:
            queue = levels[heap[0]].queue
            if not queue:
                del levels[heappop(heap)]
            elif not tried:
                return next(iter(queue))
            else:
                found = next((backend for backend in queue if backend.id not in tried), None)
                if found is None:
                    passed.append(heappop(heap))
        for number in passed:
            heappush(heap, number)
        return found

    def _compact(self) -> None:
        self._levels = {number: level for number, level in self._levels.items() if level.queue}
        self._heap = list(self._levels)
        heapify(self._heap)
