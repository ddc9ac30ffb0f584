"""Where the backends of a pool are found, when the configuration does not name them.

Rules of this package: a source implements ``Source`` of ``mcp_proxy.backends`` and is the one file that
knows its library, whose errors end there. A look tells everything or nothing: half an answer is a
``LookError``. What is published goes through ``Steady``. ``srv`` and ``kubernetes`` need an extra:
importing them without it raises ``StartupError``, so import them where they are wanted.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from mcp_proxy.backends import Endpoint


class Answer(msgspec.Struct, frozen=True):
    """What one look has found. No endpoints: it is certain that there are none."""

    endpoints: tuple[Endpoint, ...]
    ttl_s: float | None = None
    """For how long it holds, if whoever answered knows."""


class LookError(Exception):
    """A look has told nothing. The message is for ``/readyz?verbose`` and names no address; ``detail``
    is for the log."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


def merged(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """Each address once, with the largest weight, and open if it is so anywhere."""
    by_address: dict[tuple[str, int], Endpoint] = {}
    for endpoint in endpoints:
        known = by_address.setdefault((endpoint.host, endpoint.port), endpoint)
        if known is not endpoint:
            by_address[endpoint.host, endpoint.port] = msgspec.structs.replace(
                known,
                weight=max(known.weight, endpoint.weight),
                is_open=known.is_open or endpoint.is_open,
            )
    return tuple(sorted(by_address.values()))
