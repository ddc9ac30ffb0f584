"""Any configuration after any other one: pools, their backends, routes and settings as chance will have it.

Rules of this file: the walk is decided by its number alone. A session whose backend stands behind its route
works and is answered by that backend; no other answer is a surprise; and what operators see of sessions is
exactly what there is.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.tools.backend import Backend, Handler
from tests.tools.client import Answer, Client, call, post
from tests.tools.mcp_backend import INITIALIZE, JSON, McpServer, result
from tests.tools.recording import Conn, Seen
from tests.wire.reloading import Config, Site, servers, site

STEPS = 20
ASKED = 12
"""Sessions that are asked after each reload."""
KEY = "a-key-for-the-reloads-0123456789-abcdef"


class Live(NamedTuple):
    path: str
    id: str
    owner: str
    """URL of its backend."""


def naming(name: str) -> Handler:
    async def answer(request: Seen, conn: Conn) -> None:
        await conn.answer(200, [JSON], result(json.loads(await request.whole()), at=name))

    return answer


class Walk:
    """From one configuration to the next, and the sessions that there are meanwhile."""

    def __init__(self, number: int, scripted: list[McpServer], backends: list[Backend], store: str) -> None:
        self.chance = random.Random(number)
        self.urls = {server.name: backend.url for server, backend in zip(scripted, backends, strict=True)}
        for server in scripted:
            server.tool = naming(server.name)
        self.sessions = {"store": "signed", "keys": [KEY]} if store == "signed" else {}
        self.live: list[Live] = []
        self.config = self.another()

    def another(self) -> Config:
        chance = self.chance
        names = chance.sample(["p", "q", "r"], chance.randint(1, 3))
        paths = chance.sample(["/x", "/y", "/z"], chance.randint(1, 3))
        routes = [{"path": path, "pool": chance.choice(names)} for path in paths]
        pools = {route["pool"]: self._pool() for route in routes}
        return {"pools": pools, "routes": routes, "sessions": self.sessions}

    def _pool(self) -> dict[str, Any]:
        chance = self.chance
        return {
            "backends": chance.sample(list(self.urls.values()), chance.randint(1, 3)),
            "balance": chance.choice(["round_robin", "least_sessions"]),
            "drain": chance.choice(["2s", "300s"]),
            "timeouts": {"connect": f"{chance.randint(1, 3)}s"},
            "transport": chance.choice(["http11", "http11", "httpx"]),
        }

    @property
    def routes(self) -> dict[str, str]:
        return {route["path"]: route["pool"] for route in self.config["routes"]}

    def behind(self, path: str) -> list[str]:
        """Backends that the configuration has for this path."""
        urls: list[str] = self.config["pools"][self.routes[path]]["backends"]
        return urls

    async def begin_sessions(self, proxy: Site) -> None:
        for path in self.routes:
            answer = await asked(proxy, path, INITIALIZE)
            assert answer.status == 200, answer
            owner = self.urls[answer.json["result"]["serverInfo"]["name"]]
            assert owner in self.behind(path)
            self.live.append(Live(path, (answer.head.one("mcp-session-id") or b"").decode(), owner))

    async def use_sessions(self, proxy: Site) -> None:
        for session in self.chance.sample(self.live, min(ASKED, len(self.live))):
            answer = await asked(proxy, session.path, call(5), f"Mcp-Session-Id: {session.id}")
            seen = answer.status, answer.reason
            if session.path not in self.routes:
                assert seen == (404, "not_found")
            elif answer.status == 200:
                assert self.urls[answer.json["result"]["at"]] == session.owner
            else:
                assert session.owner not in self.behind(session.path), answer
                assert seen in ((404, "session_not_found"), (503, "backend_unavailable"))
            if answer.reason == "session_not_found":
                self.live.remove(session)

    async def compare_counts(self, proxy: Site) -> None:
        for pool, standing in (await proxy.proxy.status())["pools"].items():
            for backend in standing["backends"]:
                owned = [
                    session
                    for session in self.live
                    if session.owner == backend["id"] and self.routes.get(session.path) == pool
                ]
                assert backend["sessions"] == len(owned), (pool, backend)


async def asked(proxy: Site, path: str, body: bytes, *fields: str) -> Answer:
    async with await Client.connect(proxy.proxy.port) as client:
        return await client.ask(post(body, *fields, target=path))


@pytest.mark.parametrize(("number", "store"), [(1, "memory"), (2, "signed")])
async def test_any_reload_leaves_sessions_where_they_are(number: int, store: str, tmp_path: Path) -> None:
    async with servers("a", "b", "c", "d") as (scripted, backends):
        walk = Walk(number, scripted, backends, store)
        async with site(walk.config, tmp_path) as proxy:
            for _ in range(STEPS):
                await walk.begin_sessions(proxy)
                walk.config = walk.another()
                await proxy.reload(walk.config)
                await walk.use_sessions(proxy)
                await walk.compare_counts(proxy)
        assert [backend.violations for backend in backends] == [[]] * 4
