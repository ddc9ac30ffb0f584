"""What is measured, one function per question. Each returns or collects plain numbers; none judges them.

Results are ``{phase: {candidate: [numbers of one round, ...]}}``, the input of ``report``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from tests.bench import candidates, decisions, load, overhead, registry, telemetry
from tests.bench.backend import FLOOD_CHUNK_BYTES
from tests.bench.procs import BenchError, Process, free_port
from tests.bench.report import Numbers, Results, percentile

DIRECT = "no proxy"
"""The backend without a proxy, measured with the calls: shows that it is not the bottleneck."""
STEADY_READS = 8
"""So many equal readings, 50 ms apart, mean that a stalled stream has come to rest."""
_MIB = 1024 * 1024


class Options(NamedTuple):
    directory: Path
    names: tuple[str, ...]
    file_limit: int
    rounds: int = 5
    seconds: float = 2.0
    warm_s: float = 0.3
    """Before each measurement: caches fill, connections to the backend open."""
    connections: int = 32
    event_streams: int = 64
    event_interval_ms: int = 10
    """Between two events of a stream. 6,400 events/s in all is well below what the slowest candidate can
    do even on a busy machine, so that all see the same arrivals."""
    streams: int = 5000
    flood_mib: int = 64
    compares_streams: bool = True
    """Whether calls beside idle streams are compared with calls beside none."""
    questions: frozenset[str] = frozenset()
    """What else is measured, none of which needs ``names``."""


class Instance(NamedTuple):
    name: str
    port: int
    process: Process | None

    def cpu_ns(self) -> int:
        return 0 if self.process is None else self.process.cpu_ns()

    def rss_bytes(self) -> int:
        return 0 if self.process is None else self.process.rss_bytes()


class Bench:
    """One run. ``failed`` says why a candidate is missing; the others go on without it."""

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self.options = options
        self.results: Results = {}
        self.failed: dict[str, str] = {}
        self.say = say
        self._instances = 0

    def run(self) -> None:
        questions = self.options.questions
        if decisions.PHASE in questions:
            self.say(decisions.PHASE)
            decisions.run(self.results, self.options.rounds, self.options.seconds)
        if telemetry.PHASE in questions:
            telemetry.run(self)
        if overhead.PHASE in questions:
            overhead.run(self)
        if self.options.names:
            self._measure()

    def _measure(self) -> None:
        with self.backend() as backend, ExitStack() as stack:
            running = [*self._started(stack, backend), Instance(DIRECT, backend.port, None)]
            self.rounds("calls", running, backend, self.calls)
            self.rounds("traced", running[:-1], backend, self._traced_calls)
            self.rounds("events", running[:-1], backend, self._events)
        for name in self.options.names:
            self._alone("streams", name, self._idle_streams)
        for name in self.options.names:
            self._alone("stall", name, self._stalled_reader)
        if "http11" in self.options.names and self.options.compares_streams:
            self._alone("beside", "http11", self._calls_beside_streams)
        if "http11" in self.options.names:
            registry.run(self)

    # --- who runs ---

    @contextmanager
    def backend(self) -> Iterator[Process]:
        with candidates.start_backend(self.options.directory) as backend:
            yield backend

    def setup(self, name: str, backend_port: int) -> candidates.Setup:
        """For one more instance."""
        self._instances += 1
        directory = self.options.directory / f"{name}-{self._instances}"
        return candidates.Setup(directory, free_port(), backend_port, self.options.file_limit)

    def _start(self, name: str, backend: Process) -> Instance:
        setup = self.setup(name, backend.port)
        return Instance(name, setup.port, candidates.start(name, setup))

    def _started(self, stack: ExitStack, backend: Process) -> list[Instance]:
        instances = []
        for name in self.options.names:
            with self.excluding(name):
                instance = self._start(name, backend)
                if instance.process is not None:
                    stack.enter_context(instance.process)
                instances.append(instance)
        return instances

    @contextmanager
    def excluding(self, name: str) -> Iterator[None]:
        try:
            yield
        except (BenchError, OSError, HTTPException) as error:
            self.failed[name] = str(error) or type(error).__name__
            self.say(f"{name}: {error}")

    def rounds(
        self,
        phase: str,
        instances: list[Instance],
        backend: Process,
        sample: Callable[[Instance, Process], Numbers],
    ) -> None:
        """Alternate: every candidate once per round."""
        of_phase = self.results.setdefault(phase, {})
        for number in range(self.options.rounds):
            self.say(f"{phase}: round {number + 1} of {self.options.rounds}")
            for instance in instances:
                if instance.name in self.failed:
                    continue
                with self.excluding(instance.name):
                    numbers = sample(instance, backend)
                    of_phase.setdefault(instance.name, []).append(numbers)

    def _alone(self, phase: str, name: str, sample: Callable[[Instance, Process], list[Numbers]]) -> None:
        """With a fresh process: memory that an earlier test has freed would hide growth."""
        if name in self.failed:
            return
        self.say(f"{phase}: {name}")
        with self.excluding(name), self.backend() as backend:
            instance = self._start(name, backend)
            assert instance.process is not None
            with instance.process:
                self.results.setdefault(phase, {})[name] = sample(instance, backend)

    # --- what is asked ---

    def calls(self, instance: Instance, backend: Process) -> Numbers:
        with closing(load.CallLoad(instance.port, self.options.connections)) as calls:
            return self._call_numbers(calls, instance, backend)

    def _traced_calls(self, instance: Instance, backend: Process) -> Numbers:
        with closing(load.CallLoad(instance.port, self.options.connections, traced=True)) as calls:
            return self._call_numbers(calls, instance, backend)

    def _call_numbers(self, calls: load.CallLoad, instance: Instance, backend: Process) -> Numbers:
        calls.run(self.options.warm_s)
        rss = instance.rss_bytes()
        before = (instance.cpu_ns(), backend.cpu_ns(), time.process_time_ns())
        result = calls.run(self.options.seconds)
        after = (instance.cpu_ns(), backend.cpu_ns(), time.process_time_ns())
        proxy_us, backend_us, load_us = (
            (end - start) / 1000 / len(result.latencies_s) for start, end in zip(before, after, strict=True)
        )
        return {
            "cpu_us": proxy_us,
            "per_s": len(result.latencies_s) / result.elapsed_s,
            "p50_ms": percentile(result.latencies_s, 50) * 1000,
            "p99_ms": percentile(result.latencies_s, 99) * 1000,
            "busy": proxy_us * len(result.latencies_s) / 1e6 / result.elapsed_s,
            "backend_cpu_us": backend_us,
            "load_cpu_us": load_us,
            # Near 0, or something is kept per call.
            "rss_bytes_per_call": (instance.rss_bytes() - rss) / len(result.latencies_s),
        }

    def _events(self, instance: Instance, backend: Process) -> Numbers:
        control = load.Control(backend.port)
        with (
            closing(control),
            closing(load.event_streams(instance.port, self.options.event_streams)) as streams,
        ):
            # The count goes on over rounds and candidates; this round starts where it stands.
            sent_before = control()["events_sent"]

            def relay(seconds: float) -> None:
                control(interval=self.options.event_interval_ms / 1000)
                streams.read_for(seconds)
                streams.read_until(control(interval=0)["events_sent"] - sent_before)

            relay(self.options.warm_s)
            events, reads, cpu_ns = streams.events, streams.reads, instance.cpu_ns()
            relay(self.options.seconds)
            cpu_ns = instance.cpu_ns() - cpu_ns
            events, reads = streams.events - events, streams.reads - reads
            control(finish=1)
        return {"cpu_us": cpu_ns / 1000 / events, "events_per_read": events / reads}

    def _idle_streams(self, instance: Instance, backend: Process) -> list[Numbers]:
        process, count = instance.process, self.options.streams
        assert process is not None
        control = load.Control(backend.port)
        with closing(control):
            self._warm(instance)
            empty = process.rss_bytes()
            sessions = load.open_sessions(instance.port, count)
            with_sessions = process.rss_bytes()
            with closing(load.listening_streams(instance.port, sessions)) as streams:
                with_streams = process.rss_bytes()
                if (seen := control()["listeners"]) != count:
                    raise BenchError(f"of {count} streams the backend sees {seen}")
                control(emit=1)
                streams.read_until(count)
            load.wait_until(
                lambda: control()["listeners"] == 0, "the backend's side of closed streams is closed"
            )
        return [
            {
                "kib_per_stream": (with_streams - empty) / 1024 / count,
                "kib_per_session": (with_sessions - empty) / 1024 / count,
                "empty_mib": empty / _MIB,
            }
        ]

    def _stalled_reader(self, instance: Instance, backend: Process) -> list[Numbers]:
        process = instance.process
        assert process is not None
        control = load.Control(backend.port)
        chunks = self.options.flood_mib * _MIB // FLOOD_CHUNK_BYTES
        with closing(control):
            self._warm(instance)
            base = process.rss_bytes()
            with closing(load.flood(instance.port, chunks)) as stream:
                sizes = [base]
                sent, is_steady = 0, 0
                while is_steady < STEADY_READS:
                    stalled_at, sent = sent, control()["flooded_bytes"]
                    is_steady = is_steady + 1 if sent == stalled_at and sent else 0
                    sizes.append(process.rss_bytes())
                    time.sleep(0.05)
                stream.read_until(chunks)
                sizes.append(process.rss_bytes())
        return [{"growth_mib": (max(sizes) - base) / _MIB, "taken_mib": sent / _MIB}]

    def _calls_beside_streams(self, instance: Instance, backend: Process) -> list[Numbers]:
        """Two instances in alternation, so that the neighbours' load hits both alike."""
        count, rounds = self.options.streams, []
        with ExitStack() as stack:
            full = self._start(instance.name, backend)
            assert full.process is not None
            stack.enter_context(full.process)
            sessions = load.open_sessions(full.port, count)
            stack.enter_context(closing(load.listening_streams(full.port, sessions)))
            pair = [
                (each, stack.enter_context(closing(load.CallLoad(each.port, self.options.connections))))
                for each in (instance, full)
            ]
            for _ in range(self.options.rounds):
                empty_us, full_us = (
                    self._call_numbers(calls, each, backend)["cpu_us"] for each, calls in pair
                )
                rounds.append({"empty_cpu_us": empty_us, "full_cpu_us": full_us, "ratio": full_us / empty_us})
        return rounds

    def _warm(self, instance: Instance) -> None:
        """Load what is loaded on first use and reach the allocator's working size."""
        with closing(load.CallLoad(instance.port, self.options.connections)) as calls:
            calls.run(self.options.warm_s)
        load.listening_streams(instance.port, load.open_sessions(instance.port, 8)).close()
