"""What ``mcp-proxy report`` makes of access logs: the line it needs, and the figures it finds."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

DIMENSIONS: Final = ("route", "method", "tool", "principal")
"""What exchanges can be grouped by, in the order in which a key has them."""


Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""Bytes. What every reader of JSON can hold; more than that, in one line, is nobody's access log."""


class Line(msgspec.Struct, frozen=True, gc=False):
    """What is needed of an access line. Lines of every version have the fields without a default."""

    ts: str
    route: str
    http_method: str
    method: str
    name: str
    status: int
    duration_ms: float
    bytes_in: Size
    bytes_out: Size
    stream: bool
    end: str
    overhead_ms: float | None = None
    principal: str = ""


class Row(msgspec.Struct, frozen=True):
    """The figures of one group. Quantiles are None where nothing was timed."""

    key: tuple[str, ...]
    """One text per dimension of the report; ``()`` for what belongs to no single group."""
    calls: int
    streams: int
    errors: int
    bytes_in: int
    bytes_out: int
    p50_ms: float | None
    p99_ms: float | None
    overhead_p50_ms: float | None
    overhead_p99_ms: float | None


class Report(msgspec.Struct, frozen=True):
    """Everything that is printed, in whatever format."""

    by: tuple[str, ...]
    rows: list[Row]
    """In the order asked for, at most as many as asked for."""
    other: Row | None
    """All that is in no row; None when that is nothing."""
    total: Row
    first: str
    """``ts`` of the earliest line that counts, ``""`` without one."""
    last: str
    skipped: int
    """Lines before or after the time asked for."""
    folded: int
    """Exchanges whose group was one too many; they are part of ``other``."""
