"""How much, how long, how many: text in, number out, and back.

Rules of this file: those of ``values.py``. A limit of the limits stands beside its reason.
"""

from __future__ import annotations

import math
import re

from mcp_proxy.config.values import Invalid, kind_of

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_DURATION_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_HINT = "write a number and a unit without a space: 500ms, 5s, 10m, 2h"
_LONGEST_S = 366 * 86400.0
"""A year. Anything longer is a typing error, or means ``none``."""

_SIZE = re.compile(r"(\d+)(B|KiB|MiB|GiB)?", re.ASCII)
_SIZE_BYTES = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE_HINT = "write a whole number of bytes, or with a unit: 512, 64KiB, 4MiB, 1GiB"
_LARGEST_BYTES = 1 << 40
"""1 TiB: a buffer limit above it is a typing error."""


def duration(value: object) -> float:
    """``"500ms"`` → 0.5. Numbers are seconds (the loader refuses bare numbers in files)."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None:
            if value == "none":
                raise Invalid("'none' is not possible here, this wait needs a limit", _DURATION_HINT)
            raise Invalid(f"{value!r} is not a duration", _DURATION_HINT)
        seconds = float(match[1]) * _DURATION_S[match[2]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise Invalid(f"{kind_of(value)} is not a duration", _DURATION_HINT)
    if not 0 <= seconds <= _LONGEST_S or math.isnan(seconds):
        raise Invalid(f"{value!r} is out of range", "durations go from 0s to 366d")
    return seconds


def positive_duration(value: object) -> float:
    """A duration that is not zero."""
    seconds = duration(value)
    if seconds == 0:
        raise Invalid(f"{value!r} would expire at once", "write a duration above zero")
    return seconds


def optional_duration(value: object) -> float | None:
    """A duration above zero; ``"none"`` and null mean no limit."""
    if value is None or value == "none":
        return None
    try:
        return positive_duration(value)
    except Invalid as error:
        raise Invalid(error.message, f"{error.hint}, or none for no limit") from None


def size(value: object) -> int:
    """``"64KiB"`` → 65536. Whole numbers are bytes. Never zero."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise Invalid(f"{value!r} is not a size", _SIZE_HINT)
        count = int(match[1]) * _SIZE_BYTES[match[2]]
    elif isinstance(value, int) and not isinstance(value, bool):
        count = value
    else:
        raise Invalid(f"{kind_of(value)} is not a size", _SIZE_HINT)
    if not 1 <= count <= _LARGEST_BYTES:
        raise Invalid(f"{value!r} is out of range", "sizes go from 1 byte to 1024GiB")
    return count


def optional_size(value: object) -> int | None:
    """A size; ``off`` (which YAML reads as false) and null mean none."""
    if value is None or value is False or value == "off":
        return None
    try:
        return size(value)
    except Invalid as error:
        raise Invalid(error.message, f"{error.hint}, or off") from None


def optional_count(value: object) -> int | None:
    """A whole number above zero; ``"none"`` and null mean no limit."""
    if value is None or value == "none":
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Invalid(f"{value!r} is not a number of things", "write a whole number of 1 or more, or none")
    return value


_SHARE = re.compile(r"(\d{1,3})%", re.ASCII)


def share(value: object) -> float:
    """``"50%"`` → 0.5. Numbers are fractions that were read before."""
    if isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    match = _SHARE.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[1]) > 100:
        raise Invalid(f"{value!r} is not a share", "write a percentage from 0% to 100%, such as 50%")
    return int(match[1]) / 100


def ratio(value: object) -> float:
    """A number from 0 to 1."""
    if isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    raise Invalid(f"{value!r} is not a ratio", "write a number from 0.0 to 1.0, such as 0.01")


def format_duration(seconds: float | None) -> str:
    """The shortest text that ``optional_duration`` reads back as the same number of milliseconds."""
    if seconds is None:
        return "none"
    milliseconds = round(seconds * 1000)
    for unit, factor in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds and milliseconds % factor == 0:
            return f"{milliseconds // factor}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0s"


def format_size(count: int) -> str:
    """The shortest text that ``size`` reads back as exactly ``count``."""
    for unit in ("GiB", "MiB", "KiB"):
        if count % _SIZE_BYTES[unit] == 0:
            return f"{count // _SIZE_BYTES[unit]}{unit}"
    return f"{count}B"


WEIGHT_LIMIT = 1000
"""Largest weight of a backend."""
