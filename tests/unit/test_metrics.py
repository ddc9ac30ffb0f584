"""Metrics are read back the way Prometheus reads them: through the library's parsers."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from mcp_proxy import __version__
from mcp_proxy.errors import Fault, Phase
from mcp_proxy.telemetry import Meters, RequestRecord, Sink
from mcp_proxy.telemetry.families import CLOSE_REASONS, COUNTERS, GAUGES, HISTOGRAMS
from mcp_proxy.telemetry.metrics import METHODS, Metrics
from mcp_proxy.telemetry.snapshot import BackendNow, GaugeSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

CALL = RequestRecord(
    time_s=1_763_690_000.123,
    route="/weather/mcp",
    pool="weather",
    backend="http://10.0.0.11:8000/mcp",
    era="legacy",
    http_method="POST",
    method="tools/call",
    name="get_forecast",
    kind="request",
    status=200,
    reason="",
    session="0a1b2c3d",
    peer="10.1.2.3",
    duration_s=0.0125,
    upstream_s=0.0120,
    bytes_in=300,
    bytes_out=900,
    is_stream=False,
    attempts=1,
    ended_by=Fault.NONE,
    phase=Phase.NONE,
)
IDLE = GaugeSnapshot(inflight=0, open_streams={}, sessions={}, backends=[])


def call(**changes: object) -> RequestRecord:
    return msgspec.structs.replace(CALL, **changes)


def idle() -> Metrics:
    return Metrics(lambda: IDLE)


def scrape(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """Samples by name, then by label values in the order of their names."""
    return _samples(parser.text_string_to_metric_families(metrics.render(None)[0].decode()))


def _samples(families: Iterable[Metric]) -> dict[str, dict[tuple[str, ...], float]]:
    samples: dict[str, dict[tuple[str, ...], float]] = {}
    for family in families:
        for sample in family.samples:
            key = tuple(value for _, value in sorted(sample.labels.items()))
            assert key not in samples.setdefault(sample.name, {}), f"series twice: {sample}"
            samples[sample.name][key] = sample.value
    return samples


def test_exchanges_are_counted_by_route_method_and_status() -> None:
    metrics = idle()
    for record in (call(), call(), call(status=502), call(method="tools/list")):
        metrics.record(record)
    assert scrape(metrics)["mcp_proxy_requests_total"] == {
        ("tools/call", "/weather/mcp", "200"): 2,
        ("tools/call", "/weather/mcp", "502"): 1,
        ("tools/list", "/weather/mcp", "200"): 1,
    }


def junk(number: int) -> RequestRecord:
    """All that a client can make up; the rest of a record is ours or the configuration's."""
    word = f"junk/{number}\n\ud800"
    times = {"duration_s": number / 7.0, "idle_s": number / 11.0, "ttfb_s": number / 13.0}
    client = {"session": f"{number:08x}", "peer": f"10.9.{number // 256}.{number % 256}", "principal": word}
    return call(method=word, name=word, era=word, request_id=word, is_stream=True, **client, **times)


def weight(thing: object, seen: set[int]) -> int:
    """Bytes of everything that hangs on ``thing``, but for what is no data."""
    if id(thing) in seen or callable(thing):
        return 0
    seen.add(id(thing))
    held: list[object] = list(thing) if isinstance(thing, (list, tuple, dict, set)) else []
    held += thing.values() if isinstance(thing, dict) else []
    held += vars(thing).values() if hasattr(thing, "__dict__") else []
    held += [getattr(thing, name) for name in getattr(type(thing), "__slots__", ()) if hasattr(thing, name)]
    return sys.getsizeof(thing) + sum(weight(each, seen) for each in held)


def test_ten_thousand_of_everything_that_clients_make_up_add_no_series_and_no_memory() -> None:
    metrics = idle()
    # Counts and sums that are there grow no more; a series would take some hundred bytes.
    metrics.record(junk(20_000))
    series = {name: keys.keys() for name, keys in scrape(metrics).items()}
    size = weight(metrics, set())
    for number in range(10_000):
        metrics.record(junk(number))
    after = scrape(metrics)
    assert after["mcp_proxy_requests_total"] == {("other", "/weather/mcp", "200"): 10_001}
    assert {name: keys.keys() for name, keys in after.items()} == series
    numbers = sum(len(keys) for name, keys in series.items() if name.startswith("mcp_proxy_"))
    assert weight(metrics, set()) - size < 32 * numbers  # small integers cost nothing by themselves


def test_every_known_method_has_a_label_of_its_own() -> None:
    metrics = idle()
    for method in METHODS:
        metrics.record(call(method=method))
    seen = {method for method, _, _ in scrape(metrics)["mcp_proxy_requests_total"]}
    assert seen == METHODS


def test_no_route_and_no_method_read_none_and_a_client_cannot_name_a_method_so() -> None:
    metrics = idle()
    metrics.record(call(route="", method="", status=404))
    for method in ("none", "other", "Tools/Call", "tools/call "):
        metrics.record(call(route="", method=method, status=404))
    assert scrape(metrics)["mcp_proxy_requests_total"] == {
        ("none", "none", "404"): 1,
        ("other", "none", "404"): 4,
    }


def test_statuses_of_one_method_share_one_duration_histogram() -> None:
    metrics = idle()
    for duration_s, status in ((0.001, 200), (0.0011, 200), (4.0, 502), (9_999.0, 200)):
        metrics.record(call(duration_s=duration_s, status=status))
    samples = scrape(metrics)
    buckets = samples["mcp_proxy_request_duration_seconds_bucket"]
    series = {le: count for (le, *_), count in buckets.items()}
    assert (series["0.001"], series["0.005"], series["2.0"], series["5.0"]) == (1, 2, 2, 3)
    assert (series["300.0"], series["+Inf"]) == (3, 4)
    assert samples["mcp_proxy_request_duration_seconds_sum"] == {
        ("tools/call", "/weather/mcp"): pytest.approx(10_003.0021)
    }


def test_overhead_is_what_is_left_of_the_duration_when_backends_were_not_waited_for() -> None:
    metrics = idle()
    metrics.record(call(duration_s=0.0125, upstream_s=0.0120))
    metrics.record(call(duration_s=3600.0, upstream_s=3599.99, is_stream=True))
    metrics.record(call(duration_s=2.0, upstream_s=1.5, status=504, attempts=2))
    samples = scrape(metrics)
    assert samples["mcp_proxy_overhead_seconds_count"] == {("/weather/mcp",): 3}
    assert samples["mcp_proxy_overhead_seconds_sum"] == {("/weather/mcp",): pytest.approx(0.5105)}


def test_an_answer_for_which_no_backend_was_asked_has_no_overhead() -> None:
    metrics = idle()
    metrics.record(call(duration_s=2.0, upstream_s=0.0, status=503, attempts=0))
    assert scrape(metrics)["mcp_proxy_overhead_seconds_count"] == {("/weather/mcp",): 0}


def test_bytes_are_summed_by_route_over_methods_and_statuses() -> None:
    metrics = idle()
    for changes in ({}, {"method": "tools/list"}, {"status": 502}, {"route": "", "status": 404}):
        metrics.record(call(**changes))
    samples = scrape(metrics)
    assert samples["mcp_proxy_received_bytes_total"] == {("/weather/mcp",): 900, ("none",): 300}
    assert samples["mcp_proxy_sent_bytes_total"] == {("/weather/mcp",): 2700, ("none",): 900}


def test_time_to_the_first_byte_counts_where_a_head_was_sent() -> None:
    metrics = idle()
    metrics.record(call(ttfb_s=0.004, duration_s=60.0, is_stream=True))
    metrics.record(call(ttfb_s=0.0, status=0))
    samples = scrape(metrics)
    assert samples["mcp_proxy_time_to_first_byte_seconds_count"] == {("/weather/mcp",): 1}
    assert samples["mcp_proxy_time_to_first_byte_seconds_sum"] == {("/weather/mcp",): pytest.approx(0.004)}


@pytest.mark.parametrize("fault", Fault)
def test_a_stream_that_something_cut_shows_in_the_bucket_of_its_idle_timeout(fault: Fault) -> None:
    metrics = idle()
    metrics.record(call(is_stream=True, duration_s=400.0, idle_s=60.02, ended_by=fault))
    metrics.record(call())
    samples = scrape(metrics)
    reason = CLOSE_REASONS[fault]
    assert samples["mcp_proxy_stream_duration_seconds_sum"] == {("weather",): 400.0}
    assert samples["mcp_proxy_stream_idle_seconds_sum"] == {("weather", reason): 60.02}
    buckets = samples["mcp_proxy_stream_idle_seconds_bucket"]
    assert [le for (le, *_), count in buckets.items() if count] == ["120.0", "300.0", *LONG, "+Inf"]
    assert buckets["60.0", "weather", reason] == 0


LONG = ["600.0", "1800.0", "3600.0"]


def test_an_overhead_never_shrinks_the_sum() -> None:
    metrics = idle()
    metrics.record(call(duration_s=0.0119, upstream_s=0.0120))
    assert scrape(metrics)["mcp_proxy_overhead_seconds_sum"] == {("/weather/mcp",): 0.0}


def test_questions_to_the_registry_are_observed_by_operation() -> None:
    metrics = idle()
    for operation, seconds in (("get", 0.0004), ("get", 0.3), ("create", 0.001)):
        metrics.store_asked(operation, seconds)
    samples = scrape(metrics)
    assert samples["mcp_proxy_store_duration_seconds_count"] == {("get",): 2, ("create",): 1}
    assert samples["mcp_proxy_store_duration_seconds_bucket"]["0.25", "get"] == 1
    assert samples["mcp_proxy_store_duration_seconds_sum"]["get",] == pytest.approx(0.3004)


def test_every_tick_says_how_late_it_was() -> None:
    metrics = idle()
    for seconds in (0.0, 0.0004, 0.2):
        metrics.lagged(seconds)
    samples = scrape(metrics)
    buckets = {le: count for (le,), count in samples["mcp_proxy_event_loop_lag_seconds_bucket"].items()}
    assert (buckets["0.001"], buckets["0.1"], buckets["0.25"]) == (2, 2, 3)
    assert samples["mcp_proxy_event_loop_lag_seconds_sum"] == {(): pytest.approx(0.2004)}


def test_answers_of_the_proxy_are_counted_by_reason() -> None:
    metrics = idle()
    for reason in ("session_unknown", "session_unknown", "body_too_large", ""):
        metrics.record(call(reason=reason))
    assert scrape(metrics)["mcp_proxy_rejections_total"] == {
        ("session_unknown",): 2,
        ("body_too_large",): 1,
    }


def test_events_beside_exchanges_are_counted() -> None:
    metrics = idle()
    metrics.lookup("memory", "hit")
    metrics.lookup("memory", "hit")
    metrics.lookup("memory", "miss")
    metrics.store_error("create")
    metrics.upstream_failure("weather", "connect")
    metrics.stream_opened("weather")
    metrics.stream_opened("weather")
    metrics.stream_closed("weather", "client")
    metrics.sink_failed("access_log")
    metrics.ejected("weather")
    metrics.reinitialized("weather", "done")
    samples = scrape(metrics)
    assert samples["mcp_proxy_sink_failures_total"]["access_log",] == 1
    assert samples["mcp_proxy_ejections_total"] == {("weather",): 1}
    assert samples["mcp_proxy_reinitializations_total"] == {("weather", "done"): 1}
    assert samples["mcp_proxy_session_lookups_total"] == {("hit", "memory"): 2, ("miss", "memory"): 1}
    assert samples["mcp_proxy_store_errors_total"] == {("create",): 1}
    assert samples["mcp_proxy_upstream_failures_total"] == {("connect", "weather"): 1}
    assert samples["mcp_proxy_stream_opens_total"] == {("weather",): 2}
    assert samples["mcp_proxy_stream_closes_total"] == {("weather", "client"): 1}


def test_what_may_be_counted_is_there_from_the_start_with_0() -> None:
    now = GaugeSnapshot(inflight=0, open_streams={"weather": 0}, sessions={}, backends=[])
    metrics = Metrics(lambda: now, reasons=["overloaded", "draining"])

    samples = scrape(metrics)
    assert samples["mcp_proxy_rejections_total"] == {("overloaded",): 0, ("draining",): 0}
    assert samples["mcp_proxy_ejections_total"] == {("weather",): 0}
    assert set(samples["mcp_proxy_stream_closes_total"].values()) == {0}
    assert len(samples["mcp_proxy_stream_closes_total"]) == len(CLOSE_REASONS)
    assert len(samples["mcp_proxy_upstream_failures_total"]) == 3
    assert ("traces",) in samples["mcp_proxy_sink_failures_total"]

    metrics.stream_closed("weather", "drain")
    metrics.stream_closed("gone", "client")
    closes = scrape(metrics)["mcp_proxy_stream_closes_total"]
    assert (closes["weather", "drain"], closes["gone", "client"]) == (1, 1)


def test_gauges_are_what_is_true_at_the_scrape() -> None:
    moments = iter(
        [
            IDLE,
            GaugeSnapshot(
                inflight=7,
                open_streams={"weather": 3, "corp": 0},
                sessions={"weather": 12},
                backends=[
                    BackendNow("weather", "http://a:1/mcp", is_up=True, sessions=5, inflight=4, streams=3),
                    BackendNow("weather", "http://b:1/mcp", is_up=False, is_draining=True),
                ],
                log_lines_dropped=4,
                trace_spans={"exported": 9, "dropped": 1},
                is_draining=True,
                stores={"redis": False},
            ),
        ]
    )
    metrics = Metrics(lambda: next(moments))
    before = scrape(metrics)
    assert (before["mcp_proxy_inflight"], before["mcp_proxy_draining"]) == ({(): 0}, {(): 0})
    samples = scrape(metrics)
    assert samples["mcp_proxy_inflight"] == {(): 7}
    assert samples["mcp_proxy_open_streams"] == {("weather",): 3, ("corp",): 0}
    assert samples["mcp_proxy_sessions"] == {("weather",): 12}
    one, other = ("http://a:1/mcp", "weather"), ("http://b:1/mcp", "weather")
    assert samples["mcp_proxy_backend_up"] == {one: 1, other: 0}
    assert samples["mcp_proxy_backend_draining"] == {one: 0, other: 1}
    assert samples["mcp_proxy_backend_sessions"] == {one: 5, other: 0}
    assert samples["mcp_proxy_backend_inflight"] == {one: 4, other: 0}
    assert samples["mcp_proxy_backend_streams"] == {one: 3, other: 0}
    assert samples["mcp_proxy_draining"] == {(): 1}
    assert samples["mcp_proxy_store_up"] == {("redis",): 0}
    assert samples["mcp_proxy_trace_spans_total"] == {("exported",): 9, ("dropped",): 1}
    assert samples["mcp_proxy_access_log_dropped_total"] == {(): 4}


def test_the_process_and_the_build_are_described() -> None:
    samples = scrape(idle())
    assert [key for key in samples["mcp_proxy_build_info"] if __version__ in key]
    assert "python_info" in samples
    assert samples["process_resident_memory_bytes"][()] > 0


def test_every_family_is_announced_from_the_first_scrape_on() -> None:
    text = idle().render(None)[0].decode()
    announced = set(re.findall(r"^# TYPE mcp_proxy_(\w+) ", text, re.M))
    assert announced == {*COUNTERS, *HISTOGRAMS, *GAUGES, "build_info"}
    assert set(re.findall(r"^# HELP mcp_proxy_(\w+) .+", text, re.M)) == announced


def test_a_snapshot_has_every_family_and_no_other() -> None:
    snapshot = idle().snapshot()
    assert snapshot.counters.keys() == COUNTERS.keys()
    assert snapshot.histograms.keys() == HISTOGRAMS.keys()


@pytest.mark.parametrize("name", [*COUNTERS, *HISTOGRAMS, *GAUGES])
def test_a_name_says_its_unit_as_prometheus_wants_it(name: str) -> None:
    assert name.endswith("_total") == (name in COUNTERS)
    assert name.endswith("_seconds") == (name in HISTOGRAMS)


@pytest.mark.parametrize("bounds", [bounds for _, _, bounds in HISTOGRAMS.values()])
def test_bounds_of_buckets_rise(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_openmetrics_is_served_to_those_who_ask_and_passes_the_strict_parser() -> None:
    metrics = idle()
    metrics.record(call())
    metrics.lookup("memory", "hit")
    body, content_type = metrics.render("application/openmetrics-text; version=1.0.0, text/plain;q=0.5")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = openmetrics_parser.text_string_to_metric_families(body.decode())  # type: ignore[no-untyped-call]
    samples = _samples(families)
    assert samples["mcp_proxy_requests_total"] == {("tools/call", "/weather/mcp", "200"): 1}


@pytest.mark.parametrize(
    "accept",
    [
        *(None, "", "*/*", ";;,,=", "a" * 9000),
        *("text/plain; version=abc", "application/openmetrics-text; version=\xe9"),
    ],
)
def test_any_other_accept_header_gets_the_plain_format(accept: str | None) -> None:
    body, content_type = idle().render(accept)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert body.startswith(b"# HELP ")


def test_two_proxies_in_one_process_count_apart() -> None:
    one, two = idle(), idle()
    one.record(call())
    assert "mcp_proxy_requests_total" in scrape(one)
    assert "mcp_proxy_requests_total" not in scrape(two)


def test_totals_sum_over_labels() -> None:
    metrics = idle()
    sink: Sink = metrics
    meters: Meters = metrics
    for record in (call(), call(method="ping"), call(reason="draining", status=503)):
        sink.record(record)
    meters.lookup("memory", "miss")
    meters.stream_opened("weather")
    assert metrics.totals() == {
        "requests": 3,
        "rejections": 1,
        "streams_opened": 1,
        "streams_closed": 0,
        "upstream_failures": 0,
        "session_lookups": 1,
        "store_errors": 0,
    }
