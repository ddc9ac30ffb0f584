"""An index of sessions by name that can be read in pages.

Rules of this file: names are hashes (``SessionKey.name``), so their first digits spread them evenly
over buckets. A page costs what it shows, however many sessions there are, and what comes or goes
between two pages moves no other name.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

_DIGITS: Final = 3
_BUCKETS: Final = 16**_DIGITS
"""Of 244 names each where there are a million: quick to sort, and all are quick to walk through."""

T = TypeVar("T")


class Names(Generic[T]):
    """A dictionary by name, walked through in the order of names."""

    __slots__ = ("_buckets", "_size")

    def __init__(self) -> None:
        self._buckets: dict[int, dict[str, T]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def get(self, name: str) -> T | None:
        bucket = self._buckets.get(_bucket(name))
        return None if bucket is None else bucket.get(name)

    def add(self, name: str, item: T) -> None:
        """``name`` must be new."""
        bucket = self._buckets.setdefault(_bucket(name), {})
        assert name not in bucket
        bucket[name] = item
        self._size += 1

    def remove(self, name: str) -> None:
        """Raises KeyError."""
        number = _bucket(name)
        bucket = self._buckets[number]
        del bucket[name]
        self._size -= 1
        if not bucket:
            del self._buckets[number]

    def after(self, name: str, limit: int) -> list[tuple[str, T]]:
        """The first ``limit`` items whose names are behind ``name`` (empty: from the first)."""
        found: list[tuple[str, T]] = []
        for number in range(_bucket(name) if name else 0, _BUCKETS):
            bucket = self._buckets.get(number)
            if bucket is not None:
                found += [(each, bucket[each]) for each in sorted(bucket) if each > name]
                if len(found) >= limit:
                    break
        return found[:limit]

    def clear(self) -> None:
        self._buckets.clear()
        self._size = 0


def _bucket(name: str) -> int:
    return int(name[:_DIGITS], 16)
