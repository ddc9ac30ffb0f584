"""A site as it is documented: the shipped nginx, two replicas of the proxy, Redis, two scripted MCP servers.

Rules of this file: clients know nginx only, over TLS. What a test expects of the servers it takes from them;
``check`` then proves that nothing else arrived and that nobody was sent what RFC 9112 forbids.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from tests.tools import PATIENCE_S
from tests.tools.backend import Backend, Handler
from tests.tools.client import Answer, Client, call, get, post
from tests.tools.mcp_backend import INITIALIZE, McpServer, Stream, json_answer
from tests.tools.nginx_shipped import NAME, Installed, RunningNginx, install, run
from tests.tools.nginx_tunnel import trusting, tunnel
from tests.tools.ports import free_ports
from tests.tools.proxy import ProxyProcess, launch
from tests.tools.recording import Seen
from tests.tools.redis_server import RedisServer

EVERYBODY = ("127.0.0.0/8",)


class Replica:
    """A place for a proxy: its configuration and its ports stay when it is started again."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._starts = 0
        self._running = contextlib.AsyncExitStack()
        ports = free_ports(2)
        self.port, self.admin_port = ports
        self.proxy: ProxyProcess

    async def start(self) -> None:
        self._starts += 1
        folder = self._folder / f"start-{self._starts}"
        folder.mkdir(parents=True)
        launching = launch(self._config, folder, ports=(self.port, self.admin_port))
        self.proxy = await self._running.enter_async_context(launching)

    async def stop(self) -> None:
        """SIGTERM; returns when it has drained and ended."""
        assert await self.proxy.stop() == 0, self.proxy.output[-2000:]
        await self._running.aclose()

    async def kill(self) -> None:
        self.proxy.process.kill()
        await self.proxy.process.wait()
        await self._running.aclose()

    async def aclose(self) -> None:
        """Nobody is left to wait for: a second signal hurries. (A different one: of one kind they merge.)"""
        if self.proxy.process.returncode is None:
            self.proxy.process.send_signal(signal.SIGTERM)
            self.proxy.process.send_signal(signal.SIGINT)
        await self._running.aclose()


class NginxSite:
    """``port`` is plain, and leads to nginx over TLS."""

    def __init__(
        self, nginx: RunningNginx, port: int, replicas: list[Replica], backends: list[Backend]
    ) -> None:
        self.nginx = nginx
        self.port = port
        self.replicas = replicas
        self.backends = backends
        self._clients: list[Client] = []

    @property
    def files(self) -> Installed:
        return self.nginx.installed

    def script(self, handler: Handler) -> None:
        """What all servers answer from now on."""
        for backend in self.backends:
            backend.handler = handler

    def taken(self) -> list[Seen]:
        return [request for backend in self.backends for request in backend.take()]

    # -- clients -------------------------------------------------------------------------------------

    async def client(self, port: int | None = None) -> Client:
        """A new connection, closed at the end of the test. ``port``: not through the tunnel."""
        client = await Client.connect(self.port if port is None else port)
        self._clients.append(client)
        return client

    async def ask(self, request: bytes, method: str = "POST") -> Answer:
        """On a connection of its own."""
        client = await self.client()
        answer = await client.ask(request, method)
        client.close()
        assert answer.framing == "clean", answer
        return answer

    async def session(self) -> str:
        """Open a session; its ``Mcp-Session-Id`` field line."""
        answer = await self.ask(post(INITIALIZE))
        assert answer.status == 200, answer
        return f"Mcp-Session-Id: {(answer.head.one('mcp-session-id') or b'').decode()}"

    async def listen(self, server: McpServer, field: str) -> tuple[Client, Stream]:
        """An open GET stream: the client's end, which has read the head, and the server's."""
        client = await self.client()
        await client.send(get(field))
        stream = await server.streams.next()
        assert (await client.head("GET")).status == 200
        return client, stream

    def hang_up(self) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()

    # -- checks ----------------------------------------------------------------------------------------

    async def logged(self, count: int) -> list[dict[str, Any]]:
        """The access lines of nginx, as soon as there are so many."""
        async with asyncio.timeout(PATIENCE_S):
            while len(lines := self.files.access_lines()) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # another process writes them
        return lines

    async def check(self) -> None:
        """After every test: only what was expected arrived, and the next request works."""
        self.hang_up()
        assert self.taken() == [], "a server got a request that nobody expected"
        self.script(json_answer())
        assert (await self.ask(post(call()))).status == 200
        assert len(self.taken()) == 1
        for backend in self.backends:
            assert backend.violations == []
        for replica in self.replicas:
            assert replica.proxy.traceback() == ""


@contextlib.asynccontextmanager
async def nginx_site(
    folder: Path,
    *,
    limits: dict[str, Any] | None = None,
    unlimited: Sequence[str] = EVERYBODY,
) -> AsyncIterator[NginxSite]:
    """``limits`` of the proxies; ``unlimited``: networks without limits per address in nginx."""
    async with contextlib.AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        backends = [await stack.enter_async_context(Backend(json_answer())) for _ in range(2)]
        config = {
            "external_url": f"https://{NAME}",
            "trusted_proxies": ["127.0.0.0/8"],
            "sessions": {"store": "redis", "url": redis.url},
            "limits": limits or {},
            "pools": {"tools": {"backends": [backend.url for backend in backends]}},
            "routes": [{"path": "/mcp", "pool": "tools"}, {"path": "/weather/mcp", "pool": "tools"}],
        }
        replicas = [Replica(config, folder / f"replica-{number}") for number in range(2)]
        for replica in replicas:
            stack.push_async_callback(replica.aclose)
        await asyncio.gather(*(replica.start() for replica in replicas))
        ports = [replica.port for replica in replicas]
        nginx = await stack.enter_async_context(run(install(ports, folder / "nginx", unlimited=unlimited)))
        context = trusting(nginx.installed.certificate)
        port = await stack.enter_async_context(tunnel(nginx.port, NAME, context))
        site = NginxSite(nginx, port, replicas, backends)
        stack.callback(site.hang_up)
        yield site
