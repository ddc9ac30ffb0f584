"""What this process knows of sessions, and what follows from it: how many each backend has, and
which streams must end because their session did.

Rules of this file: no I/O. It hears from the registry (Watcher) and from the gateway. Sessions are counted
by route and backend id, whether the backend is known or not: one that comes later has its sessions already.
"""

from __future__ import annotations

from collections.abc import Mapping

from mcp_proxy.exchange import Exchange
from mcp_proxy.pools import Pool
from mcp_proxy.sessions import SessionKey, SessionRecord


class SessionWatch:
    """Implements Watcher. ``routes``: pools by path; several paths may lead to one pool."""

    def __init__(self, routes: Mapping[str, Pool]) -> None:
        self._routes = routes
        self._owned: dict[tuple[str, str], int] = {}
        """Number of sessions by route and backend id; never 0."""
        self._listening: dict[SessionKey, list[Exchange]] = {}
        """GET streams, open or being opened. A client has one, or two while it reconnects."""

    # --- from the registry -------------------------------------------------------------

    def learnt(self, key: SessionKey, record: SessionRecord) -> None:
        self._count(key.route, record.backend, 1)

    def forgot(self, key: SessionKey, record: SessionRecord, *, is_over: bool) -> None:
        self._count(key.route, record.backend, -1)
        if is_over:
            pool = self._routes.get(key.route)
            backend = None if pool is None else pool.find(record.backend)
            for exchange in self._listening.get(key, ()):
                # By id: a pool of another name may have taken over, with backends of its own.
                if backend is None or (exchange.backend and exchange.backend.id == backend.id):
                    exchange.end_listening_soon()

    def _count(self, route: str, backend_id: str, change: int) -> None:
        owner = route, backend_id
        owned = self._owned.get(owner, 0) + change
        if owned:
            self._owned[owner] = owned
        else:
            del self._owned[owner]
        pool = self._routes.get(route)
        backend = None if pool is None else pool.find(backend_id)
        if pool is not None and backend is not None:
            backend.sessions += change
            pool.recount(backend)

    def recount(self, pool: Pool) -> None:
        """Backends of ``pool``, or routes to it, have come."""
        routes = [route for route, led in self._routes.items() if led is pool]
        for backend in pool.backends:
            backend.sessions = sum(self._owned.get((route, backend.id), 0) for route in routes)
            pool.recount(backend)

    # --- from the gateway --------------------------------------------------------------

    def sent(self, exchange: Exchange) -> None:
        """A request goes to a backend whose answer is a stream that stays."""
        if exchange.key is not None:
            listening = self._listening.setdefault(exchange.key, [])
            if exchange not in listening:
                listening.append(exchange)

    def finished(self, exchange: Exchange) -> None:
        """An exchange that was ``sent`` has ended."""
        listening = self._listening.get(exchange.key) if exchange.key is not None else None
        if listening is not None and exchange in listening:
            listening.remove(exchange)
            if not listening:
                assert exchange.key is not None
                del self._listening[exchange.key]
