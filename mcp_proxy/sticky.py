"""Requests that a session binds to one backend: to whom they go, and what if that one is not there.

Rules of this file: a session's request never goes to a backend that is not the session's. Its owner
gets a moment to come back; until it counts as lost, 503 keeps the client's session alive. A backend
that disowns a session (404) has not run the request: the registry is asked once more, because
the session may have moved, before it is taken for over.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from mcp_proxy.backends import Backend
from mcp_proxy.errors import Fault, UpstreamError
from mcp_proxy.exchange import Exchange
from mcp_proxy.keeper import SessionKeeper
from mcp_proxy.pools import Pool
from mcp_proxy.revival import Reviver
from mcp_proxy.routing import ALLOW_POST, LEGACY_ANYWHERE, Plan
from mcp_proxy.sessions import SessionRecord
from mcp_proxy.wire import Fields, Rejection

PIN_RETRY_S: Final = (0.1, 0.4)
"""Pauses before the owner of a session is dialled or looked for again: a restarting backend or a full accept
queue is over by then, discovery or a reload has brought a new one here as well, and the client is spared a
503."""


class Sender(Protocol):
    """The gateway, as far as it sends."""

    def send(self, exchange: Exchange, pool: Pool, backend: Backend, *, fresh: bool = False) -> None: ...

    def send_anywhere(self, exchange: Exchange) -> None: ...

    def forward(self, exchange: Exchange) -> Fields:
        """The request's headers towards backends, under the session id of the client."""

    def give_up(self, exchange: Exchange, error: UpstreamError) -> None:
        """Refuse the exchange because of a backend's failure."""


class SessionRouting:
    """Routes exchanges that belong to a session, and retries those that have an owner."""

    def __init__(self, sender: Sender, keeper: SessionKeeper, reviver: Reviver) -> None:
        self._sender = sender
        self._keeper = keeper
        self._reviver = reviver

    def route(self, exchange: Exchange, record: SessionRecord | None) -> None:
        """Send the exchange to the owner of its session, which has been looked for. The answer to "no
        owner" is in one place."""
        exchange.record = record
        pool = exchange.pool
        if record is None:
            self._unknown(exchange)
        elif (backend := pool.find(record.backend)) is None:
            self._missing(exchange, record)
        elif backend.drain is not None and pool.is_lost(backend):
            self._lost(exchange, record)
        else:
            self._sender.send(exchange, pool, backend)

    def _unknown(self, exchange: Exchange) -> None:
        if not exchange.pool.is_stateless:
            exchange.refuse(Rejection("session_not_found", id=exchange.id), Fault.CLIENT)
        elif exchange.envelope is not None:
            exchange.plan = LEGACY_ANYWHERE
            self._sender.send_anywhere(exchange)
        else:
            detail = "the backends keep no sessions"
            exchange.refuse(Rejection("method_not_allowed", detail, extra=ALLOW_POST))

    def _missing(self, exchange: Exchange, record: SessionRecord) -> None:
        """The owner is no backend of the pool: it has left, or another replica has heard of it first."""
        if exchange.pool.has_left(record.backend):
            self._lost(exchange, record)
        elif exchange.pin_retries < len(PIN_RETRY_S):
            self._pause(exchange, record)
        else:
            detail = "the backend of the session is not known here yet"
            exchange.refuse(Rejection("backend_unavailable", detail, exchange.id))

    def _lost(self, exchange: Exchange, record: SessionRecord) -> None:
        """The owner is gone for good. A DELETE is done; else the session is made anew where that is
        wanted, and 404 makes the client start again where it is not. What is no session may be asked
        for anywhere: whoever gets the request says that it is not there."""
        if exchange.key is None:
            exchange.record = None
            self._sender.send_anywhere(exchange)
        elif exchange.plan is not None and exchange.plan.ends_session:
            self._keeper.end(exchange.key)
            exchange.answer(204, [], b"")
        elif self._may_revive(exchange, record):
            exchange.doubts -= 1
            self._reviver.revive(exchange, record, self._sender.forward(exchange), self.route)
        else:
            self._keeper.end(exchange.key)
            exchange.refuse(Rejection("session_not_found", id=exchange.id), Fault.BACKEND)

    def _may_revive(self, exchange: Exchange, record: SessionRecord) -> bool:
        return exchange.pool.reinitializes and bool(record.initialize) and exchange.doubts > 0

    # --- what backends say -----------------------------------------------------------

    def relay(self, exchange: Exchange, plan: Plan, status: int, headers: Fields, length: int | None) -> None:
        """Pass on the answer to a DELETE, or a 404: the backend does not know the session (any more)."""
        if not plan.ends_session:
            exchange.store(status, headers, length)
            self._keeper.doubt(exchange, self._reconsider)
        elif 200 <= status < 300 or status == 404:
            self._keeper.conclude(exchange, status, headers, length)
        else:
            exchange.relay(status, headers, length)

    def _reconsider(self, exchange: Exchange, record: SessionRecord | None) -> None:
        """``record``: the session as the registry has it now."""
        known, key = exchange.record, exchange.key
        assert known is not None
        assert key is not None
        if record is not None and record.generation > known.generation and exchange.doubts > 0:
            exchange.doubts -= 1
            exchange.retreat()
            self.route(exchange, record)
        elif record is not None and self._may_revive(exchange, record):
            exchange.retreat()
            self._lost(exchange, record)
        else:
            self._keeper.end(key)
            exchange.stored()

    # --- what keeps them from answering ----------------------------------------------

    def retry(self, exchange: Exchange, backend: Backend, error: UpstreamError) -> None:
        """The owner could not be reached, or failed: nothing is retried that may have run."""
        pool, record = exchange.pool, exchange.record
        assert record is not None
        if error.sent or error.kind == "exhausted":
            self._sender.give_up(exchange, error)
        elif pool.is_lost(backend):
            exchange.retreat()
            self._lost(exchange, record)
        elif exchange.pin_retries < len(PIN_RETRY_S):
            exchange.retreat()
            self._pause(exchange, record)
        else:
            self._sender.give_up(exchange, error)

    def _pause(self, exchange: Exchange, record: SessionRecord) -> None:
        pause_s = PIN_RETRY_S[exchange.pin_retries]
        exchange.pin_retries += 1
        exchange.pending = asyncio.get_running_loop().call_later(pause_s, self._resend, exchange, record)

    def _resend(self, exchange: Exchange, record: SessionRecord) -> None:
        """To the owner as it is now: the pool may have forgotten it during the pause. One that it does not
        know may have a name by now, which a sealed id does not tell; or the session may have moved."""
        exchange.pending = None
        try:
            if exchange.key is None or exchange.pool.find(record.backend) is not None:
                self.route(exchange, record)
            else:
                self._keeper.find(exchange, exchange.key, self.route)
        except Exception:
            exchange.crash()
