"""Starting the bench of the registry: Redis, backends and replicas, all from one configuration.

Rules of this file: nothing is shared between two benches, so that each may break its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.fault_proxy import FaultProxy
from tests.tools.ports import free_ports
from tests.tools.proxy import ROOT, ProxyProcess, merge
from tests.tools.redis_server import RedisServer
from tests.wire.registry_rig import KEY, PASSWORD, PREFIX, Replicas, Server, Session

STORES = ("redis", "signed", "signed+redis")
SHARED = ("redis", "signed+redis")
"""Those with a registry."""

ACCESS = f"user replica on >{PASSWORD} ~{PREFIX}* &{PREFIX}* +@all"
"""Line of redis.conf: whoever logs in as the replicas do is refused every other key and channel."""


def settings(store: str, url: str, backends: list[Backend]) -> dict[str, Any]:
    """Three pools of the same backends: ``/mcp`` ends sessions of lost backends, ``/moving`` makes
    them anew, ``/tapped`` learns owners."""
    sessions: dict[str, Any] = {"store": "signed", "keys": [KEY]} if "signed" in store else {"store": "redis"}
    if "redis" in store:
        sessions["url"] = url
    pool = {"backends": [backend.url for backend in backends], "lost_after": "2s"}
    pools = {"tools": pool, "tapped": {**pool, "affinity": {"tap": "64KiB"}}}
    paths = {"/mcp": "tools", "/again": "tools", "/tapped": "tapped"}
    if "redis" in store:
        pools["moving"] = {**pool, "on_backend_loss": "reinitialize", "lost_after": "100ms"}
        paths["/moving"] = "moving"
    routes = [{"path": path, "pool": pool} for path, pool in paths.items()]
    return {"sessions": sessions, "pools": pools, "routes": routes}


STARTS = 5
"""Somebody else may take a port between our choosing it and the proxy's listening on it."""
PORT_TAKEN = 3


class Starter:
    """Starts the replicas of one bench, all at once, and stops them."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._started: list[ProxyProcess] = []

    async def start(self, config: dict[str, Any], folder: Path) -> ProxyProcess:
        """Returns when it is ready."""
        for _ in range(STARTS):
            proxy = await self._spawn(config, folder)
            if await _is_ready(proxy):
                return proxy
        raise AssertionError("no port is free")

    async def _spawn(self, config: dict[str, Any], folder: Path) -> ProxyProcess:
        port, admin_port = free_ports(2)
        listen = {"listen": f"127.0.0.1:{port}", "admin": {"listen": f"127.0.0.1:{admin_port}"}}
        file = folder / "proxy.yaml"
        file.write_text(json.dumps(merge(config, listen), indent=1))
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._program, "serve", "--config", str(file)),
                cwd=ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        proxy = ProxyProcess(process, port, admin_port, folder)
        self._started.append(proxy)
        return proxy

    async def stop(self) -> None:
        await asyncio.gather(*(proxy.stop() for proxy in self._started))


def _folders(folder: Path, count: int) -> list[Path]:
    """One per replica."""
    folders = [folder / str(number) for number in range(count)]
    for each in folders:
        each.mkdir()
    return folders


async def _is_ready(proxy: ProxyProcess) -> bool:
    """Whether it is, at last; False if it could not listen. Before that there is nothing to wait on."""
    async with asyncio.timeout(PATIENCE_S):
        while proxy.process.returncode is None:
            with contextlib.suppress(OSError, EOFError):
                if (await proxy.admin("/readyz")).status == 200:
                    return True
            await asyncio.sleep(0.02)
    assert proxy.process.returncode == PORT_TAKEN, proxy.output
    return False


@contextlib.asynccontextmanager
async def replicas(
    folder: Path,
    store: str,
    *,
    redis: RedisServer | None = None,
    url: str = "",
    over: dict[str, Any] | None = None,
    count: int = 2,
    program: str = "mcp_proxy",
) -> AsyncIterator[Replicas]:
    """Replicas of the proxy and two backends. ``redis``: a server with ``ACCESS``, reached through
    a relay per replica; or ``url``, which is used as it is."""
    folders = _folders(folder, count)
    async with contextlib.AsyncExitStack() as stack:
        backends = [await stack.enter_async_context(Backend(Server(name))) for name in ("oslo", "lisbon")]
        lines: list[FaultProxy] = []
        if redis is not None and "redis" in store:
            lines = [await stack.enter_async_context(FaultProxy(redis.port)) for _ in range(count)]
        urls = [f"redis://replica:{PASSWORD}@127.0.0.1:{line.port}/0" for line in lines] or [url] * count
        starter = Starter(program)
        stack.push_async_callback(starter.stop)
        configs = [merge(settings(store, each, backends), over or {}) for each in urls]
        proxies = await asyncio.gather(*map(starter.start, configs, folders))
        yield Replicas(store, proxies, backends, redis, lines)


@contextlib.asynccontextmanager
async def case(site: Replicas) -> AsyncIterator[Replicas]:
    """One case: its base before, the check after it."""
    await site.begin()
    try:
        yield site
        await site.check()
    finally:
        site.hang_up()


@contextlib.contextmanager
def registry(store: str, *options: str) -> Iterator[RedisServer | None]:
    """Redis for replicas with this store, None if they need none."""
    if "redis" not in store:
        yield None
    else:
        with RedisServer(ACCESS, *options) as redis:
            yield redis


def stored(site: Replicas, session: Session) -> bytes:
    """What Redis holds of a session, under the name that the documentation gives it."""
    assert site.redis is not None
    text = session.path.encode() + b"\0" + session.id.encode()
    name = hashlib.blake2b(text, digest_size=20).hexdigest()
    return site.redis.command("GET", f"{PREFIX}session:{name}") or b""


def has_ended(site: Replicas, session: Session) -> bool:
    """Whether Redis holds that the session is over."""
    return b"ended" in stored(site, session)
