"""Metrics are read back the way Prometheus reads them: through the library's parsers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from mcp_proxy import __version__
from mcp_proxy.errors import Fault, Phase
from mcp_proxy.telemetry import Meters, RequestRecord, Sink
from mcp_proxy.telemetry.metrics import METHODS, Metrics
from mcp_proxy.telemetry.snapshot import GaugeSnapshot

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


def test_ten_thousand_junk_methods_add_one_series() -> None:
    metrics = idle()
    metrics.record(call(method="vendor/first"))
    size = len(metrics.render(None)[0])
    for number in range(10_000):
        metrics.record(call(method=f"junk/{number}\n\ud800"))
    samples = scrape(metrics)
    assert samples["mcp_proxy_requests_total"] == {("other", "/weather/mcp", "200"): 10_001}
    assert samples["mcp_proxy_request_duration_seconds_count"] == {("other", "/weather/mcp"): 10_001}
    assert len(metrics.render(None)[0]) < size + 200


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
    assert (series["0.001"], series["0.0025"], series["2.5"], series["5.0"]) == (1, 2, 2, 3)
    assert (series["300.0"], series["+Inf"]) == (3, 4)
    assert samples["mcp_proxy_request_duration_seconds_sum"] == {
        ("tools/call", "/weather/mcp"): pytest.approx(10_003.0021)
    }


def test_overhead_is_observed_only_where_it_is_ours() -> None:
    metrics = idle()
    metrics.record(call(duration_s=0.0125, upstream_s=0.0120))
    metrics.record(call(duration_s=3600.0, is_stream=True))
    metrics.record(call(duration_s=2.0, upstream_s=0.0, status=503))
    samples = scrape(metrics)
    assert samples["mcp_proxy_overhead_seconds_count"] == {("/weather/mcp",): 1}
    assert samples["mcp_proxy_overhead_seconds_sum"] == {("/weather/mcp",): pytest.approx(0.0005)}


def test_an_overhead_never_shrinks_the_sum() -> None:
    metrics = idle()
    metrics.record(call(duration_s=0.0119, upstream_s=0.0120))
    assert scrape(metrics)["mcp_proxy_overhead_seconds_sum"] == {("/weather/mcp",): 0.0}


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
    samples = scrape(metrics)
    assert samples["mcp_proxy_session_lookups_total"] == {("hit", "memory"): 2, ("miss", "memory"): 1}
    assert samples["mcp_proxy_store_errors_total"] == {("create",): 1}
    assert samples["mcp_proxy_upstream_failures_total"] == {("connect", "weather"): 1}
    assert samples["mcp_proxy_stream_opens_total"] == {("weather",): 2}
    assert samples["mcp_proxy_stream_closes_total"] == {("weather", "client"): 1}


def test_gauges_are_what_is_true_at_the_scrape() -> None:
    moments = iter(
        [
            IDLE,
            GaugeSnapshot(
                inflight=7,
                open_streams={"weather": 3, "corp": 0},
                sessions={"weather": 12},
                backends=[("weather", "http://a:1/mcp", True), ("weather", "http://b:1/mcp", False)],
                log_lines_dropped=4,
            ),
        ]
    )
    metrics = Metrics(lambda: next(moments))
    assert scrape(metrics)["mcp_proxy_inflight"] == {(): 0}
    samples = scrape(metrics)
    assert samples["mcp_proxy_inflight"] == {(): 7}
    assert samples["mcp_proxy_open_streams"] == {("weather",): 3, ("corp",): 0}
    assert samples["mcp_proxy_sessions"] == {("weather",): 12}
    assert samples["mcp_proxy_backend_up"] == {
        ("http://a:1/mcp", "weather"): 1,
        ("http://b:1/mcp", "weather"): 0,
    }
    assert samples["mcp_proxy_access_log_dropped_total"] == {(): 4}


def test_the_process_and_the_build_are_described() -> None:
    samples = scrape(idle())
    assert [key for key in samples["mcp_proxy_build_info"] if __version__ in key]
    assert "python_info" in samples
    assert samples["process_resident_memory_bytes"][()] > 0


def test_every_documented_metric_is_announced_from_the_first_scrape_on() -> None:
    text = idle().render(None)[0].decode()
    names = {family.name for family in parser.text_string_to_metric_families(text)}
    assert names >= {
        f"mcp_proxy_{name}"
        for name in (
            *("requests", "request_duration_seconds", "overhead_seconds", "rejections", "inflight"),
            *("upstream_failures", "backend_up", "open_streams", "stream_opens", "stream_closes"),
            *("sessions", "session_lookups", "store_errors", "access_log_dropped", "build_info"),
        )
    }


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
