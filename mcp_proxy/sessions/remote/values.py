"""What a registry keeps under a name, as bytes.

Rules of this file: pure. The encoding of equal records is equal, byte for byte: compare-and-set
compares bytes. Every value says its version; what cannot be read is never "nothing there".
JSON, so that operators can read it with the tools they have.
"""

from __future__ import annotations

from typing import Final

import msgspec

from mcp_proxy.sessions import ENDED, SessionRecord, Stored

VERSION: Final = 1
"""To be raised with every change of SessionRecord: a replica that does not know a field would
drop it from sessions that it moves."""

VALUE_LIMIT: Final = 64 * 1024
"""A kept ``initialize`` of 16 KiB in base64, three times over. Longer values are not ours."""


class Unreadable(Exception):
    """The value is damaged, or of a newer version of the proxy."""


class _Value(msgspec.Struct, frozen=True, omit_defaults=True):
    v: int
    session: SessionRecord | None = None
    ended: bool = False


class _Version(msgspec.Struct, frozen=True):
    v: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Value).decode

TOMBSTONE: Final = _encode(_Value(VERSION, ended=True))


def encode(record: SessionRecord) -> bytes:
    return _encode(_Value(VERSION, record))


def decode(value: object) -> Stored:
    """``value`` as a server answered it. Raises Unreadable."""
    if value is None:
        return None
    if type(value) is not bytes or len(value) > VALUE_LIMIT:
        raise Unreadable("not a value of the proxy")
    if value == TOMBSTONE:
        return ENDED
    try:
        decoded = _decode(value)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise Unreadable(_why(value)) from None
    if decoded.v != VERSION:
        raise Unreadable(_why(value))
    if decoded.ended:
        return ENDED
    if decoded.session is None:
        raise Unreadable("damaged")
    return decoded.session


def _why(value: bytes) -> str:
    try:
        version = msgspec.json.decode(value, type=_Version).v
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return "damaged"
    return "damaged" if version == VERSION else f"of version {version}, this proxy reads version {VERSION}"
