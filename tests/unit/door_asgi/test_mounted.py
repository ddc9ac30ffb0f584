"""The portable door inside of a Starlette application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount

from mcp_proxy.downstream.asgi import AsgiDoor
from tests.tools import PATIENCE_S
from tests.tools.client import Client, get, post
from tests.unit.door_asgi.servers import uvicorn_serves
from tests.unit.doorway import ScriptedHandler, Served


class Stamp(BaseHTTPMiddleware):
    """The kind of middleware that wraps ``receive`` and ``send`` in tasks and queues."""

    async def dispatch(
        self, request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = await call_next(request)
        response.headers["x-stamp"] = "1"
        return response


STACKS: dict[str, list[Any]] = {"bare": [], "task": [Stamp], "pure": [GZipMiddleware]}


@pytest.fixture(params=STACKS)
async def client(request: pytest.FixtureRequest, door: AsgiDoor) -> AsyncIterator[Client]:
    middleware = [Middleware(kind) for kind in STACKS[request.param]]
    app = Starlette(routes=[Mount("/x", app=door)], middleware=middleware)
    async with uvicorn_serves(app) as port:
        client = await Client.connect(port)
        yield client
        client.close()


async def test_the_mount_point_is_not_part_of_the_target(
    client: Client, handler: ScriptedHandler, calls: list[str]
) -> None:
    answer = await client.ask(post(b"{}", target="/x/mcp?q=%7e"))
    assert (answer.status, answer.body) == (200, b"{}")
    assert handler.served[0].request.target == b"/mcp?q=%7e"
    assert calls == ["startup"]


async def test_events_pass_as_they_come_and_the_client_may_leave(
    client: Client, handler: ScriptedHandler
) -> None:
    arrived: asyncio.Queue[Served] = asyncio.Queue()
    handler.respond = arrived.put_nowait
    await client.send(get(target="/x/mcp"))
    async with asyncio.timeout(PATIENCE_S):
        served = await arrived.get()
        served.reply.start(200, [(b"content-type", b"text/event-stream")], None)
        await client.head("GET")
        for number in range(3):
            served.reply.write(b"data: %d\n\n" % number)
            await client.body_until(b"data: %d\n\n" % number)
        client.close()
        while "disconnect" not in served.conversation.events:  # noqa: ASYNC110 -- a recording has no event
            await asyncio.sleep(0.001)


# Not "task": BaseHTTPMiddleware ends the body of an app that raises. The door's docstring says so.
@pytest.mark.parametrize("client", ["bare", "pure"], indirect=True)
async def test_a_broken_answer_stays_visibly_broken(client: Client, handler: ScriptedHandler) -> None:
    arrived: asyncio.Queue[Served] = asyncio.Queue()
    handler.respond = arrived.put_nowait
    await client.send(post(b"{}", target="/x/mcp"))
    async with asyncio.timeout(PATIENCE_S):
        served = await arrived.get()
    served.reply.start(200, [(b"content-type", b"text/event-stream")], None)
    await client.head()
    served.reply.write(b"data: 1\n\n")
    served.reply.abort()
    assert (await client.rest()).framing in ("truncated", "reset")
