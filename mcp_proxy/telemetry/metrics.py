"""Metrics: plain numbers on the hot path, the library's text format at scrape time.

Rules of this file:
* ``record`` runs once per exchange and costs about what one ``Counter.inc`` of the library costs:
  one dictionary look-up finds a cell, the cell holds ints and lists. Nothing is formatted,
  locked or allocated for a request that looks like an earlier one.
* Series are bounded: routes, pools, backends and stores come from the configuration, methods from
  ``METHODS``, everything else from closed lists of ours. No client text becomes a label.
* Everything runs on the event loop, ``render`` included: no locks, no torn reads.
* Nothing touches the library's global registry, so two proxies may live in one process.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder

from mcp_proxy import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeAlias

    from prometheus_client.metrics_core import Metric

    from mcp_proxy.telemetry import RequestRecord

    _Samples: TypeAlias = Iterable[tuple[tuple[str, ...], int]]
    """Label values and the number."""

PREFIX = "mcp_proxy_"
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

DURATION_BOUNDS_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
)
"""From a cached ``tools/list`` to a tool that works for minutes."""
OVERHEAD_BOUNDS_S = (
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.1,
    0.5,
)
"""From what the proxy costs when idle (tens of microseconds) to a stalled event loop."""


class GaugeSnapshot(msgspec.Struct, frozen=True, gc=False):
    """What is true at this moment; asked for once per scrape."""

    inflight: int
    """Exchanges in progress, streams included."""
    open_streams: dict[str, int]
    """By pool."""
    sessions: dict[str, int]
    """By pool, as far as this process knows."""
    backends: list[tuple[str, str, bool]]
    """Pool, backend id, is up."""
    log_lines_dropped: int = 0
    """``AccessLog.dropped``: access lines that could not be written."""


class _Histogram:
    """Observations per bucket, not cumulated; the last bucket is +Inf."""

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
    """All metrics of one proxy. ``Sink``, ``Meters``, and a ``Collector`` of its own registry.

    ``gauges`` is called on every ``render`` and must be cheap and must not raise.
    """

    def __init__(self, gauges: Callable[[], GaugeSnapshot]) -> None:
        self._gauges = gauges
        self._cells: dict[tuple[str, str, int], _Cell] = {}
        self._durations: dict[tuple[str, str], _Histogram] = {}
        self._overheads: dict[tuple[str], _Histogram] = {}
        self._rejections: Counter[tuple[str]] = Counter()
        self._stream_opens: Counter[tuple[str]] = Counter()
        self._stream_closes: Counter[tuple[str, str]] = Counter()
        self._upstream_failures: Counter[tuple[str, str]] = Counter()
        self._lookups: Counter[tuple[str, str]] = Counter()
        self._store_errors: Counter[tuple[str]] = Counter()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

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

    def upstream_failure(self, pool: str, phase: str) -> None:
        self._upstream_failures[pool, phase] += 1

    def stream_opened(self, pool: str) -> None:
        self._stream_opens[pool,] += 1

    def stream_closed(self, pool: str, reason: str) -> None:
        self._stream_closes[pool, reason] += 1

    # -- reading

    def totals(self) -> dict[str, int]:
        """The counters without their labels, for people (``/status.json``)."""
        return {
            "requests": sum(cell.requests for cell in self._cells.values()),
            "rejections": self._rejections.total(),
            "streams_opened": self._stream_opens.total(),
            "streams_closed": self._stream_closes.total(),
            "upstream_failures": self._upstream_failures.total(),
            "session_lookups": self._lookups.total(),
            "store_errors": self._store_errors.total(),
        }

    def render(self, accept: str | None) -> tuple[bytes, str]:
        """The exposition and its content type, negotiated by the scraper's ``Accept``."""
        try:
            encode, content_type = choose_encoder(accept if accept and accept.isascii() else "")
        except TypeError:
            # The library compares version numbers as they come: ``version=abc`` raises.
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """Everything as metric families; called by the registry."""
        yield InfoMetricFamily(
            PREFIX + "build",
            "Version of the proxy.",
            {"version": __version__, "python": platform.python_version()},
        )
        yield from self._exchanges()
        yield from self._events()
        yield from self._present()

    def _exchanges(self) -> Iterator[Metric]:
        requests = {
            (route or NONE, method or NONE, str(status)): cell.requests
            for (route, method, status), cell in self._cells.items()
        }
        text = "Exchanges that have ended."
        yield _counter("requests_total", text, ("route", "method", "status"), requests.items())
        text = "From the request head to the last byte of the answer; a stream counts until it ends."
        yield _histogram(
            "request_duration_seconds", text, ("route", "method"), DURATION_BOUNDS_S, self._durations.items()
        )
        text = "Duration less the wait for the backend's response head. Streams do not count."
        yield _histogram("overhead_seconds", text, ("route",), OVERHEAD_BOUNDS_S, self._overheads.items())
        text = "Answers authored by the proxy."
        yield _counter("rejections_total", text, ("reason",), self._rejections.items())

    def _events(self) -> Iterator[Metric]:
        text = "Failed attempts at a backend."
        yield _counter("upstream_failures_total", text, ("pool", "phase"), self._upstream_failures.items())
        text = "Event streams begun."
        yield _counter("stream_opens_total", text, ("pool",), self._stream_opens.items())
        text = "Event streams ended, by who ended them."
        yield _counter("stream_closes_total", text, ("pool", "reason"), self._stream_closes.items())
        text = "Session look-ups."
        yield _counter("session_lookups_total", text, ("store", "result"), self._lookups.items())
        text = "The session registry could not be asked."
        yield _counter("store_errors_total", text, ("operation",), self._store_errors.items())

    def _present(self) -> Iterator[Metric]:
        now = self._gauges()
        yield _gauge("inflight", "Exchanges in progress.", (), [((), now.inflight)])
        yield _gauge("open_streams", "Event streams open.", ("pool",), _by_pool(now.open_streams))
        yield _gauge("sessions", "Sessions known to this process.", ("pool",), _by_pool(now.sessions))
        up = [((pool, backend), int(is_up)) for pool, backend, is_up in now.backends]
        yield _gauge("backend_up", "1 while the backend can be reached.", ("pool", "backend"), up)
        text = "Access lines lost because they could not be written."
        yield _counter("access_log_dropped_total", text, (), [((), now.log_lines_dropped)])


def _by_pool(values: dict[str, int]) -> _Samples:
    return (((pool,), value) for pool, value in values.items())


def _counter(name: str, text: str, labels: tuple[str, ...], values: _Samples) -> Metric:
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def _gauge(name: str, text: str, labels: tuple[str, ...], values: _Samples) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def _histogram(
    name: str,
    text: str,
    labels: tuple[str, ...],
    bounds_s: tuple[float, ...],
    values: Iterable[tuple[tuple[str, ...], _Histogram]],
) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, text, labels=labels)
    bucket_names = [*map(str, bounds_s), "+Inf"]
    for key, histogram in values:
        counts = accumulate(histogram.buckets)
        family.add_metric(key, list(zip(bucket_names, counts, strict=True)), histogram.sum_s)
    return family
