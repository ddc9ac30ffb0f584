"""The last phase: one frozen record per exchange, given to every sink.

Rules of this file: no session id leaves it, only a keyed hash that is useless elsewhere.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from functools import lru_cache

from mcp_proxy.errors import Fault, Phase
from mcp_proxy.exchange import Exchange
from mcp_proxy.forwarding import plain_address
from mcp_proxy.telemetry import RequestRecord, Sink
from mcp_proxy.wire import Rejection, Request

_METHODS = {method.encode(): method for method in ("GET", "POST", "DELETE", "OPTIONS", "")}

CLOSE_REASONS = {
    Fault.NONE: "end",
    Fault.CLIENT: "client",
    Fault.BACKEND: "backend",
    Fault.PROXY: "proxy",
    Fault.TIMEOUT: "timeout",
    Fault.DRAIN: "drain",
}


_REFUSAL_FAULTS = {
    "overloaded": Fault.PROXY,
    "loop_detected": Fault.PROXY,
    "request_timeout": Fault.TIMEOUT,
    "draining": Fault.DRAIN,
}
"""Refusals that are not the client's fault."""


class Recorder:
    """Turns ended exchanges into records."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)
        key = secrets.token_bytes(16)

        @lru_cache(maxsize=4096)
        def digest(session_id: bytes) -> str:
            return hashlib.blake2b(session_id, digest_size=4, key=key).hexdigest()

        self._digest = digest

    def finished(self, exchange: Exchange, fault: Fault, phase: Phase) -> None:
        """Record an exchange that has just ended."""
        admission = exchange.admission
        request = admission.request
        plan = exchange.plan
        envelope = exchange.envelope
        backend = exchange.backend
        key = exchange.key
        # _value_: Enum's ``value`` is a property written in Python.
        record = RequestRecord(
            time.time(),
            admission.route,
            admission.pool,
            "" if backend is None else backend.id,
            "" if plan is None else plan.era._value_,
            _METHODS.get(request.method, "other"),
            "" if envelope is None else envelope.method,
            "" if envelope is None else envelope.name or "",
            "" if envelope is None else envelope.kind._value_,
            exchange.status,
            exchange.reason,
            "" if key is None else self._digest(key.session_id),
            admission.client,
            exchange.finished_s - exchange.started_s,
            exchange.head_s - exchange.sent_s if exchange.head_s else 0.0,
            exchange.bytes_in,
            exchange.bytes_out,
            exchange.is_stream,
            exchange.attempts,
            fault,
            phase,
        )
        for sink in self._sinks:
            sink.record(record)

    def refused(
        self, request: Request, route: str, rejection: Rejection, status: int, bytes_out: int
    ) -> None:
        """Record an answer that no exchange was made for. ``peer`` is the TCP peer then."""
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
        )
        for sink in self._sinks:
            sink.record(record)
