"""What is measured: every family of metrics with its words for operators, its labels and its buckets.

Rules of this file:
* Names stand without the prefix, in Prometheus' conventions: base units, ``_total`` for what only grows.
* A text says what one looks for in a graph, and what a value of a label means.
* Values of labels come from the configuration or from closed lists of ours, never from a client.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from mcp_proxy.errors import Fault

Bounds: TypeAlias = tuple[float, ...]

CLOSE_REASONS: Final = {
    Fault.NONE: "end",
    Fault.CLIENT: "client",
    Fault.BACKEND: "backend",
    Fault.PROXY: "proxy",
    Fault.TIMEOUT: "timeout",
    Fault.DRAIN: "drain",
}
"""Who ended a stream, as label. ``end``: its backend did, in good order."""

# --- buckets -------------------------------------------------------------------------------------------

DURATION_BOUNDS_S: Final[Bounds] = (
    *(0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
"""The OpenTelemetry conventions for MCP begin at 10 ms: with their bounds a graph of the proxy and one of its
backend can be laid on each other. 1 and 5 ms besides, which is where a backend nearby answers."""

OVERHEAD_BOUNDS_S: Final[Bounds] = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.1, 0.5, 1.0, 5.0),
)
"""From what the proxy costs when idle (tens of microseconds) over one question to the registry (250 ms at
most) to a client that reads too slowly."""

STREAM_BOUNDS_S: Final[Bounds] = (
    *(0.1, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0),
    *(1800.0, 3600.0, 14400.0, 86400.0),
)
"""From a tool that reports progress to a listening stream that stays for a day; in between the times after
which something on the way cuts connections, as below."""

IDLE_BOUNDS_S: Final[Bounds] = (5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Idle timeouts of what stands in front or behind: load balancers and NGINX cut after 30, 60, 120, 300, 600
or 3600 s without a byte. Such a cut shows in the bucket that begins with its timeout."""

STORE_BOUNDS_S: Final[Bounds] = (
    *(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
)
"""From a registry next door (0.3 ms) to one that is given up: after 250 ms, and after 5 s for a list."""

LAG_BOUNDS_S: Final[Bounds] = (*(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),)
"""A timer is up to 1 ms late by itself; 100 ms is a CPU limit at work; seconds are a machine that stands."""

# --- families ------------------------------------------------------------------------------------------

COUNTERS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "requests_total": (
        "Exchanges that have ended, streams included; status 0: the client left before an answer.",
        ("route", "method", "status"),
    ),
    "received_bytes_total": ("Bytes of request bodies.", ("route",)),
    "sent_bytes_total": ("Bytes of response bodies, as given to the client's connection.", ("route",)),
    "rejections_total": ("Answers of the proxy itself instead of a backend's, by their reason.", ("reason",)),
    "upstream_failures_total": (
        "Attempts at a backend that failed, retried or not, by phase: connect, head or body.",
        ("pool", "phase"),
    ),
    "stream_opens_total": ("Event streams begun.", ("pool",)),
    "stream_closes_total": (
        "Event streams ended, by who ended them: end (the backend, in good order), backend (it broke),"
        " client, timeout, drain or proxy.",
        ("pool", "reason"),
    ),
    "session_lookups_total": (
        "Look-ups of a session's owner: hit (known here), cold (the registry knew), miss (there is none)"
        " or error (nobody could be asked).",
        ("store", "result"),
    ),
    "reinitializations_total": (
        "Sessions of lost backends that were to be made anew at another, without their state: done or"
        " failed.",
        ("pool", "result"),
    ),
    "ejections_total": ("Backends left out for a while because they failed.", ("pool",)),
    "store_errors_total": (
        "What could not be done because the session registry failed, by operation.",
        ("operation",),
    ),
    "access_log_dropped_total": ("Access lines lost because they could not be written.", ()),
    "sink_failures_total": (
        "Records that a sink (metrics, access_log, traces) has not taken because of an error in it.",
        ("sink",),
    ),
    "trace_spans_total": (
        "Spans of sampled exchanges: exported, dropped (too many waited) or failed (the collector refused"
        " them or could not be reached); limited: exchanges that telemetry.traces.limit kept from being"
        " recorded.",
        ("result",),
    ),
}
"""Family: what it says, and its labels."""

HISTOGRAMS: Final[dict[str, tuple[str, tuple[str, ...], Bounds]]] = {
    "request_duration_seconds": (
        "From the whole request to the last byte of the answer; a stream counts when it ends.",
        ("route", "method"),
        DURATION_BOUNDS_S,
    ),
    "time_to_first_byte_seconds": (
        "From the whole request to the head of the answer, whoever gave it.",
        ("route",),
        DURATION_BOUNDS_S,
    ),
    "overhead_seconds": (
        "The proxy's own share of a request's duration: all but the wait for backends. Answers for which"
        " no backend was asked do not count.",
        ("route",),
        OVERHEAD_BOUNDS_S,
    ),
    "stream_duration_seconds": (
        "Duration of event streams, observed when they end.",
        ("pool",),
        STREAM_BOUNDS_S,
    ),
    "stream_idle_seconds": (
        "For how long nothing had been sent on an event stream when it ended, by who ended it, as in"
        " stream_closes_total. A peak at one value is somebody's idle timeout.",
        ("pool", "reason"),
        IDLE_BOUNDS_S,
    ),
    "store_duration_seconds": (
        "Time that the session registry took for a question, failures by timeout included, by operation."
        " Questions that were not sent because it is known to be away do not count.",
        ("operation",),
        STORE_BOUNDS_S,
    ),
    "event_loop_lag_seconds": (
        "How late a timer of 100 ms fired: what every request waits besides when the process has too"
        " little CPU.",
        (),
        LAG_BOUNDS_S,
    ),
}
"""Family: what it says, its labels, and the bounds of its buckets."""

GAUGES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "inflight": ("Exchanges in progress, streams included.", ()),
    "open_streams": ("Event streams open.", ("pool",)),
    "sessions": ("Sessions known here; one that several processes serve counts in each.", ("pool",)),
    "draining": ("1 while the proxy stops: it is not ready any more and ends what it has.", ()),
    "store_up": ("1 while the session registry can be asked; always 1 without one.", ("store",)),
    "backend_up": ("1 while the backend is reachable, healthy and not ejected.", ("pool", "backend")),
    "backend_draining": (
        "1 while the backend gets nothing new and only keeps what it has.",
        ("pool", "backend"),
    ),
    "backend_sessions": (
        "Sessions that live at the backend; one that several processes serve counts in each.",
        ("pool", "backend"),
    ),
    "backend_inflight": ("Exchanges in progress at the backend, streams included.", ("pool", "backend")),
    "backend_streams": ("Event streams open at the backend.", ("pool", "backend")),
}
"""Family: what it says, and its labels."""
