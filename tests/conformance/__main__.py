"""``make conformance``: the official suite, direct and through the proxy behind every door.

Rules of this file: the direct run is the reference. Exit 1 if anything is worse through the proxy,
2 if something is missing that the suite needs. The table goes to the terminal, everything that the
suite said to ``build/conformance.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from tests.conformance import suite
from tests.conformance.results import Run, added, as_json, table, total
from tests.conformance.suite import Suite
from tests.e2e.processes import DOORS, TRANSPORTS, proxy
from tests.tools.proxy import ROOT

DIRECT = "direct"
REPORT = ROOT / "build" / "conformance.json"


def run_direct(official: Suite, out: Path) -> Run:
    with suite.everything_server() as url:
        served = official.run_server(url, out)
    return {**served, **official.run_client([sys.executable, str(suite.CLIENT)], out)}


def run_through(official: Suite, door: str, transport: str, out: Path) -> Run:
    with suite.everything_server() as backend:
        config = {"pools": {"server": {"backends": [backend], "transport": transport}}}
        with proxy(door, config) as origin:
            url = f"{origin.replace('127.0.0.1', 'localhost')}/mcp"
            served = official.run_server(url, out)
    command = [sys.executable, "-m", "tests.conformance.through", door, transport, str(suite.CLIENT)]
    return {**served, **official.run_client(command, out)}


def run_all(official: Suite) -> dict[str, Run]:
    """Every way to the same server and from the same client, the direct one first."""
    folder = suite.HOME / "results"
    shutil.rmtree(folder, ignore_errors=True)
    runs: dict[str, Run] = {}
    for title in [DIRECT, *(f"{door} door, {transport}" for door in DOORS for transport in TRANSPORTS)]:
        out = folder / title.replace(" ", "-").replace(",", "")
        if title == DIRECT:
            runs[title] = run_direct(official, out)
        else:
            door, transport = title.split(" door, ")
            runs[title] = run_through(official, door, transport, out)
        print(f"{title}: {total(runs[title])}", flush=True)
    return runs


def main() -> int:
    argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__).parse_args()
    try:
        official = suite.install()
    except suite.Missing as missing:
        print(missing, file=sys.stderr)
        return 2
    runs = run_all(official)
    worse = {title: added(runs[DIRECT], run) for title, run in runs.items() if title != DIRECT}
    print(f"\n{table(runs, DIRECT)}\n")
    for title, lines in worse.items():
        print("\n".join([f"{title}: the proxy adds {len(lines) or 'no'} failures", *lines]))
    report = {
        "suite": f"{suite.PACKAGE}@{suite.VERSION}",
        "runs": {title: as_json(run) for title, run in runs.items()},
        "added": worse,
    }
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n* differs from the direct run. Everything the suite said: {REPORT.relative_to(ROOT)}")
    has_nothing = not runs[DIRECT]
    return 1 if has_nothing or any(worse.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
