"""For every alert what a broken proxy shows, and what is just short of that.

Rules of this file: series in promtool's notation, a value per minute, without prefix and target, which
``stored`` adds.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.tools.promtool import Values

SITE = 'namespace="mcp", job="mcp-proxy"'
TARGET = f'{SITE}, instance="10.0.0.5:9901"'


class Case(NamedTuple):
    alert: str
    labels: dict[str, str]
    """Of the alert, besides namespace, job and severity."""
    broken: Values
    healthy: Values
    minutes: int = 60
    """When it is looked at."""


INSTANCE = {"instance": "10.0.0.5:9901"}
POOL = {"pool": "tools"}
BACKEND = {"pool": "tools", "backend": "a:80"}
SERVES = {'requests_total{route="/mcp", method="tools/call", status="200"}': "0+600x90"}


def ends(family: str, labels: str, bounds: str, low: str, high: str) -> dict[str, str]:
    """A histogram with two buckets and its count: below ``bounds[0]``, and all."""
    first, last = bounds.split()
    return {
        f'{family}_bucket{{{labels}le="{first}"}}': low,
        f'{family}_bucket{{{labels}le="{last}"}}': high,
        f'{family}_bucket{{{labels}le="+Inf"}}': high,
        f"{family}_count{{{labels.rstrip(', ')}}}": high,
    }


def lookups(hit: str, miss: str) -> dict[str, str]:
    return {
        'session_lookups_total{store="redis", result="hit"}': hit,
        'session_lookups_total{store="redis", result="miss"}': miss,
    }


def closes(reason: str, count: str) -> dict[str, str]:
    return {
        f'stream_closes_total{{pool="tools", reason="{reason}"}}': count,
        'stream_closes_total{pool="tools", reason="client"}': "0+5x90",
    }


CLIENT_CLOSES = 'pool="tools", reason="client", '
OVERHEAD = 'route="/mcp", '
LOOKUP = 'operation="get", '

CASES = [
    Case(
        "McpProxyDown",
        INSTANCE,
        {"up": "1x9 0x9", "build_info": "1x9 stale"},
        {"up": "1x9 0 1x9", "build_info": "1x9 _ 1x9"},
        14,
    ),
    Case(
        "McpProxyRestarting",
        INSTANCE,
        {"process_start_time_seconds": "1x40 2x3 3x3 4x40"},
        {"process_start_time_seconds": "1x40 2x3 3x43"},
    ),
    Case(
        "McpProxyWorkersRestarting",
        INSTANCE,
        {"worker_restarts_total": "0x40 1x3 2x3 3x3 4x90"},
        {"worker_restarts_total": "0x40 1x90"},
    ),
    Case(
        "McpProxyEventLoopLag",
        INSTANCE,
        ends("event_loop_lag_seconds", "", "0.1 0.25", "0+580x90", "0+600x90"),
        ends("event_loop_lag_seconds", "", "0.1 0.25", "0+599x90", "0+600x90"),
    ),
    Case(
        "McpProxyDescriptorsNearLimit",
        INSTANCE,
        {"process_open_fds": "850x90", "process_max_fds": "1000x90"},
        {"process_open_fds": "750x90", "process_max_fds": "1000x90"},
    ),
    Case(
        "McpProxyReloadFailed",
        INSTANCE,
        {"config_last_reload_success": "1x50 0x40"},
        {"config_last_reload_success": "1x50 0 1x40"},
    ),
    Case("McpProxyDrainingLong", INSTANCE, {"draining": "0x40 1x50"}, {"draining": "0x50 1x40"}),
    Case(
        "McpProxyErrorRatioHigh",
        {"route": "/mcp"},
        {**SERVES, 'requests_total{route="/mcp", method="tools/call", status="502"}': "0+60x90"},
        {**SERVES, 'requests_total{route="/mcp", method="tools/call", status="502"}': "0+6x90"},
    ),
    Case(
        "McpProxyOverloaded",
        {"reason": "overloaded"},
        {**SERVES, 'rejections_total{reason="overloaded"}': "0+6x90"},
        {**SERVES, 'rejections_total{reason="overloaded"}': "0x50 6x40"},
    ),
    Case(
        "McpProxyRefusalsHigh",
        {"reason": "forbidden_origin"},
        {**SERVES, 'rejections_total{reason="forbidden_origin"}': "0+120x90"},
        {
            **SERVES,
            'rejections_total{reason="forbidden_origin"}': "0+6x90",
            'rejections_total{reason="session_not_found"}': "0+300x90",
        },
    ),
    Case(
        "McpProxyInternalErrors",
        {},
        {**SERVES, 'rejections_total{reason="internal_error"}': "0x50 1x40"},
        {**SERVES, 'rejections_total{reason="internal_error"}': "0x90"},
    ),
    Case(
        "McpProxyOverheadHigh",
        {"route": "/mcp"},
        ends("overhead_seconds", OVERHEAD, "0.025 0.1", "0+580x90", "0+600x90"),
        ends("overhead_seconds", OVERHEAD, "0.025 0.1", "0+599x90", "0+600x90"),
    ),
    Case(
        "McpProxyPoolDown",
        POOL,
        {'backend_up{pool="tools", backend="a:80"}': "1x57 0x40"},
        {
            'backend_up{pool="tools", backend="a:80"}': "1x57 0x40",
            'backend_up{pool="tools", backend="b:80"}': "1x90",
        },
    ),
    Case("McpProxyPoolDown", POOL, {'open_streams{pool="tools"}': "0x90"}, {}),
    Case(
        "McpProxyBackendDown",
        BACKEND,
        {
            'backend_up{pool="tools", backend="a:80"}': "1x50 0x40",
            'backend_up{pool="tools", backend="b:80"}': "1x90",
        },
        {
            'backend_up{pool="tools", backend="a:80"}': "1x50 0x40",
            'backend_draining{pool="tools", backend="a:80"}': "0x40 1x50",
            'backend_up{pool="tools", backend="b:80"}': "1x90",
        },
    ),
    Case(
        "McpProxyEjectionsRepeating",
        POOL,
        {'ejections_total{pool="tools"}': "0x35 1x5 2x5 3x5 4x5 5x50"},
        {'ejections_total{pool="tools"}': "0x35 2x60"},
    ),
    Case(
        "McpProxyBackendDrainingLong",
        BACKEND,
        {'backend_draining{pool="tools", backend="a:80"}': "1x90"},
        {'backend_draining{pool="tools", backend="a:80"}': "0x30 1x60"},
        61,
    ),
    Case(
        "McpProxyRegistryDown",
        INSTANCE | {"store": "redis"},
        {'store_up{store="redis"}': "1x57 0x40"},
        {'store_up{store="redis"}': "1x58 0 1x40"},
        61,
    ),
    Case(
        "McpProxyRegistryErrors",
        {"operation": "get"},
        {'store_errors_total{operation="get"}': "0+1x90"},
        {'store_errors_total{operation="get"}': "0x50 3x40"},
    ),
    Case(
        "McpProxyRegistrySlow",
        {"operation": "get"},
        ends("store_duration_seconds", LOOKUP, "0.1 0.25", "0+580x90", "0+600x90"),
        ends("store_duration_seconds", LOOKUP, "0.1 0.25", "0+599x90", "0+600x90"),
    ),
    Case(
        "McpProxySessionsLost",
        {"store": "redis"},
        lookups("0+60x50 3000x40", "0x50 0+60x40"),
        lookups("0+60x90", "0+6x90"),
    ),
    Case(
        "McpProxyReinitializationsFailing",
        POOL,
        {'reinitializations_total{pool="tools", result="failed"}': "0x50 0+2x40"},
        {'reinitializations_total{pool="tools", result="failed"}': "0x50 1x40"},
    ),
    Case(
        "McpProxyStreamsCut",
        POOL | {"reason": "timeout"},
        closes("timeout", "0+5x90"),
        closes("end", "0+5x90"),
    ),
    Case(
        "McpProxyStreamsCut", POOL | {"reason": "proxy"}, closes("proxy", "0+1x90"), closes("drain", "0+5x90")
    ),
    Case(
        "McpProxyStreamsCutWhenIdle",
        POOL,
        ends("stream_idle_seconds", CLIENT_CLOSES, "60 120", "0x90", "0+2x90"),
        ends("stream_idle_seconds", CLIENT_CLOSES, "60 120", "0+1x90", "0+2x90"),
    ),
    Case(
        "McpProxyAccessLinesDropped",
        INSTANCE,
        {"access_log_dropped_total": "0x50 1x40"},
        {"access_log_dropped_total": "0x30 1x60"},
    ),
    Case(
        "McpProxySpansDropped",
        {"result": "failed"},
        {'trace_spans_total{result="exported"}': "0+50x90", 'trace_spans_total{result="failed"}': "0+2x90"},
        {'trace_spans_total{result="exported"}': "0+50x90", 'trace_spans_total{result="failed"}': "0x90"},
    ),
    Case(
        "McpProxySinkFailing",
        {"sink": "traces"},
        {'sink_failures_total{sink="traces"}': "0x50 1x40"},
        {'sink_failures_total{sink="traces"}': "0x90"},
    ),
]


def stored(values: Values, target: str = TARGET) -> dict[str, str]:
    """With the prefix, the target and what every proxy shows."""
    always = {"up": "1x90", "build_info": "1x90"}
    series = {}
    for name, line in {**always, **values}.items():
        family, _, labels = name.rstrip("}").partition("{")
        own = family == "up" or family.startswith("process_")
        series[f"{'' if own else 'mcp_proxy_'}{family}{{{labels}{', ' if labels else ''}{target}}}"] = line
    return series
