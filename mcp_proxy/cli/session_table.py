"""Sessions for people: one line each in a list, one line per fact in detail."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mcp_proxy.cli.text import plain

if TYPE_CHECKING:
    from mcp_proxy.cli.session_client import Session

_TITLES = ("NAME", "POOL", "BACKEND", "AGE", "LEFT", "MOVES")
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"))


def tables(pages: Iterable[list[Session]]) -> Iterator[str]:
    """The lines of each page, and the titles before the first; a column only ever gets wider."""
    widths = [len(title) for title in _TITLES]
    titles = [_TITLES]
    for page in pages:
        if not page:
            continue
        cells = [_cells(session) for session in page]
        widths = [max(width, *(len(row[at]) for row in cells)) for at, width in enumerate(widths)]
        yield "\n".join(_line(row, widths) for row in titles + cells)
        titles = []


def facts(session: Session) -> list[str]:
    now = "" if session.created is None else f" ({_since(session.created)} ago)"
    moves = f"{session.generation}" + (", its state there is new" if session.moved else "")
    pairs = [
        ("name", session.name),
        ("route", session.route or "not known: its client was not here yet"),
        ("pool", session.pool or "none of this configuration"),
        ("backend", session.backend),
        ("principal", session.principal or "none: the route does not authenticate"),
        ("created", "not known" if session.created is None else _date(session.created) + now),
        ("expires", "not known" if session.expires_in_s is None else f"in {_span(session.expires_in_s)}"),
        ("moves", moves),
    ]
    return [f"{label:<9}  {plain(text)}" for label, text in pairs]


def _cells(session: Session) -> tuple[str, ...]:
    return (
        plain(session.name),
        plain(session.pool) or "-",
        plain(session.backend),
        "-" if session.created is None else _since(session.created),
        "-" if session.expires_in_s is None else _span(session.expires_in_s),
        str(session.generation),
    )


def _line(cells: Iterable[str], widths: list[int]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def _since(unix_s: int) -> str:
    return _span(max(0.0, time.time() - unix_s))


def _span(seconds: float) -> str:
    """The largest unit that fits, as in ``7h``."""
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def _date(unix_s: int) -> str:
    try:
        return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):  # a year that no calendar has
        return str(unix_s)
