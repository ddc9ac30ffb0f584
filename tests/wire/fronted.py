"""A site as operators run it: nginx in front, replicas of the proxy behind it, one registry, and what an
operator does to them.

Rules of this file: clients know nginx only, unless they ask for a replica. Every ``use`` is a pool of its
own, put in force by SIGHUP in all replicas, so that what is known of the backends of one test is not known in
the next. Who waits, asks the replica again and again, bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from tests.tools import PATIENCE_S
from tests.tools.client import Answer, Client, get, post
from tests.tools.mcp_backend import INITIALIZE
from tests.tools.nginx import nginx
from tests.tools.proxy import launch
from tests.tools.redis_server import RedisServer
from tests.wire.reloading import Config, Site, pools

NOWHERE = "http://127.0.0.1:9/mcp"
"""Discard; nobody listens there, and nobody asks."""


class Located(Protocol):
    @property
    def url(self) -> str: ...


class Front:
    """``port`` is that of nginx, ``sites`` are the replicas."""

    def __init__(self, sites: list[Site], port: int, redis: RedisServer) -> None:
        self.sites = sites
        self.port = port
        self.redis = redis
        self.numbers = itertools.count(1000)
        """JSON-RPC ids: none twice, whoever calls."""
        self._uses = itertools.count(1)
        self._name = "pool-0"
        self._clients: list[Client] = []

    # -- the operator ----------------------------------------------------------------------------

    async def use(self, backends: Sequence[Located | str], *, goes_on: bool = False, **settings: Any) -> None:
        """From now on ``/mcp`` is served by a new pool of these; ``goes_on``: by the same pool."""
        if not goes_on:
            self._name = f"pool-{next(self._uses)}"
        await self.reload(self.config(backends, **settings))

    def config(self, backends: Sequence[Located | str], **settings: Any) -> Config:
        urls = [each if isinstance(each, str) else each.url for each in backends]
        pool = pools(urls, **settings)["pools"]["tools"]
        return {**self._sessions(), **route_to(self._name, pool)}

    def _sessions(self) -> Config:
        return {"sessions": {"store": "redis", "url": self.redis.url}}

    async def reload(self, config: Config) -> None:
        await asyncio.gather(*(site.reload(config) for site in self.sites))

    async def drain(self, backend: Located, seconds: float) -> None:
        """At every replica."""
        for site in self.sites:
            answer = await self.order(site, "POST", backend, f"&for={seconds:g}s")
            assert answer.status == 200, answer
            assert [each["state"] for each in answer.json["backends"]] == ["draining"]

    async def undrain(self, backend: Located) -> None:
        for site in self.sites:
            assert (await self.order(site, "DELETE", backend)).status == 200

    async def order(self, site: Site, method: str, backend: Located, query: str = "") -> Answer:
        target = f"/backends/{quote(backend.url, safe='')}/drain?pool={self._name}{query}"
        async with await Client.connect(site.proxy.admin_port) as client:
            return await client.ask(get("Connection: close", target=target, method=method), method)

    async def status(self, at: int = 0) -> dict[str, dict[str, Any]]:
        """What ``GET /backends`` of a replica says of this pool, by backend id."""
        answer = await self.sites[at].proxy.admin(f"/backends?pool={self._name}")
        assert answer.status == 200, answer
        return {each["id"]: each for each in answer.json["backends"]}

    async def state(self, backend: Located, at: int = 0) -> str:
        """``gone`` if the replica does not know it any more."""
        known: str = (await self.status(at)).get(backend.url, {"state": "gone"})["state"]
        return known

    async def becomes(self, backend: Located, *states: str) -> None:
        """At every replica."""
        for at in range(len(self.sites)):

            async def is_so(at: int = at) -> bool:
                return await self.state(backend, at) in states

            await self.until(is_so, f"{backend.url} becomes {states}", at)

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str, at: int = 0) -> None:
        await self.sites[at].proxy.until(condition, what)

    async def metric(self, name: str, **labels: str) -> float:
        """Of this pool, all replicas together."""
        labels = {"pool": self._name, **labels}
        return sum([await site.proxy.metric(f"mcp_proxy_{name}", **labels) for site in self.sites])

    # -- clients -----------------------------------------------------------------------------------

    async def client(self, at: int | None = None) -> Client:
        """A connection to nginx, or to a replica."""
        client = await Client.connect(self.port if at is None else self.sites[at].proxy.port)
        self._clients.append(client)
        return client

    async def ask(self, request: bytes, at: int | None = None, method: str = "POST") -> Answer:
        client = await self.client(at)
        answer = await client.ask(request, method)
        client.close()
        assert answer.framing == "clean"
        return answer

    async def initialize(self, at: int | None = None) -> Answer:
        return await self.ask(post(INITIALIZE), at)

    async def open(self, at: int | None = None) -> str:
        """A new session."""
        answer = await self.initialize(at)
        assert answer.status == 200, answer
        return (answer.head.one("mcp-session-id") or b"").decode()

    async def open_on(self, name: str) -> str:
        """A new session that this server has made."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                session = await self.open()
                if owner(session) == name:
                    return session

    async def call(self, session: str = "", at: int | None = None, name: str = "echo") -> Answer:
        fields = (f"Mcp-Session-Id: {session}",) if session else ()
        return await self.ask(post(message(next(self.numbers), name), *fields), at)

    async def works(self, session: str) -> None:
        """Through every replica, at the server that made it."""
        for at in range(len(self.sites)):
            answer = await self.call(session, at)
            assert answer.status == 200, answer
            assert answer.json["result"] == {"server": owner(session), "session": session}

    async def listen(self, session: str, at: int | None = None) -> tuple[Client, bytes]:
        """An open GET stream, and its first event."""
        client = await self.client(at)
        await client.send(get(f"Mcp-Session-Id: {session}"))
        assert (await client.head("GET")).status == 200
        return client, await client.body_until(b"\n\n")

    def hang_up(self) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()


def owner(session: str) -> str:
    """Name of the scripted server that has made it."""
    return session.rpartition("-")[0]


def is_unavailable(answer: Answer) -> bool:
    """503 that tells the client to come again, by the proxy's own word."""
    told = answer.status, answer.reason, bool(answer.head.one("retry-after"))
    return told == (503, "backend_unavailable", True)


def is_unknown(answer: Answer) -> bool:
    return (answer.status, answer.reason) == (404, "session_not_found")


def message(number: int, name: str = "echo") -> bytes:
    params = {"name": name, "arguments": {}}
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}).encode()


def route_to(name: str, pool: Config) -> Config:
    return {"pools": {name: pool}, "routes": [{"path": "/mcp", "pool": name}]}


@contextlib.asynccontextmanager
async def front(folder: Path, replicas: int = 2) -> AsyncIterator[Front]:
    """Without a backend, until the first ``use``."""
    async with contextlib.AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        config = {
            "sessions": {"store": "redis", "url": redis.url},
            **route_to("nobody", {"backends": [NOWHERE]}),
        }
        folders = [folder / f"replica-{number}" for number in range(replicas)]
        for each in (*folders, folder / "nginx"):
            each.mkdir()
        launches = [launch(config, each) for each in folders]
        proxies = await asyncio.gather(*map(stack.enter_async_context, launches))
        sites = [Site(proxy, each / "proxy.yaml") for proxy, each in zip(proxies, folders, strict=True)]
        port = await stack.enter_async_context(nginx([proxy.port for proxy in proxies], folder / "nginx"))
        running = Front(sites, port, redis)
        yield running
        for proxy in proxies:
            assert proxy.traceback() == ""


@contextlib.asynccontextmanager
async def case(shared: Front) -> AsyncIterator[Front]:
    """One test at a front that several share."""
    try:
        yield shared
        for site in shared.sites:
            assert site.proxy.traceback() == ""
    finally:
        shared.hang_up()
