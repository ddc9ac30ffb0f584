"""The last phase: one frozen record per exchange, given to every sink.

Rules of this file: no session id leaves it, only a keyed hash that is useless elsewhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

from mcp_proxy.clock import now
from mcp_proxy.correlation import id_of
from mcp_proxy.envelope import TASK_METHODS
from mcp_proxy.errors import Fault, Phase
from mcp_proxy.exchange import Exchange
from mcp_proxy.forwarding import plain_address
from mcp_proxy.telemetry import RequestRecord, Sink
from mcp_proxy.telemetry.recent import Ring
from mcp_proxy.wire import Rejection, Request

logger = logging.getLogger("mcp_proxy")

_METHODS = {method.encode(): method for method in ("GET", "POST", "DELETE", "OPTIONS", "")}

_REFUSAL_FAULTS = {
    "overloaded": Fault.PROXY,
    "loop_detected": Fault.PROXY,
    "request_timeout": Fault.TIMEOUT,
    "draining": Fault.DRAIN,
}
"""Refusals that are not the client's fault."""


BATCH: Final = 64
"""Exchanges recorded together. A batch runs through the same few lines again and again,
which costs a third less than to visit them between two requests."""


class Recorder:
    """Turns ended exchanges into records, ``batch`` at a time (1: each at once); ``flush`` does it now."""

    def __init__(
        self,
        sinks: Mapping[str, Sink | None],
        *,
        batch: int = 1,
        key: bytes = b"",
        ring: Ring | None = None,
        on_failure: Callable[[str], None] = lambda name: None,
    ) -> None:
        """``ring``: one more sink, while somebody watches it. ``key``: of the hashes that stand for ids, for
        processes whose records belong together. ``on_failure`` gets the name of a sink that has raised."""
        self._sinks = _given(sinks)
        self._on_failure = on_failure
        self._reported: set[str] = set()
        """Sinks whose failure has been logged."""
        self._ring = ring
        self._batch = batch
        self._ended: list[Exchange] = []
        key = key or secrets.token_bytes(16)

        @lru_cache(maxsize=4096)
        def digest(session_id: bytes) -> str:
            return hashlib.blake2b(session_id, digest_size=4, key=key).hexdigest()

        self._digest = digest

    def attach(self, name: str, sink: Sink | None) -> None:
        """Give records to this sink from now on; None: not any more."""
        self.flush()
        self._sinks = _given({**dict(self._sinks), name: sink})

    def finished(self, exchange: Exchange) -> None:
        """Record an exchange that has just ended."""
        self._ended.append(exchange)
        if self._batch == 1:
            self.flush()
        elif len(self._ended) == self._batch:
            # Not now: when the turn is over, so is what was written in it.
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Hand over what has ended so far. A job for the Ticker, and for whoever is about to
        read a sink."""
        if not self._ended:
            return
        ended, self._ended = self._ended, []
        wall_s = time.time() - now()
        sinks = self._listening()
        for exchange in ended:
            self._give(sinks, self._describe(exchange, wall_s))

    def _describe(self, exchange: Exchange, wall_s: float) -> RequestRecord:
        """``wall_s``: Unix time at which the clock of the data path was zero."""
        admission = exchange.admission
        plan = exchange.plan
        envelope = exchange.envelope
        backend = exchange.backend
        key = exchange.key
        finished_s = exchange.last.ended_s or exchange.finished_s
        if exchange.trace is not None:
            exchange.trace.finished_s = finished_s
        # Not one that was refused, or left, before its head was sent: metrics of streams agree.
        is_stream = exchange.streams_from is not None
        # _value_: Enum's ``value`` is a property written in Python.
        method = name = kind = ""
        if envelope is not None:
            method, name, kind = envelope.method, envelope.name or "", envelope.kind._value_
            if name and method in TASK_METHODS:
                # The id may be all that is needed to read or cancel the task.
                name = self._digest(name.encode())
        return RequestRecord(
            wall_s + finished_s,
            admission.route,
            admission.pool,
            "" if backend is None else backend.id,
            "" if plan is None else plan.era._value_,
            _METHODS.get(admission.request.method, "other"),
            method,
            name,
            kind,
            exchange.status,
            exchange.reason,
            "" if key is None else self._digest(key.session_id),
            admission.client,
            finished_s - exchange.started_s,
            exchange.waited_s,
            exchange.bytes_in,
            exchange.bytes_out,
            is_stream,
            exchange.attempts,
            exchange.fault,
            exchange.phase,
            id_of(exchange.own),
            admission.principal,
            (exchange.begun_s or finished_s) - exchange.started_s if exchange.status else 0.0,
            _idle_s(exchange) if is_stream else 0.0,
            exchange.trace,
        )

    def refused(
        self, request: Request, route: str, rejection: Rejection, status: int, bytes_out: int, own: bytes
    ) -> None:
        """Record an answer that no exchange was made for. ``peer`` is the TCP peer then, ``own`` the line of
        its id."""
        self.flush()  # in the order of what happened
        record = RequestRecord(
            time_s=time.time(),
            route=route,
            pool="",
            backend="",
            era="",
            http_method=_METHODS.get(request.method, "other"),
            method="",
            name="",
            kind="",
            status=status,
            reason=rejection.reason,
            session="",
            peer=plain_address(request.peer),
            duration_s=0.0,
            upstream_s=0.0,
            bytes_in=0,
            bytes_out=bytes_out,
            is_stream=False,
            attempts=0,
            ended_by=_REFUSAL_FAULTS.get(rejection.reason, Fault.CLIENT),
            phase=Phase.ADMIT,
            request_id=id_of(own),
        )
        self._give(self._listening(), record)

    def _give(self, sinks: tuple[tuple[str, Sink], ...], record: RequestRecord) -> None:
        for name, sink in sinks:
            try:
                sink.record(record)
            except Exception:
                self._failed(name)

    def _failed(self, name: str) -> None:
        """Called while an exception is handled. What one sink loses is no reason to stop traffic, or to fill
        the log."""
        self._on_failure(name)
        if name not in self._reported:
            self._reported.add(name)
            logger.exception("a record was lost by the sink %s; more of them are counted, not logged", name)

    def _listening(self) -> tuple[tuple[str, Sink], ...]:
        ring = self._ring
        return self._sinks if ring is None or not ring.is_watched else (*self._sinks, ("events", ring))


def _idle_s(exchange: Exchange) -> float:
    # Of a stream that was empty, or whose client left before its head, nothing was ever sent in pieces.
    return exchange.finished_s - (exchange.byte_s or exchange.begun_s or exchange.finished_s)


def _given(sinks: Mapping[str, Sink | None]) -> tuple[tuple[str, Sink], ...]:
    return tuple((name, sink) for name, sink in sinks.items() if sink is not None)
