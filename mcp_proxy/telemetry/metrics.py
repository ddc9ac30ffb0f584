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
from typing import TYPE_CHECKING

from prometheus_client import PlatformCollector, ProcessCollector

from mcp_proxy.telemetry.exposition import DURATION_BOUNDS_S, OVERHEAD_BOUNDS_S, Exposition
from mcp_proxy.telemetry.snapshot import Histogram, Labels, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client.registry import Collector

    from mcp_proxy.telemetry import RequestRecord
    from mcp_proxy.telemetry.snapshot import GaugeSnapshot

NONE = "none"
"""Label for "there is no route" and "there is no JSON-RPC method" (GET, DELETE, responses)."""
OTHER = "other"

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

    __slots__ = ("buckets", "sum_s")

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self.buckets = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0


class _Cell:
    """Where one (route, method, status) counts. The histograms are shared between cells."""

    __slots__ = ("duration", "overhead", "requests")

    def __init__(self, duration: _Histogram, overhead: _Histogram) -> None:
        self.requests = 0
        self.duration = duration
        self.overhead = overhead


class Metrics:
    """All metrics of one proxy. A ``Sink`` and ``Meters``.

    ``gauges`` is called on every ``render`` and must be cheap and must not raise.
    """

    def __init__(self, gauges: Callable[[], GaugeSnapshot]) -> None:
        self._gauges = gauges
        self._cells: dict[tuple[str, str, int], _Cell] = {}
        self._durations: dict[Labels, _Histogram] = {}
        self._overheads: dict[Labels, _Histogram] = {}
        self._rejections: Counter[Labels] = Counter()
        self._stream_opens: Counter[Labels] = Counter()
        self._stream_closes: Counter[Labels] = Counter()
        self._upstream_failures: Counter[Labels] = Counter()
        self._lookups: Counter[Labels] = Counter()
        self._store_errors: Counter[Labels] = Counter()
        self._reinitialized: Counter[Labels] = Counter()
        self._ejections: Counter[Labels] = Counter()
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
        duration_s = record.duration_s
        histogram = cell.duration
        histogram.buckets[bisect_left(DURATION_BOUNDS_S, duration_s)] += 1
        histogram.sum_s += duration_s
        # Only an answer that a backend gave in one piece says something about our own cost: in a
        # stream the time after the head is the backend's, without a head it is a connect timeout.
        if record.upstream_s > 0 and not record.is_stream:
            overhead_s = duration_s - record.upstream_s
            if overhead_s < 0:
                overhead_s = 0.0  # a sum that shrinks would look like a restart
            histogram = cell.overhead
            histogram.buckets[bisect_left(OVERHEAD_BOUNDS_S, overhead_s)] += 1
            histogram.sum_s += overhead_s
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
            duration = self._durations.setdefault((route, label), _Histogram(DURATION_BOUNDS_S))
            overhead = self._overheads.setdefault((route,), _Histogram(OVERHEAD_BOUNDS_S))
            cell = self._cells[key] = _Cell(duration, overhead)
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

    # -- reading

    def snapshot(self) -> Snapshot:
        """Everything counted so far. Shares its parts with what goes on counting: encode or render
        it before the event loop turns."""
        gauges = self._gauges()
        counters: dict[str, dict[Labels, int]] = {
            "requests_total": {
                (route or NONE, method or NONE, str(status)): cell.requests
                for (route, method, status), cell in self._cells.items()
            },
            "rejections_total": self._rejections,
            "upstream_failures_total": self._upstream_failures,
            "stream_opens_total": self._stream_opens,
            "stream_closes_total": self._stream_closes,
            "session_lookups_total": self._lookups,
            "store_errors_total": self._store_errors,
            "reinitializations_total": self._reinitialized,
            "ejections_total": self._ejections,
            "access_log_dropped_total": {(): gauges.log_lines_dropped},
        }
        histograms = {
            "request_duration_seconds": _seen(self._durations),
            "overhead_seconds": _seen(self._overheads),
        }
        return Snapshot(counters, histograms, gauges)

    def totals(self) -> dict[str, int]:
        """The counters without their labels, for people (``/status.json``)."""
        return self.snapshot().totals()

    def render(self, accept: str | None) -> tuple[bytes, str]:
        """The exposition and its content type, negotiated by the scraper's ``Accept``."""
        return self._exposition.render(accept)


def _seen(histograms: dict[Labels, _Histogram]) -> dict[Labels, Histogram]:
    return {key: Histogram(histogram.buckets, histogram.sum_s) for key, histogram in histograms.items()}
