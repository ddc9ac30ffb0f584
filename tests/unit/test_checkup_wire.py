"""What servers get to see of checks, on real sockets, and what they make of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from mcp.server.mcpserver import MCPServer

from mcp_proxy import __version__
from mcp_proxy.backends import Backend as Replica
from mcp_proxy.backends import Endpoint
from mcp_proxy.checkup import ActiveRule, Checkup
from mcp_proxy.pools import Pool, PoolPolicy
from mcp_proxy.tasks import Tasks
from mcp_proxy.upstream.http11 import Http11Transport
from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.mcp_backend import JSON, NO_SESSION, json_answer
from tests.tools.recording import Conn, Seen
from tests.unit.fakes import settle, until

QUESTION = (
    b'{"jsonrpc":"2.0","id":"mcp-proxy","method":"server/discover","params":{"_meta":{'
    b'"io.modelcontextprotocol/protocolVersion":"2026-07-28",'
    b'"io.modelcontextprotocol/clientCapabilities":{},'
    b'"io.modelcontextprotocol/clientInfo":{"name":"mcp-proxy","version":"%b"}}}}' % __version__.encode()
)


class Rig:
    """A pool with one backend at ``port`` that is checked whenever the test says so."""

    def __init__(self, port: int, check: str | None = None, *, era: bool = False) -> None:
        self.tasks = Tasks()
        active = None if check is None else ActiveRule(check, 5.0, PATIENCE_S, 1, 1)
        self.pool = Pool("pool", PoolPolicy(authorization=b"Bearer t"), self._dial, self.tasks)
        self.pool.update([Endpoint("127.0.0.1", port)], "reload")
        (self.replica,) = self.pool.backends
        self.checkup = Checkup(self.pool, self.tasks, active=active, probes_era=era)
        self.at_s = 0.0

    def _dial(self, replica: Replica) -> Http11Transport:
        return Http11Transport(replica.host, replica.port, tasks=self.tasks)

    async def check(self) -> None:
        """Every check once, to its end."""
        for _ in range(2):
            self.checkup.sweep(self.at_s)
            self.at_s += 6.0
        await until(lambda: len(self.tasks) == 0, 0.001)


@contextlib.asynccontextmanager
async def checked(port: int, check: str | None = None, *, era: bool = False) -> AsyncIterator[Rig]:
    rig = Rig(port, check, era=era)
    yield rig
    await rig.pool.aclose()
    await rig.tasks.aclose()


async def test_a_connect_is_all_that_tcp_does() -> None:
    async with Backend(json_answer()) as backend, checked(backend.port, "tcp") as rig:
        await rig.check()
        await backend.until(lambda: bool(backend.connections) and not backend.open_connections)
        assert (backend.take(), len(backend.connections), backend.violations) == ([], 1, [])
        await backend.refuse()
        await rig.check()
        assert not rig.replica.is_healthy
        assert rig.replica.unreachable_since_s is not None
        backend.listen()
        await rig.check()
        assert rig.replica.is_up


async def test_a_path_is_asked_for_in_these_bytes() -> None:
    async with Backend(_well) as backend, checked(backend.port, "/healthz?deep=1") as rig:
        await rig.check()
        seen = backend.take_one()
        assert seen.raw == (
            b"GET /healthz?deep=1 HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept: */*\r\n"
            b"accept-encoding: identity\r\nuser-agent: mcp-proxy/%b\r\n\r\n"
            % (backend.port, __version__.encode())
        )
        assert (seen.body, backend.violations) == (b"", [])


async def test_the_era_is_asked_for_in_these_bytes() -> None:
    async with Backend(json_answer()) as backend, checked(backend.port, era=True) as rig:
        await rig.check()
        seen = backend.take_one()
        assert seen.raw == (
            b"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n"
            b"accept: application/json, text/event-stream\r\naccept-encoding: identity\r\n"
            b"user-agent: mcp-proxy/%b\r\nmcp-protocol-version: 2026-07-28\r\n"
            b"mcp-method: server/discover\r\nmcp-session-id: none\r\nauthorization: Bearer t\r\n"
            b"content-length: %d\r\n\r\n" % (backend.port, __version__.encode(), len(QUESTION))
        )
        assert (seen.body, backend.violations) == (QUESTION, [])


async def test_a_server_that_makes_a_session_for_whatever_comes_without_one_makes_none() -> None:
    """As the Python SDK 1.x does: it keeps it for good, although it answers 400."""
    minted: list[Seen] = []

    async def serve(request: Seen, conn: Conn) -> None:
        await request.whole()
        if request.head.one("mcp-session-id") is None:
            minted.append(request)
        await conn.answer(404, [JSON], NO_SESSION)

    async with Backend(serve) as backend, checked(backend.port, "discover", era=True) as rig:
        await rig.check()
        assert (minted, rig.replica.is_modern, rig.replica.is_healthy) == ([], False, True)


async def test_an_answer_in_an_event_stream_is_read() -> None:
    async def stream(request: Seen, conn: Conn) -> None:
        await request.whole()
        await conn.stream_head()
        await conn.send_chunk(b": ping\r\n\r\nevent: message\r\ndata: ")
        await conn.send_chunk(b'{"jsonrpc":"2.0","id":"mcp-proxy","result":{"supported')
        await conn.send_chunk(b'Versions":["2025-11-25","2026-07-28"]}}\r\n\r\n')
        await conn.send(b"0\r\n\r\n")

    async with Backend(stream) as backend, checked(backend.port, era=True) as rig:
        await rig.check()
        assert rig.replica.is_modern is True


@pytest.mark.parametrize("options", [{}, {"stateless_http": True}], ids=["stateful", "stateless"])
async def test_the_official_server_answers_and_makes_no_session(options: dict[str, Any]) -> None:
    server: MCPServer[Any] = MCPServer("real", log_level="ERROR")
    app = server.streamable_http_app(**options)
    async with _served(app) as port, checked(port, "discover", era=True) as rig:
        for _ in range(3):
            await rig.check()
        assert (rig.replica.is_modern, rig.replica.is_healthy) == (True, True)
        assert server.session_manager._server_instances == {}


async def _well(request: Seen, conn: Conn) -> None:
    await conn.answer(204, [])


@contextlib.asynccontextmanager
async def _served(app: Any) -> AsyncIterator[int]:
    """The application behind uvicorn, in this process, so that the test can look into it."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        await until(lambda: server.started, 0.001)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await serving
            await settle()
