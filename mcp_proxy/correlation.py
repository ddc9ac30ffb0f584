"""``X-Request-Id``: one name for a request in the logs of everybody it passes.

Rules of this file: an id is believed only from a trusted proxy, and only if it is short and plain, because it
is written into logs and sent on to backends. Everybody else's request gets one of ours. It travels as the
header line that it is, because that is what doors and transports write.
"""

from __future__ import annotations

import re
from random import getrandbits
from typing import Final

from mcp_proxy.wire import Headers

NAME: Final = b"x-request-id"

_PLAIN: Final = re.compile(rb"[A-Za-z0-9._~+/=:@-]{1,128}")


def new() -> bytes:
    """A header line with a new id, 32 hex digits, with its CR LF. Random, because a number would tell every
    client how many others there are; nobody relies on its being hard to guess."""
    return b"x-request-id: %b\r\n" % getrandbits(128).to_bytes(16, "big").hex().encode()


def given(headers: Headers) -> bytes:
    """The line with the id of a request from a trusted proxy; empty if it has not one that can be used."""
    values = [value for name, value in headers if name == NAME]
    if len(values) != 1 or _PLAIN.fullmatch(values[0]) is None:
        return b""
    return b"%b: %b\r\n" % (NAME, values[0])


def id_of(line: bytes) -> str:
    """The id in a line of this file."""
    return line[len(NAME) + 2 : -2].decode("ascii")
