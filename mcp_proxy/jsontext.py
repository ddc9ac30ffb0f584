"""What decoders of JSON hide: doubtful text in values that they skip, members that come twice. Pure.

Rules of this file:
1. ``fault`` is exact for text that is JSON. For other text it may say anything, because the
   decoder refuses that text anyway; it never raises.
2. A cheap look at the whole text comes first, which does not know what is inside a string: it
   may suspect too much, never too little. Only a suspicion pays for the exact look.
3. Every step is a few passes in C over at most the text: linear on any input. Python objects
   are made for a bounded number of values, so that 4 MiB of ``[],`` do not become 100.
"""

from __future__ import annotations

import re
from itertools import accumulate
from math import isinf
from typing import Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

MAX_DEPTH: Final = 64
"""Arrays and objects inside each other. pydantic gives up near 200, Python near 1,000."""
MAX_LARGE: Final = 50_000
"""Numbers with 100 digits or a three-digit exponent: each is looked at for about 0.5 µs."""
MAX_MEMBERS: Final = 256
"""Members of one object that is read. Tool arguments, which may have more, are skipped."""
MAX_ELEMENTS: Final = 128
"""Elements of one array that is read, a batch: each costs about 10 µs while all others wait."""
CHUNK_BYTES: Final = 65536
"""Text that is cut into strings at once: bounds the pieces that exist at the same time."""

# Text

_FROM: Final = b"0123456789+eE[{,]} \t\r\n"
_TO: Final = b"00000000000ee[[,,,,,,,"
_SHAPE: Final = bytes(_TO[_FROM.index(byte)] if byte in _FROM else 46 for byte in range(256))
"""Digits and plus become 0, e is e, what opens is [, what may follow a number is a comma."""
_suspect_exponent = re.compile(r"e000++(?:,|\Z)").search
_MANY_DIGITS: Final = "0" * 100
"""Without so many digits in a row and three in the exponent, a number is below 1e199."""
_large_numbers = re.compile(
    rb"[0-9](?<![0-9.eE+].)(?<![eE]-.)"
    rb"(?:[0-9]{99,}+(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?"
    rb"|[0-9]*+(?:\.[0-9]++)?[eE]\+?[0-9]{3,}+(?=[\s,\]}]|\Z))",
    re.DOTALL,
).finditer

_NESTING: Final = bytes.maketrans(b"{}", b"[]")
_NOT_NESTING: Final = bytes(set(range(256)) - set(b'"[]{}'))
_STEPS: Final = bytes.maketrans(b"[]", b"\x01\xff")


def fault(text: bytes) -> str | None:
    """One sentence if ``text`` is not UTF-8, or if it is JSON that is nested deeper than
    MAX_DEPTH or has a number that is not finite as a double (JavaScript writes it as null,
    Python as Infinity) or has more than MAX_LARGE large numbers; else None."""
    try:
        if not text.isascii():
            text.decode()
    except UnicodeDecodeError:
        return "The body is not UTF-8."
    shape = text.translate(_SHAPE).decode("ascii")
    if shape.count("[") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        return f"The body is nested deeper than {MAX_DEPTH}."
    if (_suspect_exponent(shape) or _MANY_DIGITS in shape) and _overflows(text):
        return "The body has a number that is too large, or too many large numbers."
    return None


def _unescaped(text: bytes) -> bytes:
    """The text with quotes only where a string begins or ends. A run of backslashes starts with
    an escape, so its pairs from the left are escaped backslashes."""
    return text.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in text else text


def _depth(text: bytes) -> int:
    # Two quotes that meet have nothing between them that counts: an empty string, or the end
    # of one and the start of the next. Without them every bracket stays in or out of a string.
    quoted = _unescaped(text).translate(_NESTING, _NOT_NESTING).replace(b'""', b"")
    nesting, levels = b"".join(_bare(quoted)), 0
    while nesting and len(inner := nesting.replace(b"[]", b"")) * 4 <= len(nesting) * 3:
        nesting, levels = inner, levels + 1  # real text is broad: it is gone after a few levels
    for run in (8, 2):  # steps in one direction may be taken at once: the peak is the same
        nesting = nesting.replace(b"[" * run, bytes([run])).replace(b"]" * run, bytes([256 - run]))
    steps = memoryview(nesting.translate(_STEPS)).cast("b")
    return levels + max(accumulate(steps, initial=0))


def _bare(quoted: bytes) -> list[bytes]:
    """What is not between quotes."""
    pieces, is_inside = [], 0
    for at in range(0, len(quoted), CHUNK_BYTES):
        parts = quoted[at : at + CHUNK_BYTES].split(b'"')
        pieces.append(b"".join(parts[is_inside::2]))
        is_inside ^= len(parts) - 1 & 1
    return pieces


def _overflows(text: bytes) -> bool:
    text = _unescaped(text)
    quotes = at = 0
    for count, number in enumerate(_large_numbers(text)):
        quotes += text.count(b'"', at, number.start())
        at = number.start()
        if count == MAX_LARGE or (quotes % 2 == 0 and isinf(float(number.group()))):
            return True
    return False


# Values


class _Key:
    """A key that equals no other, so that a dict keeps members that come twice."""

    __slots__ = ()


_Members = dict[_Key, Raw]
_Elements = msgspec.defstruct(
    "_Elements",
    [(f"element_{n}", Raw | UnsetType, UNSET) for n in range(MAX_ELEMENTS)],
    array_like=True,
    forbid_unknown_fields=True,
)
"""An array whose bound stops the decoder; a list would be read to its end first."""
_decode_elements = msgspec.json.Decoder(_Elements).decode


def members(text: bytes) -> list[tuple[str, Raw]]:
    """All members of an object in their order, unescaped names with raw values. Raises
    msgspec.ValidationError if it is not an object or has more than MAX_MEMBERS."""
    names: list[str] = []

    def remember(_type: type, name: str) -> _Key:
        if len(names) == MAX_MEMBERS:
            raise ValueError
        names.append(name)
        return _Key()

    values = msgspec.json.decode(text, type=_Members, dec_hook=remember).values()
    return list(zip(names, values, strict=True))


def elements(text: bytes) -> list[Raw]:
    """All elements of an array, raw. Raises msgspec.ValidationError if it is not an array or
    has more than MAX_ELEMENTS."""
    return [raw for raw in msgspec.structs.astuple(_decode_elements(text)) if raw is not UNSET]
