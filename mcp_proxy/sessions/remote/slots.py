"""Which node of a Redis Cluster owns a key.

Rules of this file: pure; answers of servers in, a table out. Ranges, not 16,384 entries; slots
that moved since the table was read are kept beside it until it is read again.
"""

from __future__ import annotations

import binascii
from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple

SLOTS: Final = 16384
"""Fixed by the Redis Cluster specification."""


class Node(NamedTuple):
    """Where a node listens."""

    host: str
    port: int


def slot_of(key: bytes) -> int:
    """CRC16 (XMODEM) of the key or of its hash tag, as the specification has it."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % SLOTS


class SlotTable:
    """Owners of the slots; ``ids`` are the names that nodes keep for life."""

    def __init__(self, ranges: Iterable[tuple[int, int, Node, str]]) -> None:
        self._ranges = sorted(ranges)
        self._starts = [start for start, _, _, _ in self._ranges]
        self._moved: dict[int, Node] = {}
        self.ids = {node_id: node for _, _, node, node_id in self._ranges}

    @classmethod
    def from_answer(cls, answer: object, asked: str) -> SlotTable:
        """From the answer to ``CLUSTER SLOTS``. ``asked``: the host that answered, which may not
        know its own address. Raises ValueError if this is no such answer."""
        try:
            return cls(
                (int(first), int(last), Node(_host(owner[0], asked), int(owner[1])), _text(owner[2]))
                for first, last, owner, *_ in answer  # type: ignore[attr-defined]
            )
        except (TypeError, ValueError, IndexError):
            raise ValueError("not an answer to CLUSTER SLOTS") from None

    def __len__(self) -> int:
        return len(self._ranges)

    @property
    def nodes(self) -> set[Node]:
        """All that own slots, or are said to own one."""
        return set(self.ids.values()) | set(self._moved.values())

    def owner(self, slot: int) -> Node | None:
        """None: nobody, the cluster is incomplete."""
        if (moved := self._moved.get(slot)) is not None:
            return moved
        index = bisect_right(self._starts, slot) - 1
        if index < 0 or slot > self._ranges[index][1]:
            return None
        return self._ranges[index][2]

    def move(self, slot: int, node: Node) -> None:
        """A node said that ``slot`` is elsewhere now."""
        self._moved[slot] = node


def _text(value: object) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _host(value: object, asked: str) -> str:
    # Empty or null: the node does not know how it is reached; "?": it was told not to say.
    host = "" if value is None else _text(value)
    return asked if host in ("", "?") else host
