"""Metrics: plain numbers on the hot path, a snapshot of them at scrape time.

Rules of this file:
* ``record`` runs once per exchange and costs about what one ``Counter.inc`` of the library costs:
  one dictionary look-up finds a cell, the cell holds ints and lists. Nothing is formatted,
  locked or allocated for a request that looks like an earlier one.
* Series are bounded: routes, pools, backends and stores come from the configuration, methods from
  ``METHODS``, everything else from closed lists of ours. No client text becomes a label.
* Everything runs on the event loop, ``render`` included: no locks, no torn reads.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from itertools import product
from typing import TYPE_CHECKING

from prometheus_client import PlatformCollector, ProcessCollector

from mcp_proxy.telemetry.exposition import Exposition
from mcp_proxy.telemetry.families import (
    CLOSE_REASONS,
    DURATION_BOUNDS_S,
    IDLE_BOUNDS_S,
    LAG_BOUNDS_S,
    OVERHEAD_BOUNDS_S,
    STORE_BOUNDS_S,
    STREAM_BOUNDS_S,
)
from mcp_proxy.telemetry.snapshot import Histogram, Labels, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.registry import Collector

    from mcp_proxy.telemetry import RequestRecord
    from mcp_proxy.telemetry.snapshot import GaugeSnapshot

NONE = "none"
"""Label for "there is no route" and "there is no JSON-RPC method" (GET, DELETE, responses)."""
OTHER = "other"

_PHASES = ("connect", "head", "body")
_RESULTS = ("done", "failed")
_SINKS = ("metrics", "access_log", "traces", "events")

METHODS = frozenset(
    {
        # Requests of every revision from 2024-11-05 to 2026-07-28.
        "initialize",
        "ping",
        "server/discover",
        "completion/complete",
        "logging/setLevel",
        "tools/list",
        "tools/call",
        "prompts/list",
        "prompts/get",
        "resources/list",
        "resources/templates/list",
        "resources/read",
        "resources/subscribe",
        "resources/unsubscribe",
        "subscriptions/listen",
        # Tasks: 2025-11-25 (experimental) and the extension io.modelcontextprotocol/tasks.
        "tasks/get",
        "tasks/result",
        "tasks/list",
        "tasks/cancel",
        "tasks/update",
        # Notifications that travel towards a backend.
        "notifications/initialized",
        "notifications/cancelled",
        "notifications/progress",
        "notifications/roots/list_changed",
        "notifications/tasks/status",
    }
)
"""Methods that have a label of their own; all others share ``other``."""


class _Histogram:
    """``Histogram`` while it counts: plain slots are a tenth faster than the fields of a Struct."""

    __slots__ = ("bounds_s", "buckets", "sum_s")

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self.bounds_s = bounds_s
        self.buckets = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """For what does not happen once per request: the call costs as much as what it does."""
        self.buckets[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds


class _Histograms(dict[Labels, _Histogram]):
    """Those of one family; one that is missing begins empty."""

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self._bounds_s = bounds_s

    def __missing__(self, key: Labels) -> _Histogram:
        histogram = self[key] = _Histogram(self._bounds_s)
        return histogram

    def seen(self) -> dict[Labels, Histogram]:
        return {key: Histogram(each.buckets, each.sum_s) for key, each in self.items()}


class _Cell:
    """Where one (route, method, status) counts. The histograms are shared between cells."""

    __slots__ = ("duration", "first_byte", "overhead", "received", "requests", "sent")

    def __init__(self, duration: _Histogram, first_byte: _Histogram, overhead: _Histogram) -> None:
        self.requests = self.received = self.sent = 0
        self.duration = duration
        self.first_byte = first_byte
        self.overhead = overhead


class Metrics:
    """All metrics of one proxy. A ``Sink`` and ``Meters``.

    ``gauges`` is called on every ``render`` and must be cheap and must not raise. ``reasons``: all words with
    which the proxy may refuse.
    """

    def __init__(self, gauges: Callable[[], GaugeSnapshot], reasons: Iterable[str] = ()) -> None:
        self._gauges = gauges
        self._reasons = tuple(reasons)
        self._cells: dict[tuple[str, str, int], _Cell] = {}
        self._durations = _Histograms(DURATION_BOUNDS_S)
        self._first_bytes = _Histograms(DURATION_BOUNDS_S)
        self._overheads = _Histograms(OVERHEAD_BOUNDS_S)
        self._streams = _Histograms(STREAM_BOUNDS_S)
        self._idle = _Histograms(IDLE_BOUNDS_S)
        self._questions = _Histograms(STORE_BOUNDS_S)
        self._lag = _Histogram(LAG_BOUNDS_S)
        self.lagged = self._lag.observe
        """A timer fired so many seconds late."""
        self._rejections: Counter[Labels] = Counter()
        self._stream_opens: Counter[Labels] = Counter()
        self._stream_closes: Counter[Labels] = Counter()
        self._upstream_failures: Counter[Labels] = Counter()
        self._lookups: Counter[Labels] = Counter()
        self._store_errors: Counter[Labels] = Counter()
        self._reinitialized: Counter[Labels] = Counter()
        self._ejections: Counter[Labels] = Counter()
        self._sink_failures: Counter[Labels] = Counter()
        self._exposition = Exposition(
            self.snapshot, [ProcessCollector(registry=None), PlatformCollector(registry=None)]
        )

    def register(self, collector: Collector) -> None:
        """Show its metrics as well."""
        self._exposition.register(collector)

    # -- the hot path

    def record(self, record: RequestRecord) -> None:
        """Count one finished exchange. Never raises, never blocks."""
        cell = self._cells.get((record.route, record.method, record.status))
        if cell is None:
            cell = self._fold(record)
        cell.requests += 1
        cell.received += record.bytes_in
        cell.sent += record.bytes_out
        duration_s = record.duration_s
        histogram = cell.duration
        histogram.buckets[bisect_left(DURATION_BOUNDS_S, duration_s)] += 1
        histogram.sum_s += duration_s
        first_byte_s = record.ttfb_s
        if first_byte_s > 0:
            histogram = cell.first_byte
            histogram.buckets[bisect_left(DURATION_BOUNDS_S, first_byte_s)] += 1
            histogram.sum_s += first_byte_s
        if record.attempts:
            overhead_s = duration_s - record.upstream_s
            if overhead_s < 0:
                overhead_s = 0.0  # a sum that shrinks would look like a restart
            histogram = cell.overhead
            histogram.buckets[bisect_left(OVERHEAD_BOUNDS_S, overhead_s)] += 1
            histogram.sum_s += overhead_s
        if record.is_stream:
            self._streams[record.pool,].observe(duration_s)
            self._idle[record.pool, CLOSE_REASONS[record.ended_by]].observe(record.idle_s)
        if record.reason:
            self._rejections[record.reason,] += 1

    def _fold(self, record: RequestRecord) -> _Cell:
        """The cell of a record whose key as it stands is not known (yet).

        Only folded keys are stored, so junk methods come here every time and never stay.
        """
        if not record.method:
            method, label = "", NONE
        elif record.method in METHODS:
            method = label = record.method
        else:
            method = label = OTHER
        key = (record.route, method, record.status)
        cell = self._cells.get(key)
        if cell is None:
            route = record.route or NONE
            cell = self._cells[key] = _Cell(
                self._durations[route, label], self._first_bytes[route,], self._overheads[route,]
            )
        return cell

    # -- ``Meters``; every word is one of a closed list of ours

    def lookup(self, store: str, result: str) -> None:
        self._lookups[store, result] += 1

    def store_error(self, operation: str) -> None:
        self._store_errors[operation,] += 1

    def reinitialized(self, pool: str, result: str) -> None:
        self._reinitialized[pool, result] += 1

    def ejected(self, pool: str) -> None:
        self._ejections[pool,] += 1

    def upstream_failure(self, pool: str, phase: str) -> None:
        self._upstream_failures[pool, phase] += 1

    def stream_opened(self, pool: str) -> None:
        self._stream_opens[pool,] += 1

    def stream_closed(self, pool: str, reason: str) -> None:
        self._stream_closes[pool, reason] += 1

    # -- besides

    def store_asked(self, operation: str, seconds: float) -> None:
        """The registry took so long for a question, answered or not."""
        self._questions[operation,].observe(seconds)

    def sink_failed(self, sink: str) -> None:
        """A sink raised; the record is lost to it."""
        self._sink_failures[sink,] += 1

    # -- reading

    def snapshot(self) -> Snapshot:
        """Everything counted so far. Shares its parts with what goes on counting: encode or render
        it before the event loop turns."""
        gauges = self._gauges()
        pools = gauges.open_streams
        counters: dict[str, dict[Labels, int]] = {
            "requests_total": {
                (route or NONE, method or NONE, str(status)): cell.requests
                for (route, method, status), cell in self._cells.items()
            },
            "received_bytes_total": self._by_route(lambda cell: cell.received),
            "sent_bytes_total": self._by_route(lambda cell: cell.sent),
            "rejections_total": _from_zero(self._rejections, self._reasons),
            "upstream_failures_total": _from_zero(self._upstream_failures, pools, _PHASES),
            "stream_opens_total": _from_zero(self._stream_opens, pools),
            "stream_closes_total": _from_zero(self._stream_closes, pools, CLOSE_REASONS.values()),
            "session_lookups_total": self._lookups,
            "store_errors_total": self._store_errors,
            "reinitializations_total": _from_zero(self._reinitialized, pools, _RESULTS),
            "ejections_total": _from_zero(self._ejections, pools),
            "access_log_dropped_total": {(): gauges.log_lines_dropped},
            "sink_failures_total": _from_zero(self._sink_failures, _SINKS),
            "trace_spans_total": {(result,): count for result, count in gauges.trace_spans.items()},
        }
        histograms: dict[str, dict[Labels, Histogram]] = {
            "request_duration_seconds": self._durations.seen(),
            "time_to_first_byte_seconds": self._first_bytes.seen(),
            "overhead_seconds": self._overheads.seen(),
            "stream_duration_seconds": self._streams.seen(),
            "stream_idle_seconds": self._idle.seen(),
            "store_duration_seconds": self._questions.seen(),
            "event_loop_lag_seconds": {(): Histogram(self._lag.buckets, self._lag.sum_s)},
        }
        return Snapshot(counters, histograms, gauges)

    def _by_route(self, number: Callable[[_Cell], int]) -> dict[Labels, int]:
        """Summed over the cells of each."""
        sums: Counter[Labels] = Counter()
        for (route, _, _), cell in self._cells.items():
            sums[route or NONE,] += number(cell)
        return sums

    def totals(self) -> dict[str, int]:
        """The counters without their labels, for people (``/status.json``)."""
        return self.snapshot().totals()

    def render(self, accept: str | None) -> tuple[bytes, str]:
        """The exposition and its content type, negotiated by the scraper's ``Accept``."""
        return self._exposition.render(accept)


def _from_zero(counts: dict[Labels, int], *labels: Iterable[str]) -> dict[Labels, int]:
    """With all that may come: Prometheus sees no increase in a series that begins with 1."""
    return dict.fromkeys(product(*labels), 0) | counts
