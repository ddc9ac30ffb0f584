"""Backends for people: one line each, in a table that fits the terminal.

Rules of this file: pure. What does not fit is left out in the order in which it is missed least: the
middle of long names first, then whole columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mcp_proxy.cli.text import plain, shortened

if TYPE_CHECKING:
    from mcp_proxy.cli.backend_client import Backend

_COLUMNS: Final = ("POOL", "BACKEND", "STATE", "WEIGHT", "SESSIONS", "STREAMS", "IN FLIGHT", "ERA", "DRAIN")
_NUMBERS: Final = {"WEIGHT", "SESSIONS", "STREAMS", "IN FLIGHT"}
_EXPENDABLE: Final = ("WEIGHT", "ERA", "IN FLIGHT", "STREAMS")
_NAME_LEAST: Final = 24
"""Characters of a backend that tell it from others, more or less."""
_GAP: Final = "  "


def table(backends: list[Backend], width: int | None = None) -> list[str]:
    """Lines, the titles first. ``width``: of the terminal; None is no limit."""
    columns = list(_COLUMNS)
    rows = [_cells(backend) for backend in backends]
    widths = {title: max([len(title), *(len(row[title]) for row in rows)]) for title in columns}
    if width is not None:
        _fit(columns, widths, width)
    titles = {title: title for title in columns}
    return [_line(row, columns, widths) for row in (titles, *rows)]


def _cells(backend: Backend) -> dict[str, str]:
    return {
        "POOL": plain(backend.pool),
        "BACKEND": plain(backend.id),
        "STATE": plain(backend.state),
        "WEIGHT": str(backend.weight),
        "SESSIONS": str(backend.sessions),
        "STREAMS": str(backend.streams),
        "IN FLIGHT": str(backend.inflight),
        "ERA": "-" if backend.era == "unknown" else plain(backend.era),
        "DRAIN": _drain(backend),
    }


def _drain(backend: Backend) -> str:
    drain = backend.drain
    if drain is None:
        return "-"
    left = f"{span(drain.left_s)} left" if drain.left_s else "time is over"
    return f"{left}, by {plain(drain.by)}"


def _fit(columns: list[str], widths: dict[str, int], width: int) -> None:
    def excess() -> int:
        return sum(widths[title] + len(_GAP) for title in columns) - len(_GAP) - width

    for title in ("", *_EXPENDABLE):
        if title:
            columns.remove(title)
        if excess() <= widths["BACKEND"] - min(_NAME_LEAST, widths["BACKEND"]):
            break
    widths["BACKEND"] -= max(0, min(excess(), widths["BACKEND"] - _NAME_LEAST))


def _line(row: dict[str, str], columns: list[str], widths: dict[str, int]) -> str:
    cells = []
    for title in columns:
        text, size = shortened(row[title], widths[title]), widths[title]
        cells.append(f"{text:>{size}}" if title in _NUMBERS else f"{text:<{size}}")
    return _GAP.join(cells).rstrip()


def span(seconds: float) -> str:
    """``4m12s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"
