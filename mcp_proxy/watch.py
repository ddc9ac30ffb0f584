"""What this process knows of sessions, and what follows from it: how many each backend has, and
which streams must end because their session did.

Rules of this file: no I/O. It hears from the registry (Watcher) and from the gateway.
"""

from __future__ import annotations

from collections.abc import Mapping

from mcp_proxy.backends import Backend
from mcp_proxy.exchange import Exchange
from mcp_proxy.pools import Pool
from mcp_proxy.sessions import SessionKey, SessionRecord


class SessionWatch:
    """Implements Watcher. ``routes``: pools by path; several paths may lead to one pool."""

    def __init__(self, routes: Mapping[str, Pool]) -> None:
        self._routes = routes
        self._listening: dict[SessionKey, list[Exchange]] = {}
        """GET streams, open or being opened. A client has one, or two while it reconnects."""

    def learnt(self, key: SessionKey, record: SessionRecord) -> None:
        backend = self._owner(key, record)
        if backend is not None:
            backend.sessions += 1

    def forgot(self, key: SessionKey, record: SessionRecord, *, is_over: bool) -> None:
        backend = self._owner(key, record)
        if backend is not None:
            backend.sessions -= 1
        if is_over:
            for exchange in self._listening.get(key, ()):
                if exchange.backend is backend or backend is None:
                    exchange.end_listening_soon()

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

    def _owner(self, key: SessionKey, record: SessionRecord) -> Backend | None:
        pool = self._routes.get(key.route)
        return None if pool is None else pool.find(record.backend)
