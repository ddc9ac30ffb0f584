"""The real proxy as a process: started from a file, watched from outside, stopped like a pod.

Rules of this file: nothing of the proxy is imported. What it says (access lines, log, metrics,
status) and what it holds (descriptors, memory) is all that a test may know of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.tools import PATIENCE_S
from tests.tools.client import Answer, Client, get
from tests.tools.ports import free_ports

ROOT = Path(__file__).parents[2]


class ProxyProcess:
    """A running ``mcp-proxy serve``. Made by ``launch``."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, admin_port: int, folder: Path) -> None:
        self.process = process
        self.port = port
        self.admin_port = admin_port
        self.admin_fields: tuple[str, ...] = ()
        """Sent with every request to the admin listener, such as its token."""
        self._out = folder / "stdout"
        self._err = folder / "stderr"

    # -- what it says --------------------------------------------------------------------------

    async def admin(self, path: str) -> Answer:
        """One GET on the admin listener, on a connection of its own."""
        client = await Client.connect(self.admin_port)
        try:
            return await client.ask(get("Connection: close", *self.admin_fields, target=path), "GET")
        finally:
            client.close()

    async def metrics(self) -> str:
        return (await self.admin("/metrics")).body.decode()

    async def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of this name whose labels include these. 0 if there is none."""
        total = 0.0
        for line in (await self.metrics()).splitlines():
            sample, _, value = line.rpartition(" ")
            wanted = [f'{key}="{label}"' for key, label in labels.items()]
            if sample.partition("{")[0] == name and all(label in sample for label in wanted):
                total += float(value)
        return total

    async def status(self) -> dict[str, Any]:
        value: dict[str, Any] = (await self.admin("/status.json")).json
        return value

    @property
    def output(self) -> str:
        """Everything it wrote to stdout and stderr so far."""
        return self._out.read_text() + self._err.read_text()

    def access_lines(self) -> list[dict[str, Any]]:
        """The access log so far, one record per exchange that has ended."""
        whole = self._out.read_text().rpartition("\n")[
            0
        ]  # the last line may be in the middle of being written
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def traceback(self, start: int = 0) -> str:
        """The first unhandled error in the log behind its first ``start`` bytes, ``""`` if none."""
        log = self._err.read_bytes()[start:].decode()
        at = log.find("Traceback (most recent")
        return log[max(0, at - 300) : at + 4000] if at >= 0 else ""

    def log_size(self) -> int:
        return self._err.stat().st_size

    # -- what it holds -------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self.process.pid

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def rss_bytes(self) -> int:
        resident = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(resident) * os.sysconf("SC_PAGE_SIZE")

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """Ask again and again, with a round trip to the proxy's admin listener between two
        questions, so that its loop has turned. Fails after the usual patience."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await condition():
                    await self.admin("/livez")
        except TimeoutError:
            raise AssertionError(f"never came true: {what}") from None

    # -- how it ends ---------------------------------------------------------------------------

    async def stop(self) -> int:
        """SIGTERM, then at most ``PATIENCE_S``; the exit code."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await self.wait()

    async def wait(self) -> int:
        """Wait for the end; a process that does not end is killed and reported."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise AssertionError("the proxy did not stop: " + self.output[-4000:]) from None


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` wins; mappings are merged, lists replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


@contextlib.asynccontextmanager
async def launch(
    config: dict[str, Any],
    folder: Path,
    *,
    open_files: int | None = None,
    ports: tuple[int, int] | None = None,
) -> AsyncIterator[ProxyProcess]:
    """Start with this configuration (ports are filled in), wait until ready, stop at the end.

    ``folder`` exists and gets the configuration (JSON, which is YAML) and the output.
    ``open_files``: the process's limit of descriptors. ``ports``: of an earlier one that has ended.
    """
    port, admin_port = ports or free_ports(2)
    listen = {"listen": f"127.0.0.1:{port}", "admin": {"listen": f"127.0.0.1:{admin_port}"}}
    file = folder / "proxy.yaml"
    file.write_text(json.dumps(merge(config, listen), indent=1))

    def limit() -> None:
        if open_files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))

    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mcp_proxy", "serve", "--config", str(file)),
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            preexec_fn=limit if open_files is not None else None,
        )
    proxy = ProxyProcess(process, port, admin_port, folder)
    try:
        await _ready(proxy)
        yield proxy
    finally:
        await proxy.stop()


async def _ready(proxy: ProxyProcess) -> None:
    """Asks ``/readyz`` until it says 200. The one wait with a pause: before the listener exists
    there is nothing to wait on."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if proxy.process.returncode is not None:
                raise AssertionError(f"the proxy ended ({proxy.process.returncode}): {proxy.output}")
            with contextlib.suppress(OSError, EOFError):
                if (await proxy.admin("/readyz")).status == 200:
                    return
            await asyncio.sleep(0.02)
