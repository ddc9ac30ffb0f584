"""What is wrong with JSON text that a decoder accepts because it skips what nobody reads. Pure.

Rules of this file:
1. ``fault`` is exact for text that is JSON. For other text it may say anything, because the
   decoder refuses that text anyway; it never raises.
2. A cheap look at the whole text comes first and may suspect too much, never too little. It
   does not know what is inside a string. Only a suspicion pays for the exact look.
3. Every step is one pass in C over at most the text: linear on any input, and no Python object
   per value. 4 MiB made to hurt take tens of milliseconds.
"""

from __future__ import annotations

import re
from itertools import accumulate
from math import isinf
from typing import Final

MAX_DEPTH: Final = 64
"""Arrays and objects inside each other. pydantic gives up near 200, Python near 1,000."""

_FROM: Final = b"0123456789+eE[{,]} \t\r\n"
_TO: Final = b"00000000000ee[[,,,,,,,"
_SHAPE: Final = bytes(_TO[_FROM.index(byte)] if byte in _FROM else 32 for byte in range(256))
"""Digits and plus are 0, e is e, what opens is [, what may follow a number is a comma."""
_suspect_exponent = re.compile(r"0e000+(?:,|\Z)").search
_MANY_DIGITS: Final = "0" * 100
"""Without so many digits and without three in the exponent, a number is below 1e199."""
_large_numbers = re.compile(
    rb"(?<![0-9.eE+])(?<![eE]-)"
    rb"(?:[0-9]{100,}+(?:\.[0-9]++)?(?:[eE]\+?[0-9]++)?|[0-9]++(?:\.[0-9]++)?[eE]\+?[0-9]{3,}+)"
).findall

_NESTING: Final = bytes.maketrans(b"{}", b"[]")
_NOT_NESTING: Final = bytes(set(range(256)) - set(b'"[]{}'))
_STEPS: Final = bytes.maketrans(b"[]", b"\x01\xff")


def fault(text: bytes) -> str | None:
    """One sentence if JSON ``text`` is nested deeper than MAX_DEPTH or has a number that is not
    finite as a double (JavaScript reads it as null, Python as infinity); else None."""
    shape = text.translate(_SHAPE).decode("ascii")
    if shape.count("[") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        return f"The body is nested deeper than {MAX_DEPTH}."
    if (_suspect_exponent(shape) or _MANY_DIGITS in shape) and _overflows(text):
        return "The body has a number that is too large."
    return None


def _unescaped(text: bytes) -> bytes:
    """The text with quotes only where a string begins or ends. A run of backslashes starts with
    an escape, so its pairs from the left are escaped backslashes."""
    return text.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in text else text


def _depth(text: bytes) -> int:
    # Two quotes that meet have nothing between them that counts: an empty string, or the end
    # of one and the start of the next. Without them every bracket stays in or out of a string.
    quoted = _unescaped(text).translate(_NESTING, _NOT_NESTING).replace(b'""', b"")
    nesting = b"".join(quoted.split(b'"')[::2])
    inner = nesting.replace(b"[]", b"")  # takes away one level, and most of real text
    if not inner:
        return min(len(nesting), 1)
    steps = inner.replace(b"[[", b"\x02").replace(b"]]", b"\xfe").translate(_STEPS)
    return 1 + max(accumulate(memoryview(steps).cast("b")))


def _overflows(text: bytes) -> bool:
    bare = b'"'.join(_unescaped(text).split(b'"')[::2])
    return any(isinf(float(number)) for number in _large_numbers(bare))
