"""The portable door under a real server, a scripted handler behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

import pytest

from mcp_proxy.downstream.asgi import AsgiDoor
from mcp_proxy.wire import Handler
from tests.tools.client import Client
from tests.unit.door_asgi.servers import Serve, hypercorn_serves, uvicorn_serves
from tests.unit.doorway import ScriptedHandler


@pytest.fixture
def handler() -> ScriptedHandler:
    return ScriptedHandler()


@pytest.fixture
def calls() -> list[str]:
    """What the lifespan did."""
    return []


@pytest.fixture
def door(handler: ScriptedHandler, calls: list[str]) -> AsgiDoor:
    async def on_startup() -> None:
        calls.append("startup")

    async def on_shutdown() -> None:
        calls.append("shutdown")

    return AsgiDoor(cast(Handler, handler), on_startup=on_startup, on_shutdown=on_shutdown)


@pytest.fixture(params=[uvicorn_serves, hypercorn_serves], ids=["uvicorn", "hypercorn"])
def serves(request: pytest.FixtureRequest) -> Serve:
    serve: Serve = request.param
    return serve


@pytest.fixture
async def port(serves: Serve, door: AsgiDoor) -> AsyncIterator[int]:
    async with serves(door) as port:
        yield port


@pytest.fixture
async def client(port: int) -> AsyncIterator[Client]:
    client = await Client.connect(port)
    yield client
    client.close()
