"""What a call costs with each part of telemetry: CPU time of the proxy, beside telemetry that is off.

Rules of this file: sessions, calls and load are those of the first table. Rows differ in ``telemetry:``
alone, take turns within each round, and are compared within a round. What a collector does with spans is the
collector's; sending them is the proxy's, threads included. Spans leave some time after their call, so a
measurement ends when they have left, for rows without traces as well. How many calls a collector was told of
is part of the result: spans that are dropped cost next to nothing.
"""

from __future__ import annotations

import http.client
import re
import sys
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from tests.bench import candidates, load
from tests.bench.procs import BenchError, Process, free_port
from tests.bench.report import Numbers, Results, percentile

if TYPE_CHECKING:
    from tests.bench.measure import Bench, Instance

PHASE = "telemetry"
OFF = "off"
LOGGED = "metrics + access log"
SETTLE_S = 2.0
"""Longer than spans wait for others to go with them (1 s), and than what is left of them takes to be sent."""
SAMPLES = {"traces at 0 %": 0, "traces at 1 %": 0.01, "traces at 100 %": 1}
SPANS_PER_CALL = 2
_EXPORTED = re.compile(rb'^mcp_proxy_trace_spans_total\{result="exported"\} (\S+)$', re.MULTILINE)
_LOG = "access_log: json, access_log_file: %(directory)s/access.log, metrics: true"
_ROWS = {
    OFF: "{access_log: off, metrics: false}",
    "metrics": "{access_log: off, metrics: true}",
    LOGGED: "{" + _LOG + "}",
    **{
        name: "{" + _LOG + ", traces: {endpoint: '%(endpoint)s', limit: none, sample: " + str(share) + "}}"
        for name, share in SAMPLES.items()
    },
}
"""All that a row is. Without a limit: with one, only some of many calls are recorded."""


def run(bench: Bench) -> None:
    """Adds the phase ``telemetry``."""
    from tests.bench.measure import Instance

    with bench.excluding(PHASE), ExitStack() as stack:
        backend = stack.enter_context(bench.backend())
        collector = stack.enter_context(_collector(bench))
        instances: list[Instance] = []
        admin_ports: dict[str, int] = {}
        for name, telemetry in _ROWS.items():
            setup = bench.setup(f"telemetry-{len(instances)}", backend.port)._replace(admin_port=free_port())
            admin_ports[name] = setup.admin_port
            places = {"directory": setup.directory, "endpoint": f"http://127.0.0.1:{collector.port}"}
            process = stack.enter_context(
                candidates.start("http11", setup._replace(telemetry=telemetry % places))
            )
            instances.append(Instance(name, process.port, process))

        def sample(instance: Instance, backend: Process) -> Numbers:
            return _calls(bench, instance, admin_ports[instance.name])

        bench.rounds(PHASE, instances, backend, sample)
        compare(bench.results)


def _calls(bench: Bench, instance: Instance, admin_port: int) -> Numbers:
    with closing(load.CallLoad(instance.port, bench.options.connections)) as calls:
        calls.run(bench.options.warm_s)
        time.sleep(SETTLE_S)
        spans, cpu_ns = exported(admin_port), instance.cpu_ns()
        result = calls.run(bench.options.seconds)
        time.sleep(SETTLE_S)
        cpu_ns, spans = instance.cpu_ns() - cpu_ns, exported(admin_port) - spans
    count = len(result.latencies_s)
    return {
        "cpu_us": cpu_ns / 1000 / count,
        "recorded_percent": spans / SPANS_PER_CALL / count * 100,
        "per_s": count / result.elapsed_s,
        "p50_ms": percentile(result.latencies_s, 50) * 1000,
        "p99_ms": percentile(result.latencies_s, 99) * 1000,
    }


def exported(admin_port: int) -> float:
    """Spans that the collector has taken so far; 0 without metrics or traces."""
    connection = http.client.HTTPConnection("127.0.0.1", admin_port, timeout=load.STALL_S)
    with closing(connection):
        connection.request("GET", "/metrics")
        found = _EXPORTED.search(connection.getresponse().read())
    return float(found[1]) if found else 0.0


def compare(results: Results) -> None:
    """Adds to each round what it costs more than the same round with telemetry off (``added_us``), and than
    that with metrics and access log (``traces_us``). A round that not all have completed is left out."""
    of_phase = results[PHASE]
    if not {OFF, LOGGED} <= of_phase.keys():
        del results[PHASE]
        raise BenchError("there is nothing to compare with")
    completed = min(map(len, of_phase.values()))
    for rounds in of_phase.values():
        del rounds[completed:]
    for field, reference in (("added_us", OFF), ("traces_us", LOGGED)):
        for rounds in of_phase.values():
            for numbers, beside in zip(rounds, of_phase[reference], strict=True):
                numbers[field] = numbers["cpu_us"] - beside["cpu_us"]


def _collector(bench: Bench) -> Process:
    port = free_port()
    process = Process(
        [sys.executable, "-m", "tests.bench.collector", str(port)],
        port,
        bench.options.directory / "collector.log",
    )
    try:
        process.wait_until_listening()
    except BaseException:
        process.stop()
        raise
    return process
