"""Soft affinity: the same value at the same backend as long as it is there. Pure.

Rules of this file: every replica of the proxy, in any version of Python, comes to the same choice from the
same members: nothing depends on their order, on ``hash()`` or on what was chosen before. A member
that leaves gives its values to all others by weight, one that joins takes its share from all; no other
value moves. To be judged badly is not to leave: whoever asks passes over such an owner.

Values share a fixed number of slots, and the owner of a slot is found by highest random weight. Only the
first value of a slot pays for the comparison of all members. When a member joins or leaves, nothing is
done at once: a slot that is asked for compares itself with those that have joined since, and finds a new
owner if its own has left. One hash covers a block of slots, because hashing is what a comparison costs.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import takewhile
from math import inf, log
from struct import Struct
from typing import Final

from mcp_proxy.backends import Backend

SLOTS: Final = 1 << 14
"""More would share more evenly (of 1,000 backends, two in three are within 25 % of their share: 16 slots,
give or take a square root), fewer are sooner known. 256 KiB where there is affinity."""

PROBES: Final = 16
"""Choices of a value, its own slot first. Where nine of ten backends are of no use, one in five values finds
none among them, and is balanced."""

_BLOCK: Final = Struct("<8Q")
"""All that a hash of 64 bytes has to say."""
_BLOCK_SLOTS: Final = 8
_BLOCKS: Final = SLOTS // _BLOCK_SLOTS
_NOBODY: Final = -inf
"""The rank of an owner that is not there."""
_BITS: Final = 52
"""Of a score that become a fraction: with the half that keeps it off 0 and 1 they fit a double exactly."""


class _Member:
    __slots__ = ("backend", "has_left", "joined", "text", "weight")

    def __init__(self, pool: str, backend: Backend, joined: int) -> None:
        self.backend = backend
        self.weight = backend.weight
        self.joined = joined
        self.has_left = False
        # Names of pools and ids of backends hold no NUL, so no two members hash the same text.
        self.text = f"{pool}\0{backend.id}\0".encode()

    def scores(self, block: bytes) -> tuple[int, ...]:
        """At random, one for each slot of the block. With 64 bits no two members have the same."""
        return _BLOCK.unpack(blake2b(self.text + block).digest())

    def rank(self, score: int) -> float:
        """Below 0, the highest owns. The first of n arrivals at random, where each comes at the rate of
        its weight (Thaler and Ravishankar 1998, weighted by the logarithm method)."""
        return log(((score >> (64 - _BITS)) + 0.5) / 2**_BITS) / self.weight


class Rendezvous:
    """Of the backends of ``pool``: pools with the same backends spread values differently."""

    __slots__ = ("_compared", "_joined", "_members", "_owners", "_pool", "_ranks", "_seed")

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._seed = blake2b(f"{pool}\0".encode(), digest_size=2 * PROBES)
        self._members: OrderedDict[str, _Member] = OrderedDict()
        """In the order in which they joined."""
        self._joined = 0
        """The number of the last that joined."""
        # by slot; empty until somebody asks
        self._owners: list[_Member | None] = []
        self._ranks = array("d")
        # by block
        self._compared: list[int] = []
        """The last that joined before its slots were compared."""

    def __len__(self) -> int:
        return len(self._members)

    def put(self, backend: Backend) -> None:
        """It joins, or its weight may have changed."""
        member = self._members.get(backend.id)
        if member is not None:
            if member.backend is backend and member.weight == backend.weight:
                return
            self.drop(member.backend)
        self._joined += 1
        self._members[backend.id] = _Member(self._pool, backend, self._joined)

    def drop(self, backend: Backend) -> None:
        member = self._members.pop(backend.id, None)
        if member is not None:
            member.has_left = True

    def choices(self, value: bytes) -> Iterator[Backend]:
        """The owner of ``value``, then who comes next, PROBES in all; one may come again. None without
        members."""
        if not self._members:
            return
        if not self._owners:
            self._owners = [None] * SLOTS
            self._ranks = array("d", [_NOBODY]) * SLOTS
            self._compared = [0] * _BLOCKS
        hasher = self._seed.copy()
        hasher.update(value)
        digest = hasher.digest()
        owners, compared, joined = self._owners, self._compared, self._joined
        for at in range(0, 2 * PROBES, 2):
            slot = (digest[at] << 8 | digest[at + 1]) % SLOTS
            owner = owners[slot]
            if owner is None or owner.has_left or compared[slot // _BLOCK_SLOTS] != joined:
                owner = self._owner(slot)
            yield owner.backend

    def _owner(self, slot: int) -> _Member:
        """After all that has changed."""
        block = slot // _BLOCK_SLOTS
        last = self._compared[block]
        # Who beats an owner that has left beats all others too, so this comes first.
        self._compare(block, takewhile(lambda member: member.joined > last, reversed(self._members.values())))
        self._compared[block] = self._joined
        owner = self._owners[slot]
        if owner is None or owner.has_left:
            for each in _slots(block):
                self._ranks[each] = _NOBODY
            self._compare(block, self._members.values())
            owner = self._owners[slot]
            assert owner is not None
        return owner

    def _compare(self, block: int, members: Iterable[_Member]) -> None:
        """The owners of its slots with these. Of equal weights the highest score has the highest rank: that
        spares a logarithm for each member."""
        name = block.to_bytes(2, "little")
        of_weight: defaultdict[int, list[_Member]] = defaultdict(list)
        for member in members:
            of_weight[member.weight].append(member)
        for equals in of_weight.values():
            columns = zip(*[member.scores(name) for member in equals], strict=True)
            for slot, scores in zip(_slots(block), columns, strict=True):
                best = max(scores)
                self._claim(slot, equals[scores.index(best)], best)

    def _claim(self, slot: int, member: _Member, score: int) -> None:
        rank = member.rank(score)
        if rank > self._ranks[slot]:
            self._owners[slot] = member
            self._ranks[slot] = rank


def _slots(block: int) -> range:
    return range(block * _BLOCK_SLOTS, (block + 1) * _BLOCK_SLOTS)
