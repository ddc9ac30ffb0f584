"""What of a request keeps it with a backend. Pure.

Rules of this file: affinity is a preference. It authorises nothing, and gives way when a backend cannot
serve. Which backend a value belongs to is said by ``backends/rendezvous.py``.
"""

from __future__ import annotations

import re
from typing import Final

from mcp_proxy.wire import Headers

_HEADER: Final = "header:"
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+", re.ASCII)


class Affinity:
    """What of a request keeps it with a backend: ``setting`` is ``principal``, ``client`` (the address) or
    ``header:`` and a lower-case name. Raises ValueError for any other."""

    def __init__(self, setting: str) -> None:
        name = setting.removeprefix(_HEADER)
        if setting not in ("principal", "client") and (name == setting or not _NAME.fullmatch(name)):
            raise ValueError("affinity is principal, client or header:<lower-case name>")
        self._setting = setting
        self._header = name.encode()

    def value(self, principal: str, client: str, headers: Headers) -> bytes | None:
        """What to hash, or None if this request has no affinity and is balanced like any other.

        A header that comes more than once is none: which line a proxy in front has set, and
        which the client, cannot be told, and the choice would depend on who adds lines where."""
        if self._setting == "principal":
            return principal.encode() or None
        if self._setting == "client":
            return client.encode() or None
        values = [value for name, value in headers if name == self._header]
        return (values[0] or None) if len(values) == 1 else None
