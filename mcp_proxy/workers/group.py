"""Metrics of the processes themselves: the parent and its workers as one.

Rules of this file: the library's names keep their meaning, so that dashboards and alerts work as for
one process; no process id becomes a label, because every restart would add a series.
"""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from mcp_proxy.telemetry.exposition import PREFIX, counter, gauge

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.metrics_core import Metric

    from mcp_proxy.workers.crew import Crew


class Group:
    """``process_*`` for parent and workers together, under the library's names: CPU and memory are
    sums, descriptors are those of the process that has most (the limit is one process's), the start
    is the parent's. Plus two families about the workers."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    def collect(self) -> Iterator[Metric]:
        crew = self._crew
        yield gauge(PREFIX + "workers", "Workers that serve.", (), [((), len(crew.serving))])
        text = "Workers that were started in place of one that had ended."
        yield counter(PREFIX + "worker_restarts_total", text, (), [((), crew.restarts)])
        yield from self._process()

    def _process(self) -> Iterator[Metric]:
        pids = [os.getpid(), *(worker.pid for worker in self._crew.workers if worker is not None)]
        values: dict[str, list[float]] = {}
        texts: dict[str, Metric] = {}
        for pid in pids:
            for family in _families(pid):
                texts.setdefault(family.name, family)
                values.setdefault(family.name, []).append(family.samples[0].value)
        for name, family in texts.items():
            numbers = values[name]
            if name == "process_cpu_seconds":
                ended = resource.getrusage(resource.RUSAGE_CHILDREN)
                total = sum(numbers) + ended.ru_utime + ended.ru_stime
                yield CounterMetricFamily(name, family.documentation, value=total)
            elif name.endswith("_memory_bytes"):
                yield GaugeMetricFamily(name, family.documentation, value=sum(numbers))
            else:
                value = max(numbers) if name.endswith("_fds") else numbers[0]
                yield GaugeMetricFamily(name, family.documentation, value=value)


def _families(pid: int) -> Iterable[Metric]:
    return ProcessCollector(pid=lambda: pid, registry=None).collect()
