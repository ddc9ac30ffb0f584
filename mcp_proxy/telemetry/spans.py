"""Spans: what sampled exchanges become, and how they get to a collector over OTLP/HTTP.

Rules of this file: the one file that knows OpenTelemetry. Spans are built by hand when their exchange is
over, from times and ids that were noted on its way: no tracer, no context variables, nothing global. The
library's batch processor queues them and sends them from a thread of its own; nothing here waits for a
collector, and what does not fit into the queue is dropped and counted. The library's log of a collector that
is away becomes one line per outage.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from mcp_proxy import __version__
from mcp_proxy.errors import StartupError
from mcp_proxy.telemetry import conventions
from mcp_proxy.telemetry.conventions import Attributes, Outcome

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.metrics import NoOpMeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
except ImportError as error:
    raise StartupError(
        "telemetry.traces needs the extra otlp: pip install 'mcp-reverse-proxy[otlp]'"
    ) from error

if TYPE_CHECKING:
    from mcp_proxy.config import TracesConfig
    from mcp_proxy.telemetry import RequestRecord
    from mcp_proxy.telemetry.traces import Attempt, Trace

logger = logging.getLogger("mcp_proxy")

QUEUE_LIMIT: Final = 8192
"""Spans that wait, some 3 KiB each: the traces of 4,000 calls, which at 1 % is a minute of a busy proxy."""

BATCH: Final = 256
"""Exchanges per request to the collector, mostly of two spans: some 350 KiB, and 50 ms of the interpreter to
make and encode them, of which an event loop that wants it waits for 5 ms at most."""

DELAY_S: Final = 1.0
"""How long a span waits for others to go with it."""

CLOSE_S: Final = 2.0
"""For what is left at the end. A collector that takes longer is not waited for."""

REASON_LIMIT: Final = 300
"""Characters of the library's own words."""

_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_SCOPE: Final = InstrumentationScope("mcp_proxy", __version__)
_NO_STATE: Final = TraceState()
_UNSET: Final = Status(StatusCode.UNSET)
_ERROR: Final = Status(StatusCode.ERROR)
_LIBRARY_LOGS: Final = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
)


def build(config: TracesConfig) -> SpanSink:
    """Made in the process that uses it: it has a thread. Variables of the library are heeded for what is not
    in ``config``: certificates, compression, attributes of the resource."""
    exporter = OTLPSpanExporter(
        endpoint=config.endpoint,
        headers={name: secret.value for name, secret in config.headers.items()},
        timeout=config.timeout,
        meter_provider=NoOpMeterProvider(),
    )
    resource = Resource.create(
        {
            "service.name": config.service_name,
            "service.version": __version__,
            "service.instance.id": str(uuid.uuid4()),
        }
    )
    return SpanSink(exporter, resource, config.endpoint)


class SpanSink:
    """Implements Sink. ``where`` is for the log. Somebody calls ``close`` in the end."""

    def __init__(self, exporter: SpanExporter, resource: Resource, where: str) -> None:
        self._outlet = _Outlet(exporter, resource, where)
        self._processor = BatchSpanProcessor(
            self._outlet,
            # One more than is ever put into it: we drop, and count, before the library would.
            max_queue_size=QUEUE_LIMIT + 1,
            schedule_delay_millis=DELAY_S * 1e3,
            max_export_batch_size=BATCH,
            meter_provider=NoOpMeterProvider(),
        )
        self._queued = 0
        """Ever, by the event loop; ``taken`` of the outlet is written by the thread."""
        self._is_closed = False
        self.dropped = 0
        """Spans for which there was no room in the queue, or no time at the end."""

    @property
    def exported(self) -> int:
        """Spans that the collector took."""
        return self._outlet.exported

    @property
    def failed(self) -> int:
        """Spans that the collector did not take."""
        return self._outlet.failed

    def counts(self) -> dict[str, int]:
        """Spans so far, by what became of them."""
        return {"exported": self.exported, "dropped": self.dropped, "failed": self.failed}

    def record(self, record: RequestRecord) -> None:
        """Nothing, unless the exchange was sampled."""
        trace = record.trace
        if trace is None:
            return
        count = 1 + len(trace.attempts)
        if self._is_closed or self._queued - self._outlet.taken + count > QUEUE_LIMIT:
            self.dropped += count
            return
        self._queued += count
        self._processor.on_end(_Ended(record, trace))  # type: ignore[arg-type]  # all that it looks at is there

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Send what is left, for at most ``timeout_s``. Blocks for so long, so an event loop calls it in a
        thread. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        closer = threading.Thread(target=self._processor.shutdown, name="traces-close", daemon=True)
        closer.start()
        closer.join(timeout_s)
        # What the thread still holds in its hands fails or succeeds, and is counted, without us.
        self._outlet.shutdown()
        self.dropped += self._queued - self._outlet.taken
        self._queued = self._outlet.taken


class _Ended:
    """What waits in the queue in place of the spans that it will become. Made together, by the thread that
    sends them, they cost less than half of what single ones cost between two requests."""

    __slots__ = ("record", "trace")

    context: Final = SpanContext(1, 1, False, _SAMPLED)
    """The processor takes what is sampled."""

    def __init__(self, record: RequestRecord, trace: Trace) -> None:
        self.record = record
        self.trace = trace


class _Outlet(SpanExporter):
    """Makes spans, counts what becomes of them, and says once when it is not what it should be. ``export``
    is called by one thread only, that of the processor; it never raises."""

    def __init__(self, exporter: SpanExporter, resource: Resource, where: str) -> None:
        self._exporter = exporter
        self._resource = resource
        self._where = where
        self._is_away = False
        self._is_busy = False
        self._is_closed = False
        self._hush = _Hush()
        self.taken = 0
        self.exported = 0
        self.failed = 0

    def export(self, spans: Sequence[_Ended]) -> SpanExportResult:  # type: ignore[override]
        if self._is_closed:
            return SpanExportResult.FAILURE
        self.taken += sum(1 + len(each.trace.attempts) for each in spans)
        made = [span for each in spans for span in self._made(each)]
        count = len(made)
        self._is_busy = True
        self._hush.begin()
        try:
            result = self._exporter.export(made)
        except Exception as error:
            self._hush.reason = self._hush.reason or repr(error)
            result = SpanExportResult.FAILURE
        finally:
            self._is_busy = False
            self._release()
        if result is SpanExportResult.SUCCESS:
            self.exported += count
            if self._is_away:
                logger.info("traces: %s takes spans again", self._where)
        else:
            self.failed += count
            if not self._is_away:
                reason = self._hush.reason[:REASON_LIMIT]
                logger.warning("traces: %s does not take spans, they are lost: %s", self._where, reason)
        self._is_away = result is not SpanExportResult.SUCCESS
        return result

    def _made(self, ended: _Ended) -> list[ReadableSpan]:
        try:
            return spans_of(ended.record, ended.trace, self._resource)
        except Exception:  # a fault of ours, which must not cost the others that wait with it
            logger.exception("traces: the spans of an exchange could not be made")
            self.failed += 1 + len(ended.trace.attempts)
            return []

    def shutdown(self) -> None:
        """Idempotent. Wakes an export that waits to try again."""
        if not self._is_closed:
            self._is_closed = True
            self._exporter.shutdown()
            self._release()

    def _release(self) -> None:
        """The library may have a word to say until its last export is over."""
        if self._is_closed and not self._is_busy:
            self._hush.remove()


class _Hush(logging.Filter):
    """Keeps what the library logs in the thread of one outlet out of the log, and its first words as the
    reason of a failure. Others in this process may use the library, too."""

    def __init__(self) -> None:
        super().__init__()
        self.reason = ""
        self._thread: int | None = None
        for name in _LIBRARY_LOGS:
            logging.getLogger(name).addFilter(self)

    def begin(self) -> None:
        """An export, in the thread that calls this."""
        self.reason = ""
        self._thread = threading.get_ident()

    def remove(self) -> None:
        for name in _LIBRARY_LOGS:
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self._thread:
            return True
        self.reason = self.reason or record.getMessage()
        return False


# From a record to spans


def spans_of(record: RequestRecord, trace: Trace, resource: Resource) -> list[ReadableSpan]:
    """One for each attempt, and that of the exchange, whose children they are."""
    builder = _Builder(record, trace, resource)
    outcome = conventions.outcome_of(trace.body, record.is_stream)
    # What the proxy says itself is no attempt's answer.
    answer_of = trace.attempts[-1] if trace.attempts and not record.reason else None
    spans = [builder.client(each, outcome if each is answer_of else Outcome()) for each in trace.attempts]
    return [*spans, builder.server(outcome)]


class _Builder:
    """Spans of one exchange."""

    __slots__ = ("_context", "_epoch_ns", "_name", "_record", "_resource", "_state", "_trace")

    def __init__(self, record: RequestRecord, trace: Trace, resource: Resource) -> None:
        self._record = record
        self._trace = trace
        self._resource = resource
        self._state = TraceState.from_header([trace.state]) if trace.state else _NO_STATE
        self._name = conventions.span_name(record)
        self._context = self._context_of(trace.span_id)
        # The clock of the data path counts from anywhere.
        self._epoch_ns = int(record.time_s * 1e9) - int(trace.finished_s * 1e9)

    def client(self, attempt: Attempt, outcome: Outcome) -> ReadableSpan:
        trace = self._trace
        attributes = conventions.client_attributes(self._record, trace, attempt, outcome)
        own = self._context_of(attempt.span_id)
        times_s = attempt.sent_s, attempt.ended_s or trace.finished_s
        return self._span(SpanKind.CLIENT, own, self._context, attributes, times_s)

    def server(self, outcome: Outcome) -> ReadableSpan:
        trace = self._trace
        attributes = conventions.server_attributes(self._record, trace, outcome)
        parent = self._context_of(trace.parent_id, is_remote=True) if trace.parent_id else None
        times_s = trace.finished_s - self._record.duration_s, trace.finished_s
        extras = self._events(), _links(trace)
        return self._span(SpanKind.SERVER, self._context, parent, attributes, times_s, *extras)

    def _span(
        self,
        kind: SpanKind,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: Attributes,
        times_s: tuple[float, float],
        events: Sequence[Event] = (),
        links: Sequence[Link] = (),
    ) -> ReadableSpan:
        begin_s, end_s = times_s
        return ReadableSpan(
            self._name, context, parent, self._resource, attributes, events, links, kind,
            status=_ERROR if conventions.ERROR in attributes else _UNSET,
            start_time=self._epoch_ns + int(begin_s * 1e9),
            end_time=self._epoch_ns + int(end_s * 1e9),
            instrumentation_scope=_SCOPE,
        )  # fmt: skip

    def _context_of(self, span_id: int, is_remote: bool = False) -> SpanContext:
        return SpanContext(self._trace.trace_id, span_id, is_remote, _SAMPLED, self._state)

    def _events(self) -> list[Event]:
        """The phases of the proxy, told by what lies between them."""
        found = []
        for number, attempt in enumerate(self._trace.attempts, 1):
            attributes: Attributes = {conventions.ATTEMPT: number, conventions.BACKEND: attempt.backend}
            is_answered = attempt.head_s and not attempt.error
            for name, at_s in (
                (conventions.SENT, attempt.sent_s),
                (conventions.HEAD, attempt.head_s),
                (conventions.ANSWERED, attempt.ended_s if is_answered else 0.0),
            ):
                if at_s:
                    found.append(Event(name, attributes, self._epoch_ns + int(at_s * 1e9)))
        return found


def _links(trace: Trace) -> list[Link]:
    if trace.link is None:
        return []
    trace_id, span_id, flags = trace.link
    return [Link(SpanContext(trace_id, span_id, True, TraceFlags(flags)))]
