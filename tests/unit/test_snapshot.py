"""Numbers of several processes: they travel, they add up, and they never fall."""

from __future__ import annotations

import msgspec
from prometheus_client import parser

from mcp_proxy.telemetry.exposition import Exposition
from mcp_proxy.telemetry.metrics import Metrics
from mcp_proxy.telemetry.snapshot import NOTHING, BackendNow, GaugeSnapshot, Snapshot, merge
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
    records += [call(is_stream=True, idle_s=61.0, ttfb_s=0.1), call(is_stream=True, pool="other")]
    for number, record in enumerate(records):
        (one if number % 2 else other).record(record)
        both.record(record)
    for metrics in (one, both):
        metrics.lookup("memory", "hit")
        metrics.stream_closed("weather", "client")
        metrics.store_asked("get", 0.002)
        metrics.lagged(0.003)
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
    gauges = GaugeSnapshot(1, {}, {}, [], log_lines_dropped=4, trace_spans={"failed": 2}, is_draining=True)
    metrics = Metrics(lambda: gauges)
    metrics.record(call())
    remains = sent(metrics).remains()
    assert remains.totals()["requests"] == 1
    assert remains.counters["access_log_dropped_total"] == {(): 4}
    assert remains.counters["trace_spans_total"] == {("failed",): 2}
    assert (remains.gauges.inflight, remains.gauges.is_draining) == (0, False)


def test_a_backend_is_down_when_one_process_found_it_down() -> None:
    one = gauges(backends=[BackendNow("x", A, is_up=True), BackendNow("x", B, is_up=True)])
    other = gauges(backends=[BackendNow("x", A, is_up=False), BackendNow("x", B, is_up=True)])
    for order in ([one, other], [other, one]):
        assert [each.is_up for each in merge(order).gauges.backends] == [False, True]


def test_what_is_at_a_backend_adds_up_and_it_drains_when_one_process_drains_it() -> None:
    one = gauges(backends=[BackendNow("x", A, is_up=True, sessions=5, inflight=2, streams=1)])
    other = gauges(
        backends=[
            BackendNow("x", A, is_up=True, sessions=1, inflight=1, streams=1, is_draining=True),
            BackendNow("y", A, is_up=True, sessions=7),
        ]
    )
    assert merge([one, other]).gauges.backends == [
        BackendNow("x", A, is_up=True, sessions=6, inflight=3, streams=2, is_draining=True),
        BackendNow("y", A, is_up=True, sessions=7),
    ]


def test_a_registry_is_down_when_one_process_cannot_ask_it() -> None:
    one, other = gauges(stores={"redis": True}), gauges(stores={"redis": False})
    for order in ([one, other], [other, one], [one, other, gauges()]):
        assert merge(order).gauges.stores == {"redis": False}
    assert merge([one, NOTHING]).gauges.stores == {"redis": True}


def test_the_proxy_drains_when_one_process_does() -> None:
    one, other = gauges(is_draining=True), gauges()
    for order in ([one, other], [other, one]):
        assert merge(order).gauges.is_draining
    assert not merge([other, other]).gauges.is_draining


def test_what_a_process_is_doing_now_travels_whole() -> None:
    now = GaugeSnapshot(
        inflight=1,
        open_streams={"x": 1},
        sessions={"x": 2},
        backends=[BackendNow("x", A, is_up=True, sessions=2, inflight=1, streams=1, is_draining=True)],
        log_lines_dropped=3,
        trace_spans={"exported": 4},
        is_draining=True,
        stores={"redis": False},
    )
    assert sent(Metrics(lambda: now)).gauges == now
