"""Sessions on their way between exchanges and the registry.

Rules of this file: a registry may answer at once or later, and it may fail; both are dealt
with here, so that the gateway sees one answer. Cannot tell is 503, never 404: a 404 makes
clients drop their session. What a head says about a session is written before the head leaves;
a session that nobody was told of is ended again, here and at its backend.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from mcp_proxy.clock import now
from mcp_proxy.errands import say_goodbye
from mcp_proxy.errors import Fault, StoreError
from mcp_proxy.exchange import Exchange, State
from mcp_proxy.sessions import INITIALIZE_LIMIT, TOUCHES, SessionKey, SessionRecord, SessionStore
from mcp_proxy.tasks import Tasks
from mcp_proxy.telemetry import Meters
from mcp_proxy.wire import Fields, Rejection

logger = logging.getLogger("mcp_proxy")

QUIET_S: Final = 5.0
"""Between two lines of the log about failures; the metric counts them all."""

Found = Callable[[Exchange, SessionRecord | None], None]
"""Gets the exchange's session, None if there certainly is none for its principal."""


class SessionKeeper:
    """Owns the dealings with ``store``; the store itself belongs to the gateway's owner."""

    def __init__(
        self, store: SessionStore, tasks: Tasks, meters: Meters, *, ttl_s: float = float("inf")
    ) -> None:
        self.store = store
        self._touch_s = ttl_s / TOUCHES
        self._touch_due_s = 0.0
        self._tasks = tasks
        self._meters = meters
        self._quiet_until_s = 0.0

    # --- who owns it -----------------------------------------------------------------

    def find(self, exchange: Exchange, key: SessionKey, found: Found) -> None:
        """Call ``found``, now or later; or refuse the exchange."""
        try:
            record = self.store.get(key, exchange.admission.principal)
        except StoreError as error:
            self._failed(exchange, "get", error)
            return
        if record is None or type(record) is SessionRecord:
            self._meters.lookup(self.store.name, "miss" if record is None else "hit")
            found(exchange, record)
        else:
            assert isinstance(record, Awaitable)
            exchange.pending = self._tasks.spawn(self._find_cold(exchange, record, found))

    async def _find_cold(
        self, exchange: Exchange, lookup: Awaitable[SessionRecord | None], found: Found
    ) -> None:
        try:
            record = await lookup
            exchange.pending = None
            self._meters.lookup(self.store.name, "miss" if record is None else "cold")
            found(exchange, record)
        except StoreError as error:
            exchange.pending = None
            self._failed(exchange, "get", error)
        except Exception:
            exchange.pending = None
            exchange.crash()

    def doubt(self, exchange: Exchange, found: Found) -> None:
        """A backend disowned the exchange's session, or is lost: ask for its owner once more. As
        ``find``, but of an exchange that is STORING or ROUTING; if the registry fails, ``found`` gets
        what was known before, unless the session may have moved."""
        key, record = exchange.key, exchange.record
        assert key is not None
        assert record is not None
        again = self.store.reread(key, record.principal)
        if again is None or type(again) is SessionRecord:
            found(exchange, again)
        else:
            assert isinstance(again, Awaitable)
            exchange.pending = self._tasks.spawn(self._doubt_cold(exchange, again, record, found))

    async def _doubt_cold(
        self,
        exchange: Exchange,
        lookup: Awaitable[SessionRecord | None],
        record: SessionRecord,
        found: Found,
    ) -> None:
        try:
            try:
                again = await lookup
            except StoreError as error:
                exchange.pending = None
                if exchange.pool.reinitializes:
                    self._failed(exchange, "get", error)
                    return
                self._count("get", error)
                again = record
            exchange.pending = None
            found(exchange, again)
        except Exception:
            exchange.pending = None
            exchange.crash()

    # --- a new one -------------------------------------------------------------------

    def issue(self, exchange: Exchange, session_id: bytes) -> tuple[SessionKey, SessionRecord]:
        """How a session that a backend has just made is called and stored. Raises StoreError if there
        is no legal name for it."""
        admission, backend = exchange.admission, exchange.backend
        assert backend is not None
        initialize = b""
        if exchange.pool.reinitializes:
            if len(exchange.body) <= INITIALIZE_LIMIT:
                initialize = exchange.body
            else:
                logger.warning(
                    "an initialize of %d bytes is too long to be kept: its session will end with %s",
                    len(exchange.body),
                    backend.id,
                )
        key = SessionKey(admission.route, session_id)
        record = SessionRecord(
            backend.id, admission.principal, initialize=initialize, created_s=int(time.time())
        )
        return self.store.issue(key, record)

    def learn(
        self,
        exchange: Exchange,
        key: SessionKey,
        record: SessionRecord,
        status: int,
        headers: Fields,
        length: int | None,
    ) -> None:
        """Write the session down, then relay the head that names it."""
        exchange.key, exchange.record = key, record
        exchange.store(status, headers, length)
        try:
            created = self.store.create(key, record)
        except StoreError as error:
            self._not_created(exchange, error)
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
            self._not_created(exchange, error)
        except Exception:
            exchange.crash()

    def _created(self, exchange: Exchange, key: SessionKey, is_new: bool) -> None:
        if is_new:
            if exchange.state is State.STORING:
                exchange.stored()
            else:  # the client has left, nobody was told the id
                self.end(key)
                self._dismiss(exchange)
        elif exchange.state is State.STORING:
            self.find(exchange, key, self._settle_conflict)

    def _settle_conflict(self, exchange: Exchange, owner: SessionRecord | None) -> None:
        """A backend issued an id that exists. Its own may come again, after a restart; that of
        another backend or principal must not be taken over."""
        assert exchange.backend is not None
        if owner is not None and owner.backend == exchange.backend.id and not owner.upstream_id:
            exchange.record = owner
            exchange.stored()
        else:
            logger.error("security: %r issued a session id that belongs to somebody else", exchange.backend)
            exchange.refuse(Rejection("session_conflict", id=exchange.id), Fault.BACKEND)

    def _not_created(self, exchange: Exchange, error: StoreError) -> None:
        self._dismiss(exchange)
        self._failed(exchange, "create", error)

    def _dismiss(self, exchange: Exchange) -> None:
        key, record = exchange.key, exchange.record
        assert key is not None
        assert record is not None
        self.say_goodbye(exchange, record.upstream_id or key.session_id)

    def say_goodbye(self, exchange: Exchange, session_id: bytes) -> None:
        """End, at its backend, a session that no client knows. ``session_id``: the backend's own."""
        backend, forward = exchange.backend, exchange.admission.forward
        assert backend is not None
        assert forward is not None
        self._tasks.spawn(say_goodbye(exchange.pool, backend, session_id, forward))

    # --- its end ---------------------------------------------------------------------

    def end(self, key: SessionKey) -> None:
        """Forget the session. A failure is counted and changes no answer."""
        deletion = self._delete(key)
        if deletion is not None:
            self._tasks.spawn(self._end_cold(deletion))

    def conclude(self, exchange: Exchange, status: int, headers: Fields, length: int | None) -> None:
        """The backend has ended the session: write that down, then relay the head that says it. A
        registry that fails delays the head, and changes nothing: it will be told later."""
        assert exchange.key is not None
        deletion = self._delete(exchange.key)
        if deletion is None:
            exchange.relay(status, headers, length)
        else:
            exchange.store(status, headers, length)
            self._tasks.spawn(self._conclude_cold(exchange, deletion))

    async def _conclude_cold(self, exchange: Exchange, deletion: Awaitable[None]) -> None:
        try:
            await self._end_cold(deletion)
            if exchange.state is State.STORING:
                exchange.stored()
        except Exception:
            exchange.crash()

    def _delete(self, key: SessionKey) -> Awaitable[None] | None:
        try:
            return self.store.delete(key)
        except StoreError as error:
            self._count("delete", error)
            return None

    async def _end_cold(self, deletion: Awaitable[None]) -> None:
        try:
            await deletion
        except StoreError as error:
            self._count("delete", error)

    # --- its use ---------------------------------------------------------------------

    def touch(self, live: Iterable[Exchange], at_s: float) -> None:
        """Whatever is open on a session keeps it alive; a job for every tick."""
        if at_s < self._touch_due_s:
            return
        self._touch_due_s = at_s + self._touch_s
        for exchange in live:
            if exchange.record is not None and exchange.key is not None:
                self.store.touch(exchange.key)

    # --- failures --------------------------------------------------------------------

    def _failed(self, exchange: Exchange, operation: str, error: StoreError) -> None:
        self._count(operation, error)
        if operation == "get":
            self._meters.lookup(self.store.name, "error")
        if exchange.state is not State.DONE:
            exchange.refuse(Rejection("store_unavailable", id=exchange.id))

    def _count(self, operation: str, error: StoreError) -> None:
        self._meters.store_error(operation)
        at_s = now()
        if at_s >= self._quiet_until_s:
            self._quiet_until_s = at_s + QUIET_S
            logger.warning("session registry: %s failed: %s", operation, error)
