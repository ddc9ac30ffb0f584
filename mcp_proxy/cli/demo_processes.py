"""The processes of the demo: started, watched and ended as one.

Rules of this file: every child lives in a process group of its own, so that Ctrl-C reaches the
demo alone and children end in the order that it decides; every child is tied (``tied.py``), so
none outlives the demo whatever happens to it. What a child prints goes to a file that is shown
only when the child failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import IO

START_S = 20.0
"""How long a child may take until it accepts connections: a cold import of the SDK on a slow disk."""

STOP_S = 5.0
"""How long a child may take to end after SIGTERM; then it is killed."""

_POLL_S = 0.05
_LAST_WORDS_BYTES = 4000


class DemoError(Exception):
    """The demo cannot go on. The message is a sentence for the terminal."""


class PortTaken(DemoError):
    """Somebody else listens on an address that was asked for by name."""


@dataclass(frozen=True)
class Child:
    """A running child. Owned by ``run``."""

    name: str
    process: asyncio.subprocess.Process
    output: IO[bytes]

    def last_words(self) -> str:
        """The end of what it printed."""
        size = self.output.seek(0, os.SEEK_END)
        self.output.seek(max(0, size - _LAST_WORDS_BYTES))
        return self.output.read().decode(errors="replace")


@contextlib.asynccontextmanager
async def run(name: str, module: str, *arguments: str, fd: int | None = None) -> AsyncIterator[Child]:
    """``python -m module arguments`` until the block ends. ``fd`` is inherited by the child."""
    # The demo shows the defaults; what the user configured for another proxy stays out of it.
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MCP_PROXY_")}
    with tempfile.TemporaryFile() as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mcp_proxy.cli.tied", module, *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environ,
            pass_fds=() if fd is None else (fd,),
            process_group=0,
        )
        try:
            yield Child(name, process, output)
        finally:
            await asyncio.shield(_end(process))


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def accepts(child: Child, host: str, port: int) -> None:
    """Wait until the child accepts connections there. Raises DemoError when it ended instead."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_S):
            while child.process.returncode is None:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(host, port)
                    writer.close()
                    return
                await asyncio.sleep(_POLL_S)
    raise DemoError(f"{child.name} did not start:\n{child.last_words()}")


def listening_socket() -> socket.socket:
    """On a free port of this machine, to be inherited by a child."""
    return socket.create_server(("127.0.0.1", 0))


def usable_port(host: str, port: int) -> int:
    """``port`` if nobody listens on it (0: any). Raises PortTaken, also for an unusable host."""
    try:
        with socket.create_server((host, port)) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        # create_server adds the address in brackets of its own
        why = (error.strerror or str(error)).partition(" (")[0]
        raise PortTaken(f"cannot listen on {host}:{port}: {why}") from error
