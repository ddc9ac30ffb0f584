"""What traces need to know of a request, and what requests carry of traces.

Rules of this file: nothing here runs unless traces are configured. Bodies are never touched; the headers
of the trace context are rewritten only for exchanges that are sampled (W3C Trace Context section 3.4), all
others pass as they came.
"""

from __future__ import annotations

from typing import Final

from mcp_proxy.admission import Admitted
from mcp_proxy.backends import Backend
from mcp_proxy.clock import now
from mcp_proxy.envelope import Envelope
from mcp_proxy.telemetry.traces import Trace, Tracer
from mcp_proxy.wire import Fields

_CONTEXT: Final = frozenset((b"traceparent", b"tracestate"))


def begin(tracer: Tracer, admission: Admitted, envelope: Envelope | None) -> Trace | None:
    """None: not sampled. Without an envelope: a request without a message, or with none that can be read."""
    context = admission.context
    if context is None:
        admission.context = context = _context(admission)
    if envelope is None:
        trace = tracer.begin(*context, None, None)
    else:
        trace = tracer.begin(*context, envelope.traceparent, envelope.tracestate)
    if trace is not None:
        trace.version = (admission.head.version or b"").decode("latin-1")
        if envelope is not None:
            trace.rpc_id = envelope.id
            trace.version = envelope.version or trace.version
    return trace


def _context(admission: Admitted) -> tuple[bytes | None, bytes | None]:
    """``traceparent`` and ``tracestate`` of the head. The first comes once, or it is not valid; the second
    may come in several parts (section 3.3.1.1)."""
    parents, states = (
        [value for name, value in admission.head.forward if name == wanted]
        for wanted in (b"traceparent", b"tracestate")
    )
    return (parents[0] if len(parents) == 1 else None), (b",".join(states) if states else None)


def sent(trace: Trace, backend: Backend) -> bytes:
    """An attempt begins; the header lines that tell the backend of it."""
    return trace.attempt(backend.id, backend.host, backend.port, now())


def without_context(headers: Fields) -> Fields:
    """For an exchange that says something else itself."""
    return Fields(pair for pair in headers if pair[0] not in _CONTEXT)
