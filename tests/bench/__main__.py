"""``python -m tests.bench``: runs the benchmark, prints the table, writes ``build/bench.json``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import pstats
import re
import shutil
import subprocess
import sys
from contextlib import closing
from importlib import metadata
from pathlib import Path

from tests.bench import candidates, decisions, load, overhead, report, telemetry
from tests.bench.measure import Bench, Options
from tests.bench.procs import BenchError, free_port, raise_file_limit

BUILD = Path("build").absolute()
PROFILED_LINES = 40
_QUESTIONS = (decisions.PHASE, telemetry.PHASE, overhead.PHASE)
_NAMES = (*candidates.CANDIDATES, *_QUESTIONS)
"""What ``--only`` may name: who is measured, and what is measured without any of them."""
_LIBRARIES = ("httptools", "uvicorn", "uvloop", "msgspec", "prometheus-client")


def main() -> int:
    """0: everything was measured; 1: a candidate is missing from the report, which says why."""
    arguments = _arguments()
    directory = BUILD / "bench"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    options = _options(arguments, directory)
    if arguments.profile:
        return _profile(arguments.profile, options)
    bench = Bench(options, lambda line: print(line, file=sys.stderr, flush=True))
    load_before = os.getloadavg()
    bench.run()
    shown = {key: value for key, value in options._asdict().items() if isinstance(value, int | float)}
    verdicts = [] if arguments.smoke else report.goals(bench.results, candidates.REFERENCE)
    print(report.text(bench.results, candidates.REFERENCE, shown, verdicts), end="")
    for name, reason in bench.failed.items():
        print(f"not measured: {name}: {reason}")
    document = {
        "versions": _versions(),
        "machine": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "load_average_before": load_before,
            "load_average_after": os.getloadavg(),
        },
        "options": shown,
        "reference": candidates.REFERENCE,
        "results": report.summary(bench.results, candidates.REFERENCE),
        "goals": verdicts,
        "not_measured": sorted(bench.failed),
    }
    (BUILD / "bench.json").write_text(json.dumps(document, indent=2) + "\n")
    return 1 if bench.failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds per question (5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one round (2)")
    parser.add_argument("--streams", type=int, default=5000, help="idle GET streams (5000)")
    parser.add_argument("--only", help=f"comma-separated: {','.join(_NAMES)}")
    parser.add_argument("--smoke", action="store_true", help="does it run at all: short, small, no goals")
    parser.add_argument("--profile", choices=candidates.OURS, help="profile one of our doors instead")
    return parser.parse_args()


def _options(arguments: argparse.Namespace, directory: Path) -> Options:
    by_default = (*candidates.CANDIDATES, decisions.PHASE) if arguments.smoke else _NAMES
    asked = arguments.only.split(",") if arguments.only else by_default
    unknown = [name for name in asked if name not in _NAMES]
    if unknown:
        sys.exit(f"unknown candidate: {', '.join(unknown)}")
    names = tuple(name for name in asked if name in candidates.CANDIDATES)
    file_limit = raise_file_limit()
    # A proxied stream takes two descriptors; HAProxy wants some room beside them.
    streams = min(arguments.streams, file_limit * 2 // 5)
    options = Options(
        directory,
        names,
        file_limit,
        arguments.rounds,
        arguments.seconds,
        streams=streams,
        questions=frozenset(asked).intersection(_QUESTIONS),
    )
    if arguments.smoke:
        return options._replace(
            rounds=1,
            seconds=0.2,
            warm_s=0.1,
            streams=min(streams, 200),
            flood_mib=16,
            compares_streams=False,
        )
    return options


def _profile(name: str, options: Options) -> int:
    """Calls and events under cProfile: where the time goes, not how much it is."""
    dump = options.directory / f"{name}.prof"
    with candidates.start_backend(options.directory) as backend:
        port = free_port()
        setup = candidates.Setup(options.directory / name, port, backend.port, options.file_limit, dump)
        with candidates.start(name, setup), closing(load.CallLoad(port, options.connections)) as calls:
            count = len(calls.run(options.seconds).latencies_s)
    print(f"{count} calls")
    pstats.Stats(str(dump)).strip_dirs().sort_stats("tottime").print_stats(PROFILED_LINES)
    return 0


def _versions() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in _LIBRARIES}
    for program, flag in (("nginx", "-v"), ("haproxy", "-v")):
        try:
            path = candidates.installed(program)
        except BenchError:
            continue
        output = subprocess.run([path, flag], capture_output=True, text=True, check=True)
        found = re.search(r"\d+\.\d+\.\d+", output.stdout + output.stderr)
        versions[program] = found[0] if found else "unknown"
    return versions


if __name__ == "__main__":
    sys.exit(main())
