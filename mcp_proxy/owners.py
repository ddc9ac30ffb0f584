"""Requests of the stateless era that one backend can serve better than the others: 2026-07-28 has no
sessions, but a backend may keep a task, a request state or a cursor to which a later request comes back.

Rules of this file: soft. A caller's requests go to the same backend by hash, for nothing; what a
response says to be kept somewhere is remembered, if the pool taps responses, and then leads there.
A registry that fails changes nothing but that: no request of this era waits for it in vain or is
refused because of it. Without the tap no byte of a body is looked at here.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Protocol

from mcp_proxy.backends import Backend
from mcp_proxy.errors import StoreError
from mcp_proxy.exchange import Exchange, State
from mcp_proxy.pools import Pool
from mcp_proxy.routing import Era
from mcp_proxy.sessions import SessionRecord, SessionStore
from mcp_proxy.tap import Owned, Tap, asked, owner_key
from mcp_proxy.tasks import Tasks
from mcp_proxy.telemetry import Meters
from mcp_proxy.wire import Fields, Headers


def readable(headers: Headers) -> Fields:
    """The headers towards a backend whose answer will be tapped: it must not be compressed."""
    kept = [pair for pair in headers if pair[0] != b"accept-encoding"]
    return Fields([*kept, (b"accept-encoding", b"identity")])


class Sender(Protocol):
    """The gateway, as far as it sends."""

    def send(self, exchange: Exchange, pool: Pool, backend: Backend, *, fresh: bool = False) -> None: ...

    def send_anywhere(self, exchange: Exchange) -> None: ...


def affinity(exchange: Exchange) -> bytes | None:
    """Requests with the same value should reach the same backend; None: any will do."""
    admission = exchange.admission
    is_modern = exchange.plan is not None and exchange.plan.era is Era.MODERN
    if not is_modern and not exchange.pool.hashes:
        return None
    return exchange.pool.affinity.value(admission.principal, admission.client, admission.request.headers)


class Owners:
    """Routes exchanges of the stateless era. Owners are kept in ``store``, beside sessions."""

    def __init__(self, sender: Sender, store: SessionStore, tasks: Tasks, meters: Meters) -> None:
        self._sender = sender
        self._store = store
        self._tasks = tasks
        self._meters = meters

    def route(self, exchange: Exchange) -> None:
        """Send the exchange to the backend that its caller or its body points to, now or later."""
        admission, pool, envelope = exchange.admission, exchange.pool, exchange.envelope
        owned = asked(envelope, exchange.body) if pool.tap is not None and envelope is not None else ()
        if not owned:
            self._sender.send_anywhere(exchange)
            return
        key = owner_key(pool.name, admission.principal, owned[0])
        try:
            record = self._store.get(key, admission.principal)
        except StoreError:
            self._meters.store_error("get")
            record = None
        if isinstance(record, Awaitable):
            exchange.pending = self._tasks.spawn(self._route_cold(exchange, record))
        else:
            self._route(exchange, record)

    async def _route_cold(self, exchange: Exchange, lookup: Awaitable[SessionRecord | None]) -> None:
        try:
            record = None
            try:
                record = await lookup
            except StoreError:
                self._meters.store_error("get")
            exchange.pending = None
            self._route(exchange, record)
        except Exception:
            exchange.pending = None
            exchange.crash()

    def _route(self, exchange: Exchange, record: SessionRecord | None) -> None:
        pool = exchange.pool
        backend = None if record is None else pool.find(record.backend)
        if backend is None or pool.is_lost(backend):
            self._sender.send_anywhere(exchange)  # whoever gets it says that there is no such task
        else:
            exchange.record = record
            self._sender.send(exchange, pool, backend)

    # --- what responses say ----------------------------------------------------------

    def listen(self, exchange: Exchange) -> None:
        """Tap the answer that begins; its backend is known."""
        assert exchange.pool.tap is not None
        exchange.tap = Tap(exchange.pool.tap)

    def learn(self, exchange: Exchange, owned: Sequence[Owned]) -> None:
        """Of an event stream: the events do not wait for the registry."""
        for creation in self._write_down(exchange, owned):
            self._tasks.spawn(self._quietly(creation))

    def learn_first(self, exchange: Exchange, owned: Sequence[Owned]) -> None:
        """Of a JSON answer, which leaves when the registry has acknowledged or failed: the client
        will ask for its task at once, and any replica may be asked."""
        creations = self._write_down(exchange, owned)
        if creations:
            exchange.pending = self._tasks.spawn(self._answer_after(exchange, creations))
        else:
            exchange.answer_held()

    def _write_down(self, exchange: Exchange, owned: Sequence[Owned]) -> list[Awaitable[bool]]:
        assert exchange.backend is not None
        principal = exchange.admission.principal
        creations: list[Awaitable[bool]] = []
        for each in owned:
            record = SessionRecord(exchange.backend.id, principal, created_s=int(time.time()), kind=each.kind)
            try:
                created = self._store.create(owner_key(exchange.pool.name, principal, each), record)
            except StoreError:
                self._meters.store_error("create")
                continue
            if isinstance(created, Awaitable):
                creations.append(created)
        return creations

    async def _answer_after(self, exchange: Exchange, creations: Sequence[Awaitable[bool]]) -> None:
        for creation in creations:
            await self._quietly(creation)
        exchange.pending = None
        if exchange.state is State.HOLDING:
            try:
                exchange.answer_held()
            except Exception:
                exchange.crash()

    async def _quietly(self, creation: Awaitable[bool]) -> None:
        with suppress(StoreError):
            await creation
            return
        self._meters.store_error("create")
