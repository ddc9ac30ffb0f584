"""A pool at run time: interchangeable backends, the transport to each, and who is next.

Rules of this file: no I/O but through the transports; what a pool has learnt (stateless or not) lives here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mcp_proxy import clock
from mcp_proxy.affinity import Affinity, RendezvousHash
from mcp_proxy.backends import Backend, Balance
from mcp_proxy.upstream import Transport

PRINCIPAL: Final = Affinity("principal")


class Pool:
    """``transports`` has one entry per backend id."""

    __slots__ = (
        "_balance", "_by_id", "_hash", "_is_stateful",
        "_probing", "_transports", "affinity", "authorization", "backends", "is_stateless",
        "lost_after_s", "name", "reinitializes", "streams", "tap",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        backends: Sequence[Backend],
        transports: Mapping[str, Transport],
        balance: Balance,
        *,
        lost_after_s: float,
        authorization: bytes | None,
        reinitializes: bool = False,
        affinity: Affinity = PRINCIPAL,
        tap: int | None = None,
    ) -> None:
        self.name = name
        self.backends = tuple(backends)
        self.lost_after_s = lost_after_s
        self.authorization = authorization
        """What backends get instead of the client's Authorization, None to pass that on."""
        self.affinity = affinity
        self.tap = tap
        """Size of answers in which to look for what their backend keeps; None: do not look."""
        self.reinitializes = reinitializes
        """Sessions of a lost backend are made anew at another one."""
        self.is_stateless = False
        """Every ``initialize`` so far was answered without a session id: requests may go
        anywhere, and a session id that a client makes up means nothing."""
        self._is_stateful = False
        self.streams = 0
        self._probing: set[str] = set()
        self._balance = balance
        self._hash = RendezvousHash(name)
        self._transports = dict(transports)
        self._by_id = {backend.id: backend for backend in backends}

    def __repr__(self) -> str:
        return f"<Pool {self.name} {list(self.backends)}>"

    def find(self, backend_id: str) -> Backend | None:
        return self._by_id.get(backend_id)

    def transport(self, backend: Backend) -> Transport:
        return self._transports[backend.id]

    def next(self, tried: Sequence[str] = (), affinity: bytes | None = None) -> Backend | None:
        """The backend for a request that no session binds, other than those tried. Requests with the
        same ``affinity`` get the same one while it is there."""
        if affinity is not None:
            return self._hash.choose(affinity, self.backends, tried, clock.now())
        return self._balance.choose(self.backends, tried, clock.now())

    def has_other(self, tried: Sequence[str]) -> bool:
        """``next(tried)`` would find a backend."""
        return any(backend.id not in tried for backend in self.backends)

    def learn_sessions(self, has_sessions: bool) -> None:
        """An ``initialize`` succeeded with or without a session id. One that issued an id
        settles it: an answer without may be an error inside a 200."""
        self._is_stateful = self._is_stateful or has_sessions
        self.is_stateless = not self._is_stateful

    def refused(self, backend: Backend) -> None:
        """A connect failed."""
        backend.refused(clock.now())

    def absent(self, at_s: float) -> list[Backend]:
        """Unreachable backends that it is time to look for. Looking keeps the absence a fact
        when there is no traffic, and ends it as soon as the backend is back."""
        absent = [
            backend
            for backend in self.backends
            if backend.unreachable_since_s is not None
            and backend.avoid_until_s <= at_s
            and backend.id not in self._probing
        ]
        self._probing.update(backend.id for backend in absent)
        return absent

    async def probe(self, backend: Backend) -> None:
        """Look for a backend that ``absent`` named. One probe of a backend at a time; a failure
        counts only if nothing has reached it meanwhile."""
        try:
            is_there = await self.transport(backend).probe()
        finally:
            self._probing.discard(backend.id)
        if is_there is None:
            return
        if is_there:
            backend.reached()
        elif backend.unreachable_since_s is not None:
            backend.refused(clock.now())

    def is_lost(self, backend: Backend) -> bool:
        """Unreachable for so long that its sessions are over."""
        since_s = backend.unreachable_since_s
        return since_s is not None and clock.now() - since_s >= self.lost_after_s

    async def aclose(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()
