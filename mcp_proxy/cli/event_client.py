"""``/events`` of the admin listener, as objects.

Rules of this file: what is no event of this version is skipped, because a newer proxy may have more of them;
what is no stream of events at all is an AdminError.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from mcp_proxy.cli.admin_client import Admin, AdminError
from mcp_proxy.cli.text import plain

_CONTENT_TYPE: Final = "text/event-stream"

EVENT_LIMIT: Final = 64 * 1024
"""Bytes. An exchange with the longest names takes 3 KB."""


class Exchange(msgspec.Struct):
    ts: str
    pool: str
    backend: str
    http_method: str
    method: str
    name: str
    status: int
    reason: str
    session: str
    duration_ms: float
    end: str
    raw: bytes = b""

    @property
    def is_error(self) -> bool:
        # A client that leaves its stream is no error.
        return self.status >= 400 or bool(self.reason) or self.end[:1] in ("S", "P", "T")


class Change(msgspec.Struct):
    pool: str
    id: str
    state: str | None
    was: str | None

    @property
    def text(self) -> str:
        return plain(f"{self.pool}: {self.id} {self.was or 'new'} -> {self.state or 'gone'}")


class Missed(msgspec.Struct):
    missed: int


class Ended(msgspec.Struct):
    reason: str

    @property
    def text(self) -> str:
        return "the proxy is draining" if self.reason == "draining" else "the proxy stopped: see its log"

    @property
    def code(self) -> int:
        return 0 if self.reason == "draining" else 1


Event = Exchange | Change | Missed | Ended

_KINDS: Final[dict[bytes, type[Event]]] = {
    b"exchange": Exchange,
    b"backend": Change,
    b"missed": Missed,
    b"end": Ended,
}


def events(admin: Admin) -> Iterator[Event]:
    """As they come. Raises AdminError."""
    with admin.stream("/events", _CONTENT_TYPE) as pieces:
        for block in _blocks(pieces):
            event = _event(block)
            if event is not None:
                yield event
    raise AdminError(f"{admin.base} ended the stream without a word: see its log, then try again.")


def _blocks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    buffer = b""
    for piece in pieces:
        *blocks, buffer = (buffer + piece).split(b"\n\n")
        if len(buffer) > EVENT_LIMIT:
            raise AdminError("an event has no end: check the address.")
        yield from blocks


def _event(block: bytes) -> Event | None:
    fields = dict(line.partition(b": ")[::2] for line in block.split(b"\n"))
    kind = _KINDS.get(fields.get(b"event", b""))
    if kind is None:
        return None
    data = fields.get(b"data", b"")
    try:
        event = msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError):
        return None
    if isinstance(event, Exchange):
        event.raw = data
    return event
