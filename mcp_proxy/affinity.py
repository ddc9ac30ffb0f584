"""Soft affinity: the same caller reaches the same backend as long as it is there. Pure.

Rules of this file: every replica of the proxy, in any version of Python, comes to the same choice from the
same configuration: nothing depends on the order of backends, on ``hash()`` or on what was chosen
before. Affinity is a preference. It authorises nothing, and gives way when a backend cannot serve.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from math import log
from typing import Final

from mcp_proxy.backends import Backend
from mcp_proxy.wire import Headers

SEEDS_LIMIT: Final = 4096
"""Backends whose seed is remembered, some 500 bytes each. Where backends are discovered, ids come and go."""

_HASH_BYTES: Final = 8
_BITS: Final = 52
"""Of a hash that become a fraction: with the half that keeps it off 0 and 1 they fit a double exactly."""


class RendezvousHash:
    """Highest random weight (Thaler and Ravishankar), weighted by the logarithm method: a backend of
    weight n gets n shares of the values. A backend that leaves gives its values to all
    others by weight, one that joins takes its share from all; no other value moves."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._seeds: dict[str, hashlib.blake2b] = {}

    def choose(
        self, value: bytes, backends: Sequence[Backend], tried: Collection[str], at_s: float
    ) -> Backend | None:
        """The backend of ``value`` among those whose id is not in ``tried``; None if there is none.
        ``at_s``: the present. Backends to be avoided are chosen only if there is no other."""
        best: Backend | None = None
        highest: tuple[bool, float, str] | None = None
        for backend in backends:
            if backend.id not in tried:
                rank = backend.avoid_until_s <= at_s, self._score(value, backend), backend.id
                if highest is None or rank > highest:
                    best, highest = backend, rank
        return best

    def _score(self, value: bytes, backend: Backend) -> float:
        """Below 0. The first of n arrivals at random, where each comes at the rate of its weight."""
        hasher = self._seed(backend.id).copy()
        hasher.update(value)
        number = int.from_bytes(hasher.digest(), "big") >> (8 * _HASH_BYTES - _BITS)
        return log((number + 0.5) / 2**_BITS) / backend.weight

    def _seed(self, id: str) -> hashlib.blake2b:
        seed = self._seeds.get(id)
        if seed is None:
            if len(self._seeds) >= SEEDS_LIMIT:
                self._seeds.clear()
            # Names of pools and ids of backends hold no NUL, so no two seeds have the same text.
            text = f"{self._pool}\0{id}\0".encode()
            seed = self._seeds[id] = hashlib.blake2b(text, digest_size=_HASH_BYTES)
        return seed


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
