"""The text format of metrics: made by the library, from numbers that somebody else counted.

Rules of this file:
* Every family of ``families.py`` is announced from the first scrape on, with no series if need be.
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
from mcp_proxy.telemetry.families import COUNTERS, GAUGES, HISTOGRAMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeAlias

    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector

    from mcp_proxy.telemetry.snapshot import GaugeSnapshot, Histogram, Labels, Snapshot

    _Samples: TypeAlias = Iterable[tuple[tuple[str, ...], int]]
    """Label values and the number."""

PREFIX = "mcp_proxy_"


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
        present = _present(now.gauges)
        for name, (text, labels) in GAUGES.items():
            yield gauge(PREFIX + name, text, labels, present[name])


def _present(now: GaugeSnapshot) -> dict[str, _Samples]:
    """By family of ``GAUGES``."""
    backends = {(each.pool, each.backend): each for each in now.backends}
    return {
        "inflight": [((), now.inflight)],
        "open_streams": _by_one(now.open_streams),
        "sessions": _by_one(now.sessions),
        "draining": [((), int(now.is_draining))],
        "store_up": _by_one(now.stores),
        "backend_up": [(key, int(each.is_up)) for key, each in backends.items()],
        "backend_draining": [(key, int(each.is_draining)) for key, each in backends.items()],
        "backend_sessions": [(key, each.sessions) for key, each in backends.items()],
        "backend_inflight": [(key, each.inflight) for key, each in backends.items()],
        "backend_streams": [(key, each.streams) for key, each in backends.items()],
    }


def _by_one(values: dict[str, int] | dict[str, bool]) -> _Samples:
    """By the only label."""
    return [((label,), int(value)) for label, value in values.items()]


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
