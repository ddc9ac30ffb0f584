"""``make load``: 60 seconds of every kind of user against the shipped set-up; the report is in build/load.

``python -m tests.load [--rolls N] [OPTION ...]`` passes its options to ``mcp-proxy load``. With ``--shape
drain`` both replicas are restarted under load, N times (2), and no POST may fail. Exits with the code of
``mcp-proxy load``, or 1 if the log of a replica holds a traceback.

Rules of this file: the load test is the command as people run it, in a process of its own. Its ``--during``
command asks this process, by a socket, for the restart: who started the replicas restarts them.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from tests.load.stage import Stage, stage, tracebacks

REPORT = "build/load"
ROLL = "--roll"
ROLLS = "--rolls"
TIME = "60s"
OK = "times that every replica was restarted: "


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] == [ROLL]:
        return _ask_for_roll(arguments[1])
    rolls = 2
    if arguments[:1] == [ROLLS]:
        rolls = int(arguments[1])
        del arguments[:2]
    report = Path(_option(arguments, "--report") or REPORT)
    logs = (report / "stage").absolute()
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    return asyncio.run(_run(arguments, report, logs, rolls))


async def _run(arguments: list[str], report: Path, logs: Path, rolls: int) -> int:
    async with stage(logs) as place:
        with tempfile.TemporaryDirectory(prefix="mcp-load-") as folder:
            door = f"{folder}/roll"
            async with await asyncio.start_unix_server(_Roller(place, rolls), door):
                code = await _load(place, arguments, report, door)
    found = tracebacks(logs)  # of every start, drained ones too
    for traceback in found:
        print(traceback, file=sys.stderr)
    return code or int(bool(found))


async def _load(place: Stage, arguments: list[str], report: Path, door: str) -> int:
    options = list(arguments)
    if _option(options, "--time") is None:
        options += ["--time", TIME]
    if _option(options, "--report") is None:
        options += ["--report", str(report)]
    if _option(options, "--shape") == "drain" and _option(options, "--during") is None:
        options += ["--during", shlex.join([sys.executable, "-m", "tests.load", ROLL, door])]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mcp_proxy", "load", place.url, *options),
        env={**os.environ, "SSL_CERT_FILE": str(place.certificate.absolute())},
    )
    return await process.wait()


class _Roller:
    """Answers whoever connects when all replicas have been restarted."""

    def __init__(self, place: Stage, rolls: int) -> None:
        self._place = place
        self._rolls = rolls

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for _ in range(self._rolls):
                await self._place.roll()
            writer.write(f"{OK}{self._rolls}".encode())
        except Exception as error:
            writer.write(repr(error).encode())
        await writer.drain()
        writer.close()


def _ask_for_roll(door: str) -> int:
    """The ``--during`` command."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(door)
        answer = b""
        while data := sock.recv(4096):
            answer += data
    print(answer.decode())
    return 0 if answer.startswith(OK.encode()) else 1


def _option(arguments: list[str], name: str) -> str | None:
    """The value of an option as ``--name value`` or ``--name=value``."""
    for index, argument in enumerate(arguments):
        if argument == name and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


if __name__ == "__main__":
    sys.exit(main())
