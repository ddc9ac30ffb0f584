"""Drawing backends at random, the heavier the more often.

Rules of this file: O(1) to draw, to put in and to take out. Chance is given, so that a test can be a
table. A weight counts as the power of two at or below it: then there is a row for each of ten powers at
most, any two of a row are alike, and no draw is ever thrown away. What this rounds off, whoever compares
those that were drawn puts right.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from mcp_proxy.backends import Backend


class Urn:
    """``random`` returns numbers from 0 to below 1."""

    __slots__ = ("_place_of", "_random", "_rows", "_tickets")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._rows: dict[int, list[Backend]] = {}
        """Of backends that have so many tickets each."""
        self._place_of: dict[str, tuple[int, int]] = {}
        """Tickets, and index in that row."""
        self._tickets = 0

    def __len__(self) -> int:
        return len(self._place_of)

    def put(self, backend: Backend) -> None:
        """By ``backend.weight`` as it is now."""
        tickets = 1 << (backend.weight.bit_length() - 1)
        place = self._place_of.get(backend.id)
        if place is not None:
            if place[0] == tickets:
                return
            self.drop(backend)
        row = self._rows.setdefault(tickets, [])
        self._place_of[backend.id] = tickets, len(row)
        row.append(backend)
        self._tickets += tickets

    def drop(self, backend: Backend) -> None:
        place = self._place_of.pop(backend.id, None)
        if place is None:
            return
        tickets, index = place
        row = self._rows[tickets]
        last = row.pop()
        if last is not backend:
            row[index] = last
            self._place_of[last.id] = tickets, index
        elif not row:
            del self._rows[tickets]
        self._tickets -= tickets

    def draw(self, tried: Collection[str]) -> tuple[Backend, Backend] | None:
        """Two different ones whose ids are not in ``tried``; the same twice if it is the only one."""
        if tried:
            return self._draw_others(tried)
        if len(self._place_of) < 2:
            only = next(iter(self._rows.values()), None)
            return (only[0], only[0]) if only else None
        one, start, tickets = self._holder(self._random() * self._tickets)
        # The others: as if the tickets of the first were not there.
        number = self._random() * (self._tickets - tickets)
        other, _, _ = self._holder(number if number < start else number + tickets)
        return one, other

    def _draw_others(self, tried: Collection[str]) -> tuple[Backend, Backend] | None:
        out = [self._at(id) for id in set(tried) if id in self._place_of]
        for backend in out:
            self.drop(backend)
        drawn = self.draw(())
        for backend in out:
            self.put(backend)
        return drawn

    def _at(self, id: str) -> Backend:
        tickets, index = self._place_of[id]
        return self._rows[tickets][index]

    def _holder(self, number: float) -> tuple[Backend, int, int]:
        """Of the ticket ``number``: with its first ticket, and how many it has."""
        start = 0
        for tickets, row in self._rows.items():
            end = start + len(row) * tickets
            if number < end:
                index = int((number - start) / tickets)
                return row[index], start + index * tickets, tickets
            start = end
        raise AssertionError("a ticket is below their number")
