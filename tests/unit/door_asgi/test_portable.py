"""``mcp_proxy.asgi:app`` as users run it: three servers as processes, a scripted backend behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import mcp_proxy.asgi
from mcp_proxy.asgi import EnvironmentApp
from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.client import Client, post
from tests.tools.http1 import LAST_CHUNK
from tests.tools.mcp_backend import INITIALIZE
from tests.tools.ports import free_ports
from tests.tools.recording import Conn, Seen
from tests.unit.doorway import chunked

ROOT = Path(__file__).parents[3]
APP = "mcp_proxy.asgi:app"
HARDENED = "mcp_proxy.downstream.http11:Http11Protocol"
COMMANDS: dict[str, Callable[[int], list[str]]] = {
    "uvicorn": lambda port: ["uvicorn", "--port", str(port), APP],
    "uvicorn, hardened": lambda port: ["uvicorn", "--port", str(port), "--http", HARDENED, APP],
    "granian": lambda port: ["granian", "--interface", "asgi", "--port", str(port), APP],
    "hypercorn": lambda port: ["hypercorn", "--bind", f"127.0.0.1:{port}", APP],
}


async def silent(request: Seen, conn: Conn) -> None:
    await request.whole()


async def events(request: Seen, conn: Conn) -> None:
    await request.whole()
    await conn.stream_head()
    await conn.send_chunk(b"data: 1\n\n")


@pytest.fixture(scope="module")
async def backend() -> AsyncIterator[Backend]:
    async with Backend(silent) as running:
        yield running
    assert running.violations == []


@pytest.fixture(scope="module", params=COMMANDS)
async def port(
    request: pytest.FixtureRequest, backend: Backend, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[int]:
    (port,) = free_ports(1)
    variables = {"MCP_PROXY_BACKENDS": backend.url, "PYTHONPATH": str(ROOT)}
    log = tmp_path_factory.mktemp(request.param) / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *COMMANDS[request.param](port),
            env=os.environ | variables,
            stdout=output,
            stderr=output,
        )
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await _listens(port):
                assert process.returncode is None, log.read_text()
        yield port
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            await process.wait()


async def _listens(port: int) -> bool:
    try:
        (await Client.connect(port)).close()
    except ConnectionRefusedError:
        await asyncio.sleep(0.01)
        return False
    return True


@pytest.fixture
async def client(port: int, backend: Backend) -> AsyncIterator[Client]:
    backend.take()
    client = await Client.connect(port)
    yield client
    client.close()


async def test_a_call_passes_unchanged(client: Client, backend: Backend) -> None:
    async def answer(request: Seen, conn: Conn) -> None:
        await conn.answer(200, [("X-A", "1"), ("Date", "x"), ("x-a", "2")], b"\x00" + await request.whole())

    backend.handler = answer
    for _ in range(2):
        reply = await client.ask(post(INITIALIZE, "X-B: 1", target="/mcp?q=%zz"))
        assert (reply.status, reply.body, reply.framing) == (200, b"\x00" + INITIALIZE, "clean")
        assert reply.head.all("x-a") == [b"1", b"2"]
        assert len(reply.head.all("date")) == len(reply.head.all("content-length")) == 1
        request = backend.take_one()
        assert (request.target, request.body) == (b"/mcp?q=%zz", INITIALIZE)
        assert request.head.one("x-b") == b"1"


async def test_a_chunked_body_arrives_whole(client: Client, backend: Backend) -> None:
    async def answer(request: Seen, conn: Conn) -> None:
        await conn.answer(200, [], await request.whole())

    backend.handler = answer
    body = chunked(INITIALIZE[:5], INITIALIZE[5:])
    assert (await client.ask(post(body, framing="Transfer-Encoding: chunked"))).body == INITIALIZE


async def test_an_event_stream_passes_piece_by_piece(client: Client, backend: Backend) -> None:
    backend.handler = lambda request, conn: conn.stream_head()
    await client.send(post(INITIALIZE))
    await backend.arrived()
    conn = backend.take_one().conn
    assert (await client.head()).one("content-type") == b"text/event-stream"
    for number in range(3):
        await conn.send_chunk(b"data: %d\n\n" % number)
        await client.body_until(b"data: %d\n\n" % number)
    await conn.send(LAST_CHUNK)
    reply = await client.rest()
    assert (reply.body, reply.framing) == (b"data: 0\n\ndata: 1\n\ndata: 2\n\n", "clean")


async def test_a_backend_that_breaks_off_leaves_a_visible_truncation(
    client: Client, backend: Backend
) -> None:
    backend.handler = events
    await client.send(post(INITIALIZE))
    await client.head()
    await client.body_until(b"data: 1\n\n")
    backend.take_one().conn.reset()
    assert (await client.rest()).framing in ("truncated", "reset")


@pytest.mark.parametrize("handler", [silent, events], ids=["before the head", "mid-stream"])
async def test_a_client_that_leaves_frees_the_backend(
    client: Client, backend: Backend, handler: Callable[..., Any]
) -> None:
    backend.handler = handler
    await client.send(post(INITIALIZE))
    await backend.arrived()
    if handler is events:
        await client.head()
        await client.body_until(b"data: 1\n\n")
    client.close()
    await backend.take_one().conn.gone()


async def test_a_slow_reader_gets_every_byte(port: int, backend: Backend) -> None:
    size = 8 * 1024 * 1024

    async def flood(request: Seen, conn: Conn) -> None:
        await request.whole()
        await conn.answer(200, [("Content-Type", "text/event-stream")], bytes(size))

    backend.handler = flood
    backend.take()
    client = await Client.connect(port, receive_buffer=16 * 1024)
    await client.send(post(INITIALIZE))
    await backend.arrived()
    reply = await client.answer()
    client.close()
    assert (len(reply.body), reply.framing) == (size, "clean")


async def test_a_refusal_closes_a_connection_with_an_unread_body(client: Client, backend: Backend) -> None:
    reply = await client.ask(post(b"", framing="Content-Length: 99999999"))
    assert (reply.status, reply.reason, reply.says_close) == (413, "body_too_large", True)
    assert backend.take() == []


# --- the application object ----------------------------------------------------------------------


def test_the_name_is_found_by_servers_that_look_into_the_module_only() -> None:
    assert vars(mcp_proxy.asgi)["app"] is mcp_proxy.asgi.app


async def test_a_wrong_configuration_fails_the_start_with_every_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("MCP_PROXY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MCP_PROXY_BACKENDS", "ftp://a gopher://b")
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    await EnvironmentApp()({"type": "lifespan"}, receive, send)
    (message,) = sent
    assert message["type"] == "lifespan.startup.failed"
    assert "ftp" in message["message"]
    assert "gopher" in message["message"]
