"""The seam to policies that judge who asks.

A principal is who a request is made for, as far as somebody vouches for it. Sessions belong to the
principal that created them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

from mcp_proxy.wire import Request


class Principal(NamedTuple):
    """Two requests are made for the same principal if issuer and subject are equal."""

    issuer: str
    """Who vouches: the issuer of a token (RFC 9068 section 2.2), or the name of a list of API keys."""
    subject: str
    """Whom for: the subject of the token, or the id of the API key, never the key itself."""

    @property
    def digest(self) -> str:
        """32 hex digits that stand for the principal in records and logs."""
        text = f"{len(self.issuer)}:{self.issuer}{self.subject}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=16).hexdigest()


Identify = Callable[[Request], Principal | None]
"""Who a request is made for, judged by its head alone; None: nobody in particular. Must not raise.
The answer holds for every later request with the same head."""


def anonymous(request: Request) -> None:
    """Nobody in particular: routes that do not authenticate."""
