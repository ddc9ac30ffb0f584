"""The official conformance suite and the official subjects that it tests, fetched and run.

Rules of this file: versions are pinned, everything lands under ``build``, nothing is written anywhere else.
The suite is the npm package; server and client under test are those that the Python SDK tests itself with,
from the source distribution of the very version that is installed.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conformance.results import Run, Scenario, read
from tests.e2e.processes import started, wait_until_it_accepts
from tests.tools import npm
from tests.tools.npm import Missing as Missing
from tests.tools.ports import free_ports
from tests.tools.proxy import ROOT

PACKAGE = "@modelcontextprotocol/conformance"
VERSION = "0.2.0-alpha.12"

HOME = ROOT / "build" / "conformance"
SUITE_S = 300.0
"""Bound of one call of the suite, which bounds each of its scenarios itself."""

_TIME = re.compile(r"-\d{4}-\d\d-\d\dT[\d-]+Z$")
"""The suite ends the name of every folder of results with it."""

SERVER_REVISIONS = ("2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")
CLIENT_REVISIONS = ("2025-11-25", "2026-07-28")


class Suite:
    """The installed suite, a folder. ``install`` makes one."""

    def __init__(self, folder: Path) -> None:
        self._script = folder / "dist" / "index.js"

    def run_server(self, url: str, out: Path) -> Run:
        """Every scenario for servers, at the wire of every revision, against this endpoint."""
        run: dict[str, Scenario] = {}
        for revision in SERVER_REVISIONS:
            folder = out / f"server-{revision}"
            self._call(
                "server", "--url", url, "--suite", "all", "--spec-version", revision, "-o", str(folder)
            )
            for results in sorted(folder.iterdir()):
                name = _TIME.sub("", results.name).removeprefix("server-")
                run[f"server {revision} {name}"] = read(results)
        return run

    def run_client(self, command: list[str], out: Path) -> Run:
        """The scenarios for clients that are about the transport. ``command`` gets the URL of the
        suite's own server as its last argument."""
        run: dict[str, Scenario] = {}
        for revision in CLIENT_REVISIONS:
            for scenario in self._client_scenarios(revision):
                folder = out / f"client-{revision}" / scenario
                self._call(
                    *("client", "--command", shlex.join(command), "--scenario", scenario),
                    *("--spec-version", revision, "-o", str(folder)),
                )
                for results in folder.iterdir():
                    run[f"client {revision} {scenario}"] = read(results)
        return run

    def _client_scenarios(self, revision: str) -> list[str]:
        """Without authorization: that talks to the suite's servers beside the MCP endpoint."""
        listed = self._call("list", "--client", "--spec-version", revision)
        names = [line.split()[1] for line in listed.splitlines() if line.startswith("  - ")]
        return [name for name in names if not name.startswith("auth/")]

    def _call(self, *arguments: str) -> str:
        """Output of the suite. Its exit code says that a check failed; the files say which."""
        done = subprocess.run(
            [str(npm.node()), str(self._script), *arguments],
            cwd=ROOT,
            env=_without_proxies(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SUITE_S,
            check=False,
        )
        return done.stdout


def _without_proxies() -> dict[str, str]:
    """Everything here is on loopback, whatever the environment says about the rest of the world."""
    return {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}


# -- installing --------------------------------------------------------------------------------


def install() -> Suite:
    """The suite, and server and client under test in ``HOME``; what is there already is kept. Raises
    Missing for what cannot be fetched."""
    HOME.mkdir(parents=True, exist_ok=True)
    folder = npm.install(PACKAGE, VERSION)
    _install_subjects()
    return Suite(folder)


def _fetch(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")


_SUBJECTS = ("examples/servers/everything-server", ".github/actions/conformance")
SERVER = HOME / _SUBJECTS[0]
CLIENT = HOME / _SUBJECTS[1] / "client.py"


def _install_subjects() -> None:
    """The SDK's source distribution has the server and the client of its own conformance runs."""
    version = importlib.metadata.version("mcp")
    root = f"mcp-{version}"
    archive = HOME / f"{root}.tar.gz"
    if not archive.exists():
        source = ("--no-deps", "--no-binary", "mcp", f"mcp=={version}")
        _fetch([sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(HOME), *source])
    with tarfile.open(archive) as distribution:
        for member in distribution.getmembers():
            member.name = member.name.removeprefix(f"{root}/")
            if member.name.startswith(_SUBJECTS):
                # Python 3.11.2 knows no filters, newer ones want to be told of one.
                safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                distribution.extract(member, HOME, **safely)


@contextmanager
def everything_server() -> Iterator[str]:
    """The SDK's server for conformance runs, in a process; its MCP endpoint."""
    (port,) = free_ports(1)
    arguments = ("-m", "mcp_everything_server", "--port", str(port), "--log-level", "ERROR")
    with started(*arguments, is_judged=False, environ={"PYTHONPATH": str(SERVER)}) as process:
        wait_until_it_accepts(process, port)
        # By this name, because the suite checks what a server on localhost does with other names.
        yield f"http://localhost:{port}/mcp"
