"""Numbers of several processes: they travel, they add up, and they never fall."""

from __future__ import annotations

import msgspec
from prometheus_client import parser

from mcp_proxy.telemetry.exposition import Exposition
from mcp_proxy.telemetry.metrics import Metrics
from mcp_proxy.telemetry.snapshot import NOTHING, GaugeSnapshot, Snapshot, merge
from tests.unit.test_metrics import call, idle, scrape

A, B = "http://a:1/mcp", "http://b:1/mcp"


def sent(metrics: Metrics) -> Snapshot:
    """As it arrives in another process."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(metrics.snapshot()), type=Snapshot)


def gauges(**changes: object) -> Snapshot:
    return Snapshot({}, {}, msgspec.structs.replace(NOTHING.gauges, **changes))


def test_what_two_processes_counted_reads_like_what_one_would_have_counted() -> None:
    one, other, both = idle(), idle(), idle()
    records = [call(), call(status=502), call(duration_s=4.0), call(method="ping"), call(reason="draining")]
    for number, record in enumerate(records):
        (one if number % 2 else other).record(record)
        both.record(record)
    for metrics in (one, both):
        metrics.lookup("memory", "hit")
        metrics.stream_closed("weather", "client")
    together = Exposition(lambda: merge([sent(one), sent(other)]), [])
    text = together.render(None)[0].decode()
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    expected = scrape(both)
    for family in families.values():
        for sample in family.samples:
            key = tuple(value for _, value in sorted(sample.labels.items()))
            assert sample.value == expected[sample.name][key], sample
    assert merge([sent(one), sent(other)]).totals() == both.totals()


def test_nothing_added_changes_nothing() -> None:
    metrics = idle()
    metrics.record(call())
    assert merge([NOTHING, sent(metrics)]) == sent(metrics)


def test_a_sum_is_not_changed_by_what_is_counted_later() -> None:
    metrics = idle()
    metrics.record(call())
    total = merge([metrics.snapshot()])
    metrics.record(call())
    assert total.totals()["requests"] == 1
    (histogram,) = total.histograms["overhead_seconds"].values()
    assert sum(histogram.buckets) == 1


def test_present_things_add_up_and_go_with_their_process() -> None:
    one = gauges(inflight=2, open_streams={"x": 1}, sessions={"x": 5})
    other = gauges(inflight=3, open_streams={"x": 2, "y": 1}, sessions={"x": 1})
    now = merge([one, other]).gauges
    assert (now.inflight, now.open_streams, now.sessions) == (5, {"x": 3, "y": 1}, {"x": 6})
    assert merge([one.remains(), other]).gauges == other.gauges


def test_what_only_grows_outlives_its_process() -> None:
    metrics = Metrics(lambda: GaugeSnapshot(1, {}, {}, [], log_lines_dropped=4))
    metrics.record(call())
    remains = sent(metrics).remains()
    assert remains.totals()["requests"] == 1
    assert remains.counters["access_log_dropped_total"] == {(): 4}
    assert remains.gauges.inflight == 0


def test_a_backend_is_down_when_one_process_found_it_down() -> None:
    one = gauges(backends=[("x", A, True), ("x", B, True)])
    other = gauges(backends=[("x", A, False), ("x", B, True)])
    for order in ([one, other], [other, one]):
        assert merge(order).gauges.backends == [("x", A, False), ("x", B, True)]
