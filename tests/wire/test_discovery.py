"""Backends that are found: they come, drain and go at a name server's or a Kubernetes API's word, and what
runs on them is not disturbed by it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.tools.backend import Backend
from tests.tools.client import Answer, Client, call, post
from tests.tools.kube_api import Json, KubeApi, member, slice_of
from tests.tools.mcp_backend import INITIALIZE, McpServer
from tests.tools.proxy import ProxyProcess, launch

TERMINATING = {"ready": False, "serving": True, "terminating": True}


class Site:
    """A proxy in front of a Service whose pods are ``backends``: all at 127.0.0.1, so each has a port and a
    slice of its own."""

    def __init__(self, api: KubeApi, backends: list[Backend], proxy: ProxyProcess) -> None:
        self.api = api
        self.backends = backends
        self.proxy = proxy

    def pod(self, at: int, **conditions: bool) -> Json:
        return pod(at, self.backends[at].port, **conditions)

    async def ask(self, body: bytes, *fields: str) -> Answer:
        client = await Client.connect(self.proxy.port)
        try:
            return await client.ask(post(body, *fields))
        finally:
            client.close()

    async def session(self) -> str:
        answer = await self.ask(INITIALIZE)
        assert answer.status == 200, answer
        return (answer.head.one("mcp-session-id") or b"").decode()

    async def sessions_go_to(self, *wanted: str) -> None:
        """Wait until as many new sessions as there are backends are at exactly these."""

        async def is_so() -> bool:
            opened = {(await self.session()).partition("-")[0] for _ in self.backends}
            return opened == set(wanted)

        await self.proxy.until(is_so, f"new sessions only at {', '.join(wanted)}")

    async def status_of(self, session: str) -> int:
        return (await self.ask(call(2), f"Mcp-Session-Id: {session}")).status

    async def says(self, *sentences: str) -> None:
        """Wait until ``/readyz?verbose`` says one of these."""

        async def is_so() -> bool:
            said = (await self.proxy.admin("/readyz?verbose")).body.decode()
            return any(sentence in said for sentence in sentences)

        await self.proxy.until(is_so, " or ".join(sentences))


def pod(at: int, port: int, **conditions: bool) -> Json:
    return slice_of(f"weather-{at}", member("127.0.0.1", f"pod-{at}", **conditions), ports=[("mcp", port)])


def config_of(discover: dict[str, Any]) -> dict[str, Any]:
    pool = {"discover": discover, "balance": "round_robin", "credentials": {}}
    return {"pools": {"tools": pool}, "routes": [{"path": "/mcp", "pool": "tools"}]}


@asynccontextmanager
async def replicas(count: int) -> AsyncIterator[list[Backend]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Backend(McpServer(f"r{at}"))) for at in range(count)]


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """With the first of two pods."""
    async with KubeApi() as api, replicas(2) as backends:
        api.write_kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        await api.put(pod(0, backends[0].port))
        config = config_of({"kubernetes": {"service": "weather"}, "port": "mcp"})
        async with launch(config, tmp_path) as proxy:
            site = Site(api, backends, proxy)
            await site.says("kubernetes weather: 1 backend")
            await site.sessions_go_to("r0")
            yield site
            assert proxy.traceback() == ""


async def test_a_pod_that_comes_gets_sessions_and_one_that_terminates_keeps_those_it_has(site: Site) -> None:
    old = await site.session()
    await site.api.put(site.pod(1))
    await site.sessions_go_to("r0", "r1")
    await site.api.put(site.pod(0, **TERMINATING))
    await site.sessions_go_to("r1")
    assert await site.status_of(old) == 200
    await site.api.delete("weather-0")
    await site.sessions_go_to("r1")
    assert await site.status_of(old) == 200, "it drains, as long as it is there"
    await site.backends[0].down()
    assert [await site.status_of(old) for _ in range(3)] == [404, 404, 404]
    assert len(site.api.lists) == 1


async def test_a_watch_that_breaks_and_a_version_that_is_gone_disturb_nobody(site: Site) -> None:
    old = await site.session()
    site.api.cut()
    await site.api.put(site.pod(1))
    await site.sessions_go_to("r0", "r1")
    await site.api.until(watches=2)
    site.api.expire()
    await site.api.put(site.pod(0, **TERMINATING))
    await site.sessions_go_to("r1")
    assert await site.status_of(old) == 200


async def test_an_api_that_is_away_leaves_what_there_is_and_says_so(site: Site) -> None:
    old = await site.session()
    await site.api.stop()
    await site.says("the Kubernetes API cannot be reached; 1 backend from before")
    assert await site.status_of(old) == 200
    await site.sessions_go_to("r0")
    async with site.api:
        await site.api.put(site.pod(1))
        await site.sessions_go_to("r0", "r1")


async def test_a_service_without_pods_keeps_the_last_ones_for_a_while(site: Site) -> None:
    old = await site.session()
    await site.api.put(site.pod(0, ready=False, serving=False))
    await site.says("suddenly none; 1 backend from before")
    assert await site.status_of(old) == 200
    await site.sessions_go_to("r0")


async def test_a_name_is_resolved_to_the_backends(tmp_path: Path) -> None:
    async with replicas(1) as backends:
        config = config_of({"dns": "localhost", "port": backends[0].port, "every": "1s"})
        async with launch(config, tmp_path) as proxy:
            site = Site(KubeApi(), backends, proxy)
            await site.says("dns localhost: 1 backend", "dns localhost: 2 backends")  # ::1, too
            await site.sessions_go_to("r0")
