"""The time that a report is about, as people write it.

Rules of this file: pure.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_AGO: Final = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(text: str, at_s: float) -> str:
    """A time as access lines have it in ``ts``, so that it can be compared with one.

    ``text``: ISO 8601, UTC unless it says otherwise (``2025-11-21``, ``2025-11-21T14:30``,
    ``2025-11-21T14:30:00+01:00``), or so long before ``at_s`` (Unix seconds): ``90s 30m 2h 7d``. Raises
    ValueError."""
    try:
        return _text(_parsed(text, at_s))
    except OverflowError:  # before the year 1
        raise ValueError(text) from None


def _parsed(text: str, at_s: float) -> datetime:
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return datetime.fromtimestamp(at_s, UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _text(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
