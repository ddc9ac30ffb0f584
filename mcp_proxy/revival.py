"""Sessions whose backend was lost, made anew at another one: ``on_backend_loss: reinitialize``.

The ``initialize`` that made the session is sent again, then ``notifications/initialized``; from then
on the session's requests go to the new backend, under the id that the client knows. Whatever state
the old backend kept is gone, and that is said: a counter and a line in the log.

Rules of this file: one replica does it, once, however many requests and replicas wait for it: a
claim in the registry decides which, and a compare-and-set makes its result count. A backend session
that nobody will use is ended again. Whoever waits gets an answer within ``CLAIM_S``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Self

import msgspec

from mcp_proxy.backends import Backend
from mcp_proxy.clock import now
from mcp_proxy.errands import PATIENCE_S, Answer, ask, own_headers, say_goodbye
from mcp_proxy.errors import Phase, StoreError, UpstreamError
from mcp_proxy.exchange import Exchange, State
from mcp_proxy.headers import is_session_id
from mcp_proxy.pools import Pool
from mcp_proxy.sessions import SessionKey, SessionRecord, SessionStore, settled
from mcp_proxy.tasks import Tasks
from mcp_proxy.telemetry import Meters
from mcp_proxy.upstream import Outgoing
from mcp_proxy.wire import Fields, Headers, Rejection

logger = logging.getLogger("mcp_proxy")

CLAIM_S: Final = 15.0
"""Longest time that one replica may take; then another may try. Clients wait for 30 s and more."""

WAIT_S: Final = 5.0
"""For a replica that waits for another; then 503, and the client comes again."""

MAKE_S: Final = 12.0
"""For backends to make the session; what is left of the claim is for the registry."""

BACKENDS_LIMIT: Final = 2
"""Backends that are asked; what two refuse, more would refuse."""

LOOK_S: Final = 0.1
"""Between two looks at what the replica that has the claim has done."""

INITIALIZED: Final = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'

Revived = Callable[[Exchange, SessionRecord | None], None]


class _Lost(NamedTuple):
    """What is needed to make a session anew, taken from the first request that found it lost."""

    key: SessionKey
    record: SessionRecord
    pool: Pool
    headers: Headers


class _Opening:
    """Counts as a session that is being opened until the session itself does: many are lost at once, and the
    next ones must not all go to the same backend."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._backend: Backend | None = None

    def move_to(self, backend: Backend | None) -> None:
        for one, change in ((self._backend, -1), (backend, 1)):
            if one is not None:
                one.opening += change
                self._pool.recount(one)
        self._backend = backend

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.move_to(None)


class Reviver:
    """``then`` gets the session's record as it is afterwards, None if the session ended meanwhile. An
    exchange that cannot be helped is refused, with 503."""

    def __init__(self, store: SessionStore, tasks: Tasks, meters: Meters) -> None:
        self._store = store
        self._tasks = tasks
        self._meters = meters
        self._waiting: dict[SessionKey, list[tuple[Exchange, Revived]]] = {}

    def revive(self, exchange: Exchange, record: SessionRecord, headers: Headers, then: Revived) -> None:
        """Make the exchange's session anew, or wait for it. ``headers``: those of the exchange
        towards backends."""
        key = exchange.key
        assert key is not None
        waiting = self._waiting.setdefault(key, [])
        waiting.append((exchange, then))
        if len(waiting) == 1:
            self._tasks.spawn(self._run(_Lost(key, record, exchange.pool, headers)))

    async def _run(self, lost: _Lost) -> None:
        refusal = "internal_error"
        record: SessionRecord | None = None
        try:
            record = await self._make_or_await(lost)
            refusal = ""
        except StoreError as error:
            logger.warning("session registry: a session could not be made anew: %s", error)
            self._meters.store_error("move")
            refusal = "store_unavailable"
        except UpstreamError as error:
            logger.warning("pool %s: a session could not be made anew: %s", lost.pool.name, error)
            self._meters.reinitialized(lost.pool.name, "failed")
            refusal = "backend_unavailable"
        finally:
            for exchange, then in self._waiting.pop(lost.key):
                if exchange.state is State.DONE:
                    continue
                if refusal:
                    exchange.refuse(Rejection(refusal, id=exchange.id))
                    continue
                try:
                    then(exchange, record)
                except Exception:
                    exchange.crash()

    async def _make_or_await(self, lost: _Lost) -> SessionRecord | None:
        until_s = now() + WAIT_S
        try:
            while not await settled(self._store.claim(lost.key, CLAIM_S)):
                # Another replica is at it. Nobody tells us when it gives up, so look.
                await asyncio.sleep(LOOK_S)
                current = await self._current(lost)
                if current is None or current.generation > lost.record.generation:
                    return current
                if now() >= until_s:
                    raise StoreError("another replica has been making the session anew for too long")
            current = await self._current(lost)
            if current is None or current.generation > lost.record.generation:
                return current  # done between our last look and the claim
            return await self._make(lost)
        finally:
            self._store.disclaim(lost.key)  # whether it was granted or the answer was lost

    async def _current(self, lost: _Lost) -> SessionRecord | None:
        return await settled(self._store.reread(lost.key, lost.record.principal))

    async def _make(self, lost: _Lost) -> SessionRecord | None:
        with _Opening(lost.pool) as opening:
            return await self._make_at(lost, opening)

    async def _make_at(self, lost: _Lost, opening: _Opening) -> SessionRecord | None:
        backend, session_id = await self._initialize(lost, opening)
        record = lost.record
        moved = msgspec.structs.replace(
            record, backend=backend.id, upstream_id=session_id, generation=record.generation + 1
        )
        try:
            has_moved = await settled(self._store.move(lost.key, record, moved))
        except StoreError:
            self._end_at(lost, backend, session_id)
            raise
        if not has_moved:
            self._end_at(lost, backend, session_id)
            return await self._current(lost)
        self._meters.reinitialized(lost.pool.name, "done")
        logger.warning(
            "pool %s: a session of %s was lost and has been made anew at %s, without the state it had",
            lost.pool.name,
            record.backend,
            backend.id,
        )
        return moved

    async def _initialize(self, lost: _Lost, opening: _Opening) -> tuple[Backend, bytes]:
        """A backend, and how it calls the new session."""
        try:
            async with asyncio.timeout(MAKE_S):
                return await self._initialize_somewhere(lost, opening)
        except TimeoutError:
            detail = f"no backend has made it within {MAKE_S:g} s"
            raise UpstreamError(Phase.HEAD, "timeout", detail, sent=True) from None

    async def _initialize_somewhere(self, lost: _Lost, opening: _Opening) -> tuple[Backend, bytes]:
        pool = lost.pool
        owner = pool.find(lost.record.backend)
        tried: list[str] = [owner.id] if owner is not None and pool.is_lost(owner) else []
        failure: UpstreamError | None = None
        for _ in range(BACKENDS_LIMIT):
            backend = pool.next(tried, opens_session=True)
            if backend is None:
                break
            tried.append(backend.id)
            opening.move_to(backend)
            try:
                return backend, await self._initialize_at(lost, backend)
            except UpstreamError as error:
                failure = error
        raise failure or UpstreamError(Phase.CONNECT, "refused", "no other backend is there", sent=False)

    async def _initialize_at(self, lost: _Lost, backend: Backend) -> bytes:
        headers = own_headers(lost.headers)
        outgoing = Outgoing(b"POST", backend.path, Fields(headers), lost.record.initialize)
        answer = await self._ask(lost.pool, backend, outgoing)
        session_id = next((value for name, value in answer.headers if name == b"mcp-session-id"), b"")
        if not 200 <= answer.status < 300 or not is_session_id(session_id) or _is_error(answer.body):
            detail = f"{backend.id} answered initialize with {answer.status} and no session"
            raise UpstreamError(Phase.HEAD, "invalid", detail, sent=True)
        try:
            await self._confirm(lost, backend, headers, session_id)
        except BaseException:
            self._end_at(lost, backend, session_id)
            raise
        return session_id

    async def _confirm(self, lost: _Lost, backend: Backend, headers: Headers, session_id: bytes) -> None:
        version = [pair for pair in lost.headers if pair[0] == b"mcp-protocol-version"]
        headers = [*headers, (b"mcp-session-id", session_id), *version]
        outgoing = Outgoing(b"POST", backend.path, Fields(headers), INITIALIZED, session_id)
        answer = await self._ask(lost.pool, backend, outgoing)
        if not 200 <= answer.status < 300:
            detail = f"{backend.id} answered notifications/initialized with {answer.status}"
            raise UpstreamError(Phase.HEAD, "invalid", detail, sent=True)

    @staticmethod
    async def _ask(pool: Pool, backend: Backend, outgoing: Outgoing) -> Answer:
        """Raises UpstreamError. The pool learns from it what it learns from any other request."""
        if pool.find(backend.id) is not backend:
            raise UpstreamError(Phase.CONNECT, "refused", f"{backend.id} has left", sent=False)
        try:
            answer = await ask(pool.transport(backend), outgoing, PATIENCE_S)
        except UpstreamError as error:
            if pool.find(backend.id) is backend:
                pool.failed(backend, error)
            raise
        if pool.find(backend.id) is backend:
            pool.answered(backend, answer.status)
        return answer

    def _end_at(self, lost: _Lost, backend: Backend, session_id: bytes) -> None:
        self._tasks.spawn(say_goodbye(lost.pool, backend, session_id, lost.headers))


def _is_error(body: bytes) -> bool:
    """A JSON-RPC error in a 200. (In an event stream nobody looks: servers that fail do not issue a
    session id.)"""
    try:
        return msgspec.json.decode(body, type=_Failed).error is not msgspec.UNSET
    except msgspec.DecodeError:
        return False


class _Failed(msgspec.Struct):
    error: Any = msgspec.UNSET
