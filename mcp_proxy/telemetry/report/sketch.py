"""Quantiles of any number of durations in a few kilobytes, by counting in buckets that grow.

Rules of this file: pure. The bounds of a bucket are a fixed ratio apart and are the same everywhere, so
sketches are merged by adding counts, and a sketch does not depend on the order or grouping of its values.
The idea and the bound of the error: Masson, Rim and Lee, "DDSketch", VLDB 2019.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import Final, TypeAlias

RELATIVE_ERROR: Final = 0.01
"""A quantile is at most this part away from the value that has its rank."""

LEAST_MS: Final = 0.0009
"""Access lines have whole microseconds; whatever is less than one counts as 0."""
MOST_MS: Final = 1e9
"""Eleven days. What takes longer counts as that long."""

_RATIO: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
SCALE: Final = 1 / math.log(_RATIO)
OFFSET: Final = 1 - math.log(LEAST_MS) * SCALE
"""``int(log(x) * SCALE + OFFSET)`` is the bucket of ``x`` from LEAST_MS on; bucket 0 is for what is less.
Written out where lines are counted: a call would cost as much as the sum."""
TOP: Final = int(math.log(MOST_MS) * SCALE + OFFSET)

DENSE_FROM: Final = 256
"""Values from which on an array (11 KB) is no larger than the mapping may have become."""

Counts: TypeAlias = "defaultdict[int, int] | array[int]"


def sparse() -> Counts:
    """A sketch of nothing: counts by bucket."""
    return defaultdict(int)


def dense(counts: Counts) -> Counts:
    """The same counts in a sketch that grows no more."""
    whole = array("Q", bytes(8 * (TOP + 1)))
    for bucket, count in _pairs(counts):
        whole[bucket] = count
    return whole


def add(into: Counts, counts: Counts) -> None:
    """Merge ``counts`` into ``into``."""
    for bucket, count in _pairs(counts):
        into[bucket] += count


def quantiles(counts: Counts, parts: Sequence[float]) -> list[float | None]:
    """For each part (0 to 1) the value, in milliseconds, that so many of all values are not above; None of
    no values."""
    pairs = sorted(_pairs(counts))
    seen = list(accumulate(count for _, count in pairs))
    if not seen:
        return [None for _ in parts]
    ranks = (max(1, math.ceil(part * seen[-1])) for part in parts)
    return [_middle(pairs[bisect_left(seen, rank)][0]) for rank in ranks]


def _pairs(counts: Counts) -> list[tuple[int, int]]:
    pairs = enumerate(counts) if isinstance(counts, array) else counts.items()
    return [(bucket, count) for bucket, count in pairs if count]


def _middle(bucket: int) -> float:
    """What is the same part of itself away from both bounds of the bucket."""
    if not bucket:
        return 0.0
    lower_ms = math.exp((bucket - OFFSET) / SCALE)
    return lower_ms * 2 * _RATIO / (_RATIO + 1)
