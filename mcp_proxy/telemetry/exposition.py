"""The text format of metrics: made by the library, from numbers that somebody else counted.

Rules of this file:
* Every family is announced from the first scrape on, with no series if need be.
* Nothing touches the library's global registry, so two proxies may live in one process.
"""

from __future__ import annotations

import platform
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder

from mcp_proxy import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeAlias

    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector

    from mcp_proxy.telemetry.snapshot import GaugeSnapshot, Histogram, Labels, Snapshot

    _Samples: TypeAlias = Iterable[tuple[tuple[str, ...], int]]
    """Label values and the number."""

PREFIX = "mcp_proxy_"

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

COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "requests_total": ("Exchanges that have ended.", ("route", "method", "status")),
    "rejections_total": ("Answers authored by the proxy.", ("reason",)),
    "upstream_failures_total": ("Failed attempts at a backend.", ("pool", "phase")),
    "stream_opens_total": ("Event streams begun.", ("pool",)),
    "stream_closes_total": ("Event streams ended, by who ended them.", ("pool", "reason")),
    "session_lookups_total": ("Session look-ups.", ("store", "result")),
    "reinitializations_total": (
        "Sessions of lost backends that were made anew at another, without their state.",
        ("pool", "result"),
    ),
    "ejections_total": ("Backends left out for a while because they failed.", ("pool",)),
    "store_errors_total": ("The session registry could not be asked.", ("operation",)),
    "access_log_dropped_total": ("Access lines lost because they could not be written.", ()),
}
"""Family: what it says, and its labels."""

HISTOGRAMS: dict[str, tuple[str, tuple[str, ...], tuple[float, ...]]] = {
    "request_duration_seconds": (
        "From the request head to the last byte of the answer; a stream counts until it ends.",
        ("route", "method"),
        DURATION_BOUNDS_S,
    ),
    "overhead_seconds": (
        "Duration less the wait for the backend's response head. Streams do not count.",
        ("route",),
        OVERHEAD_BOUNDS_S,
    ),
}
"""Family: what it says, its labels, and the bounds of its buckets."""


class Exposition:
    """A registry of its own around the numbers that ``source`` gives at each scrape, and around
    ``others``, which describe the process."""

    def __init__(self, source: Callable[[], Snapshot], others: Sequence[Collector]) -> None:
        self._source = source
        self._registry = CollectorRegistry(auto_describe=False)
        for collector in (self, *others):
            self._registry.register(collector)

    def register(self, collector: Collector) -> None:
        """One more of ``others``."""
        self._registry.register(collector)

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
        now = self._source()
        yield InfoMetricFamily(
            PREFIX + "build",
            "Version of the proxy.",
            {"version": __version__, "python": platform.python_version()},
        )
        for name, (text, labels) in COUNTERS.items():
            yield counter(PREFIX + name, text, labels, now.counters.get(name, {}).items())
        for name, (text, labels, bounds_s) in HISTOGRAMS.items():
            yield _histogram(name, text, labels, bounds_s, now.histograms.get(name, {}).items())
        yield from _present(now.gauges)


def _present(now: GaugeSnapshot) -> Iterator[Metric]:
    yield gauge(PREFIX + "inflight", "Exchanges in progress.", (), [((), now.inflight)])
    yield gauge(PREFIX + "open_streams", "Event streams open.", ("pool",), _by_pool(now.open_streams))
    text = "Sessions known here; one that several processes serve counts in each."
    yield gauge(PREFIX + "sessions", text, ("pool",), _by_pool(now.sessions))
    up = [((pool, backend), int(is_up)) for pool, backend, is_up in now.backends]
    text = "1 while the backend is reachable, healthy and not ejected."
    yield gauge(PREFIX + "backend_up", text, ("pool", "backend"), up)


def _by_pool(values: dict[str, int]) -> _Samples:
    return (((pool,), value) for pool, value in values.items())


def counter(name: str, text: str, labels: tuple[str, ...], values: _Samples) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def gauge(name: str, text: str, labels: tuple[str, ...], values: _Samples) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def _histogram(
    name: str,
    text: str,
    labels: tuple[str, ...],
    bounds_s: tuple[float, ...],
    values: Iterable[tuple[Labels, Histogram]],
) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, text, labels=labels)
    bucket_names = [*map(str, bounds_s), "+Inf"]
    for key, histogram in values:
        counts = accumulate(histogram.buckets)
        family.add_metric(key, list(zip(bucket_names, counts, strict=True)), histogram.sum_s)
    return family
