"""Which session store a configuration becomes, and two proxies that share one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_proxy.app import Service
from tests.tools.backend import Backend
from tests.tools.client import Client, call, get, post
from tests.tools.mcp_backend import INITIALIZE, McpServer
from tests.tools.redis_server import RedisServer
from tests.unit.fakes import until
from tests.unit.test_app import config, running

KEY = "k" * 32


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.mark.parametrize(
    ("text", "name", "health"),
    [
        ("", "memory", True),
        (f"sessions: {{store: signed, keys: [{KEY}]}}\n", "signed", True),
        ("sessions: {store: 'redis://127.0.0.1:1/0'}\n", "redis", False),
        (f"sessions: {{store: signed, keys: [{KEY}], url: 'redis://127.0.0.1:1/0'}}\n", "signed", False),
    ],
    ids=["memory", "signed", "redis", "signed with redis"],
)
async def test_each_store_has_its_name_and_its_health(
    tmp_path: Path, text: str, name: str, health: bool
) -> None:
    service = Service(config(tmp_path, text))
    await service.start()
    assert service.sessions.name == name
    healthy, sentence = service.sessions.health()
    assert healthy is health
    assert "127.0.0.1" not in sentence
    await service.aclose()
    await service.aclose()


@pytest.mark.parametrize("loss", ["end", "reinitialize"])
async def test_pools_make_sessions_anew_if_they_are_told_to(tmp_path: Path, loss: str) -> None:
    service = Service(config(tmp_path, on_backend_loss=loss))
    assert service.pools["tools"].reinitializes is (loss == "reinitialize")
    await service.aclose()


@pytest.mark.parametrize("store", ["redis", "signed", "signed with redis"])
async def test_a_session_begun_at_one_proxy_is_served_and_ended_by_another(
    tmp_path: Path, redis: RedisServer, store: str
) -> None:
    text = {
        "redis": f"sessions: {{store: '{redis.url}'}}\n",
        "signed": f"sessions: {{store: signed, keys: [{KEY}]}}\n",
        "signed with redis": f"sessions: {{store: signed, keys: [{KEY}], url: '{redis.url}'}}\n",
    }[store]
    async with (
        Backend(McpServer()) as backend,
        running(config(tmp_path / "1", text, url=backend.url)) as one,
        running(config(tmp_path / "2", text, url=backend.url)) as two,
    ):
        for proxy in (one, two):
            await until(lambda proxy=proxy: proxy.service.sessions.health()[0], 0.01)  # type: ignore[misc]
        first = await Client.connect(one.port)
        second = await Client.connect(two.port)
        begun = await first.ask(post(INITIALIZE))
        (session,) = begun.head.all("mcp-session-id")
        line = f"mcp-session-id: {session.decode()}"
        assert (await second.ask(post(call(), line))).status == 200
        assert (await second.ask(get(line, method="DELETE"), "DELETE")).status in (200, 204)
        if store != "signed":
            await until(lambda: one.service.sessions.count("/mcp") == 0, 0.01)
            assert (await first.ask(post(call(), line))).status == 404
        assert (await second.ask(post(call(), line))).status == 404
        for client in (first, second):
            client.close()
