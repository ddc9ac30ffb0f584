"""Backends that the proxies ask on their own account: whether they are well, and which revision they speak.
Behind two proxies and nginx, with servers and clients of the official SDK.

Rules of this file: what an answer means is told by where new sessions go. No question makes a session at a
server, which the servers tell themselves.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
from mcp import Client as OfficialClient
from mcp.client.streamable_http import streamable_http_client
from mcp.types import TextContent

from tests.tools import PATIENCE_S
from tests.tools.client import Answer, Client, get
from tests.wire.fronted import Front, case, front
from tests.wire.reloading import Site
from tests.wire.server_processes import OFFICIAL, Server

MODERN = "2026-07-28"


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    async with front(tmp_path_factory.mktemp("front")) as running:
        yield running


@pytest.fixture
async def site(shared: Front) -> AsyncIterator[Front]:
    async with case(shared) as running:
        yield running


OFTEN = {"every": "500ms", "timeout": "500ms", "fall": 2, "rise": 1}


class Official(Server):
    """A server with the official SDK."""

    def __init__(self, name: str, folder: Path, *options: str) -> None:
        super().__init__(name, folder, *options, program=OFFICIAL)

    async def _ask(self, method: str, target: str) -> Answer:
        async with await Client.connect(self.port) as client:
            return await client.ask(get("Connection: close", target=target, method=method), method)

    async def live(self) -> int:
        """Sessions that it has."""
        count: int = (await self._ask("GET", "/facts")).json["live"]
        return count

    async def requests(self) -> list[dict[str, str]]:
        asked: list[dict[str, str]] = (await self._ask("GET", "/facts")).json["requests"]
        return asked

    async def checks(self) -> list[dict[str, str]]:
        """What the proxies have asked on their own account."""
        return [one for one in await self.requests() if one["by"].startswith("mcp-proxy/")]

    async def fail(self, what: str, status: int) -> None:
        assert (await self._ask("POST", f"/fail/{what}/{status}")).status == 204


@contextlib.asynccontextmanager
async def official(site: Front, mode: str = "legacy") -> AsyncIterator[OfficialClient]:
    async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
        transport = streamable_http_client(f"http://127.0.0.1:{site.port}/mcp", http_client=http)
        async with OfficialClient(transport, mode=mode, read_timeout_seconds=PATIENCE_S) as client:
            yield client


async def whoami(client: OfficialClient) -> str:
    first = (await client.call_tool("whoami")).content[0]
    assert isinstance(first, TextContent)
    return first.text


async def visits(site: Front, count: int, mode: str = "legacy") -> Counter[str]:
    """Whom as many clients, at the same time, came to."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(official(site, mode)) for _ in range(count)]
        return Counter([await whoami(client) for client in clients])


@contextlib.contextmanager
def official_pair(folder: Path) -> Iterator[tuple[Official, Official]]:
    with Official("a", folder) as a, Official("b", folder) as b:
        yield a, b


@pytest.mark.parametrize(("check", "what"), [("/healthz", "healthz"), ("discover", "discover")])
async def test_an_unhealthy_backend_gets_nothing_new_and_keeps_its_sessions_and_no_check_makes_one(
    site: Front, tmp_path: Path, check: str, what: str
) -> None:
    active = {"check": check, **OFTEN}
    with official_pair(tmp_path) as (a, b):
        await site.use([a, b], health={"active": active})
        async with official(site) as one, official(site) as other:
            mine = one if await whoami(one) == "a" else other
            assert await whoami(mine) == "a"
            await a.fail(what, 503)
            await site.becomes(a, "unhealthy")
            assert await visits(site, 4) == {"b": 4}
            assert await whoami(mine) == "a", "its session goes on"
            await a.fail(what, 200)
            await site.becomes(a, "up")
            assert (await visits(site, 4))["a"] >= 1

            async def are_checked() -> bool:
                return min(len(await a.checks()), len(await b.checks())) >= 8

            await site.until(are_checked, "several checks of each")
            assert await a.live() + await b.live() == 2, "these two clients"
        for server in (a, b):
            asked = await server.checks()
            wanted = {"GET", "/healthz", ""} if what == "healthz" else {"POST", "/mcp", "server/discover"}
            assert {frozenset((one["http"], one["path"], one["method"])) for one in asked} == {
                frozenset(wanted)
            }
            assert await server.live() == 0


async def test_a_check_by_tcp_finds_that_a_backend_is_away_and_back_without_any_traffic(
    site: Front, tmp_path: Path
) -> None:
    active = {"check": "tcp", **OFTEN}
    with official_pair(tmp_path) as (a, b):
        await site.use([a, b], health={"active": active})
        await site.becomes(a, "up")
        a.kill()
        await site.becomes(a, "down", "unhealthy")
        assert await visits(site, 3) == {"b": 3}
        a.start()
        await site.becomes(a, "up")
        assert (await visits(site, 4))["a"] >= 1
        assert (await a.checks(), await b.checks()) == ([], []), "to connect is all"


async def test_requests_of_the_new_revision_reach_only_backends_that_speak_it(
    site: Front, tmp_path: Path
) -> None:
    with Official("old", tmp_path, "--legacy") as old, Official("dual", tmp_path) as dual:
        await site.use([old, dual], era="probe", balance="round_robin")
        for at, replica in enumerate(site.sites):

            async def says(replica: Site = replica) -> bool:
                is_told = "spoken by 1 and not by 1 of its backends" in await replica.readiness()
                return is_told and f"spoken by {dual.url} but not by {old.url}" in replica.log()

            await site.until(says, "it is told who differs", at)
        assert await visits(site, 6, MODERN) == {"dual": 6}
        assert {one["method"] for one in await old.requests()} == {"server/discover"}
        assert {one["by"].partition("/")[0] for one in await old.requests()} == {"mcp-proxy"}
        assert await old.live() == 0, "to be asked makes no session"
        assert set(await visits(site, 6)) == {"old", "dual"}
        for at in (0, 1):
            eras = {id: each["era"] for id, each in (await site.status(at)).items()}
            assert eras == {old.url: "legacy", dual.url: "modern"}
