"""The numbers of one process at one moment, and how those of several processes add up.

Rules of this file:
* Plain values that travel between processes; nothing here knows the text format.
* Counters and histograms only grow, also in sums: ``remains`` keeps them when a process is gone.
* Families and labels have the names under which they are exposed, without the prefix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

_K = TypeVar("_K")

Labels: TypeAlias = tuple[str, ...]
"""Values of the labels, in the order of their names."""


class Histogram(msgspec.Struct, gc=False):
    """Observations per bucket, not cumulated; the last bucket is +Inf."""

    buckets: list[int]
    sum_s: float = 0.0


class BackendNow(NamedTuple):
    """One backend of one pool."""

    pool: str
    backend: str
    """Its id."""
    is_up: bool
    """Reachable, healthy and not ejected."""
    sessions: int = 0
    inflight: int = 0
    streams: int = 0
    is_draining: bool = False


class GaugeSnapshot(msgspec.Struct, frozen=True, gc=False):
    """What is true at this moment; asked for once per scrape."""

    inflight: int
    """Exchanges in progress, streams included."""
    open_streams: dict[str, int]
    """By pool."""
    sessions: dict[str, int]
    """By pool, as far as this process knows."""
    backends: list[BackendNow]
    log_lines_dropped: int = 0
    """``AccessLog.dropped``: access lines that could not be written."""
    trace_spans: dict[str, int] = {}
    """What became of spans so far: ``exported``, ``dropped``, ``failed``."""
    is_draining: bool = False
    """The proxy itself stops."""
    stores: dict[str, bool] = {}
    """By name: the registry can be asked."""


class Snapshot(msgspec.Struct, frozen=True):
    """All metrics of one process, or of several together."""

    counters: dict[str, dict[Labels, int]]
    """By family, then by labels."""
    histograms: dict[str, dict[Labels, Histogram]]
    gauges: GaugeSnapshot

    def totals(self) -> dict[str, int]:
        """The counters without their labels, for people (``/status.json``)."""
        return {
            word: sum(self.counters.get(family, {}).values())
            for word, family in (
                ("requests", "requests_total"),
                ("rejections", "rejections_total"),
                ("streams_opened", "stream_opens_total"),
                ("streams_closed", "stream_closes_total"),
                ("upstream_failures", "upstream_failures_total"),
                ("session_lookups", "session_lookups_total"),
                ("store_errors", "store_errors_total"),
            )
        }

    def remains(self) -> Snapshot:
        """What still counts when the process has ended: all that only grows."""
        return Snapshot(self.counters, self.histograms, NOTHING.gauges)


NOTHING = Snapshot({}, {}, GaugeSnapshot(inflight=0, open_streams={}, sessions={}, backends=[]))


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """The sum."""
    counters: dict[str, dict[Labels, int]] = {}
    histograms: dict[str, dict[Labels, Histogram]] = {}
    gauges = NOTHING.gauges
    for each in snapshots:
        for family, values in each.counters.items():
            _add(counters.setdefault(family, {}), values)
        for family, observed in each.histograms.items():
            _observe(histograms.setdefault(family, {}), observed)
        gauges = _both(gauges, each.gauges)
    return Snapshot(counters, histograms, gauges)


def _both(one: GaugeSnapshot, other: GaugeSnapshot) -> GaugeSnapshot:
    """Without what ``counters`` has. Draining when one drains; a registry is up when nobody found it down."""
    open_streams, sessions = dict(one.open_streams), dict(one.sessions)
    _add(open_streams, other.open_streams)
    _add(sessions, other.sessions)
    backends = {each[:2]: each for each in one.backends}
    for backend in other.backends:
        known = backends.get(backend[:2])
        backends[backend[:2]] = backend if known is None else _one_backend(known, backend)
    names = one.stores | other.stores
    return GaugeSnapshot(
        inflight=one.inflight + other.inflight,
        open_streams=open_streams,
        sessions=sessions,
        backends=list(backends.values()),
        is_draining=one.is_draining or other.is_draining,
        stores={name: one.stores.get(name, True) and other.stores.get(name, True) for name in names},
    )


def _one_backend(one: BackendNow, other: BackendNow) -> BackendNow:
    """As two processes see it. Up when nobody found it down: who did looks for it again and again and so
    knows, while the other may not have tried."""
    return BackendNow(
        one.pool,
        one.backend,
        one.is_up and other.is_up,
        one.sessions + other.sessions,
        one.inflight + other.inflight,
        one.streams + other.streams,
        one.is_draining or other.is_draining,
    )


def _add(total: dict[_K, int], values: dict[_K, int]) -> None:
    for key, value in values.items():
        total[key] = total.get(key, 0) + value


def _observe(total: dict[Labels, Histogram], observed: dict[Labels, Histogram]) -> None:
    for key, histogram in observed.items():
        known = total.get(key)
        before = [0] * len(histogram.buckets) if known is None else known.buckets
        total[key] = Histogram(
            [one + other for one, other in zip(before, histogram.buckets, strict=True)],
            histogram.sum_s + (0.0 if known is None else known.sum_s),
        )
