"""Sessions on their way between exchanges and the registry.

Rules of this file: a registry may answer at once or later, and it may fail; both are dealt
with here, so that the gateway sees one answer. Cannot tell is 503, never 404: a 404 makes
clients drop their session. A record is written before the head that names the session leaves;
a session that nobody was told of is ended again, here and at its backend.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from mcp_proxy.errors import Fault, StoreError, UpstreamError
from mcp_proxy.exchange import Exchange, State
from mcp_proxy.sessions import SessionKey, SessionRecord, SessionStore
from mcp_proxy.tasks import Tasks
from mcp_proxy.telemetry import Meters
from mcp_proxy.upstream import Call, Outgoing
from mcp_proxy.wire import Fields, Rejection

logger = logging.getLogger("mcp_proxy")

Found = Callable[[Exchange, SessionRecord | None], None]
"""Gets the owner of the exchange's session, None if there certainly is none."""


class SessionKeeper:
    """Owns the dealings with ``store``; the store itself belongs to the gateway's owner."""

    def __init__(self, store: SessionStore, tasks: Tasks, meters: Meters) -> None:
        self.store = store
        self._tasks = tasks
        self._meters = meters

    # --- who owns it -----------------------------------------------------------------

    def find(self, exchange: Exchange, key: SessionKey, found: Found) -> None:
        """Call ``found``, now or later; or refuse the exchange."""
        try:
            owner = self.store.get(key)
        except StoreError as error:
            self._failed(exchange, "get", error)
            return
        if owner is None or type(owner) is SessionRecord:
            self._meters.lookup(self.store.name, "miss" if owner is None else "hit")
            found(exchange, owner)
        else:
            assert isinstance(owner, Awaitable)
            exchange.pending = self._tasks.spawn(self._find_cold(exchange, owner, found))

    async def _find_cold(
        self, exchange: Exchange, lookup: Awaitable[SessionRecord | None], found: Found
    ) -> None:
        try:
            owner = await lookup
            exchange.pending = None
            self._meters.lookup(self.store.name, "miss" if owner is None else "hit")
            found(exchange, owner)
        except StoreError as error:
            exchange.pending = None
            self._failed(exchange, "get", error)
        except Exception:
            exchange.pending = None
            exchange.crash()

    # --- a new one -------------------------------------------------------------------

    def learn(
        self, exchange: Exchange, key: SessionKey, status: int, headers: Fields, length: int | None
    ) -> None:
        """Write the session down, then relay the head that names it."""
        assert exchange.backend is not None
        exchange.key = key
        exchange.store(status, headers, length)
        try:
            created = self.store.create(key, SessionRecord(exchange.backend.id))
        except StoreError as error:
            self._not_created(exchange, key, error)
            return
        if isinstance(created, bool):
            self._created(exchange, key, created)
        else:
            # Not ``pending``: a client that leaves must not interrupt it half done.
            self._tasks.spawn(self._learn_cold(exchange, key, created))

    async def _learn_cold(self, exchange: Exchange, key: SessionKey, creation: Awaitable[bool]) -> None:
        try:
            self._created(exchange, key, await creation)
        except StoreError as error:
            self._not_created(exchange, key, error)
        except Exception:
            exchange.crash()

    def _created(self, exchange: Exchange, key: SessionKey, is_new: bool) -> None:
        assert exchange.backend is not None
        if is_new:
            exchange.backend.sessions += 1
            if exchange.state is State.STORING:
                exchange.stored()
            else:  # the client has left, nobody was told the id
                self.end(key)
                self._say_goodbye(exchange, key)
        elif exchange.state is State.STORING:
            self.find(exchange, key, self._settle_conflict)

    def _settle_conflict(self, exchange: Exchange, owner: SessionRecord | None) -> None:
        """A backend issued an id that exists. Its own may come again, after a restart; that of
        another backend must not be taken over."""
        assert exchange.backend is not None
        if owner is not None and owner.backend == exchange.backend.id:
            exchange.stored()
        else:
            logger.error("%r issued a session id that exists already", exchange.backend)
            exchange.refuse(Rejection("session_conflict", id=exchange.id), Fault.BACKEND)

    def _not_created(self, exchange: Exchange, key: SessionKey, error: StoreError) -> None:
        self._say_goodbye(exchange, key)
        self._failed(exchange, "create", error)

    def _say_goodbye(self, exchange: Exchange, key: SessionKey) -> None:
        """End, at its backend, a session that no client knows. Best effort: backends reap
        idle sessions themselves, but only after half an hour or so."""
        backend, forward = exchange.backend, exchange.admission.forward
        assert backend is not None
        assert forward is not None
        headers = Fields(
            [pair for pair in forward if pair[0] not in _OF_THE_BODY] + [(b"mcp-session-id", key.session_id)]
        )
        outgoing = Outgoing(b"DELETE", backend.path, headers, b"")
        farewell = _Farewell()
        farewell.begin(exchange.pool.transport(backend).send(outgoing, farewell))

    # --- its end ---------------------------------------------------------------------

    def end(self, key: SessionKey) -> None:
        """Forget the session. A failure is counted and changes no answer."""
        try:
            deletion = self.store.delete(key)
        except StoreError as error:
            self._count("delete", error)
        else:
            if deletion is not None:
                self._tasks.spawn(self._end_cold(deletion))

    async def _end_cold(self, deletion: Awaitable[None]) -> None:
        try:
            await deletion
        except StoreError as error:
            self._count("delete", error)

    # --- failures --------------------------------------------------------------------

    def _failed(self, exchange: Exchange, operation: str, error: StoreError) -> None:
        self._count(operation, error)
        if operation == "get":
            self._meters.lookup(self.store.name, "error")
        if exchange.state is not State.DONE:
            exchange.refuse(Rejection("store_unavailable", id=exchange.id))

    def _count(self, operation: str, error: StoreError) -> None:
        logger.warning("session registry: %s failed: %s", operation, error)
        self._meters.store_error(operation)


_OF_THE_BODY = frozenset((b"content-type", b"accept", b"mcp-session-id"))


FAREWELL_S: Final = 5.0
"""A backend that has not answered by then keeps its session until it reaps it."""


class _Farewell:
    """Receives an answer that nobody waits for, within bounds."""

    def __init__(self) -> None:
        self._call: Call | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, call: Call) -> None:
        self._call = call
        self._timer = asyncio.get_running_loop().call_later(FAREWELL_S, self._expire)

    def on_whole(self, status: int, headers: Fields, body: bytes) -> None:
        self._over()

    def on_head(self, status: int, headers: Fields, length: int | None) -> None: ...

    def on_body(self, chunk: bytes) -> None: ...

    def on_end(self) -> None:
        self._over()

    def on_error(self, error: UpstreamError) -> None:
        self._over()

    def _expire(self) -> None:
        if self._call is not None:
            self._call.cancel()
        self._over()

    def _over(self) -> None:
        self._call = None
        if self._timer is not None:
            self._timer.cancel()
