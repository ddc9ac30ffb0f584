"""The bench of the wire tests: scripted backends, the real proxy in front, and the check that
follows every case.

Rules of this file: a case takes from the backend every request that it expected; ``check`` then
proves that nothing else arrived, that nothing is still held, that nothing secret was written
anywhere, and that the next clean conversation works.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tests.tools.backend import Backend, Handler
from tests.tools.client import Answer, Client, call, get, post
from tests.tools.mcp_backend import INITIALIZE, JSON, McpServer, json_answer, result
from tests.tools.proxy import ProxyProcess, launch, merge
from tests.tools.recording import Conn, Seen

SECRET = {
    name: f"planted-{name}-7c1d"
    for name in (
        "authorization", "cookie", "proxy-authorization", "api-key", "session", "query", "argument", "param",
        "result", "set-cookie", "credential", "last-event-id",
    )
}  # fmt: skip
"""Twelve values that pass through the proxy and must not stay anywhere."""

SLACK = 2
"""Descriptors that may differ: an admin connection that is just being closed, and the like."""


class Rig:
    """What a case works with. ``client()`` connections are closed at the end."""

    def __init__(self, proxy: ProxyProcess, backends: list[Backend]) -> None:
        self.proxy = proxy
        self.backends = backends
        self._clients: list[Client] = []
        self._base = 0
        self._log_base = 0

    @property
    def backend(self) -> Backend:
        """The first backend; in most cases the only one."""
        return self.backends[0]

    def script(self, handler: Handler) -> None:
        """What the backends answer from now on."""
        for backend in self.backends:
            backend.handler = handler

    async def client(self, *, receive_buffer: int | None = None) -> Client:
        """A new connection to the proxy."""
        client = await Client.connect(self.proxy.port, receive_buffer=receive_buffer)
        self._clients.append(client)
        return client

    def hang_up(self) -> None:
        """Close every connection of the case."""
        for client in self._clients:
            client.close()

    async def session(self, client: Client | None = None) -> str:
        """Open a session; the ``Mcp-Session-Id`` field line that belongs to it."""
        answer = await (client or await self.client()).ask(post(INITIALIZE))
        assert answer.status == 200, answer
        for backend in self.backends:
            backend.take()
        return f"Mcp-Session-Id: {(answer.head.one('mcp-session-id') or b'').decode()}"

    async def refused(self, raw: bytes, *statuses: int, method: str = "POST") -> Answer:
        """Send bytes that must be answered once, with one of these statuses, and end the connection
        without any backend hearing of them."""
        client = await self.client()
        await client.send(raw)
        answer = await client.answer(method)
        assert answer.status in statuses, answer
        assert answer.framing == "clean"
        assert answer.says_close, answer.head.raw
        await client.closed()
        assert self.taken() == []
        return answer

    def taken(self) -> list[Seen]:
        """Everything that backends got since the last look."""
        return [request for backend in self.backends for request in backend.take()]

    # -- what is held --------------------------------------------------------------------------

    def held(self) -> int:
        """Descriptors of the proxy besides its connections to backends, which may idle in a pool."""
        return self.proxy.descriptors() - sum(len(backend.open_connections) for backend in self.backends)

    async def begin(self) -> None:
        """Remember the state that every case must return to; what a failed case left is dropped."""
        self.script(json_answer())
        for backend in self.backends:
            backend.violations.clear()
            for conn in backend.busy:
                conn.reset()
        self.taken()
        await self.quiet()
        self._base = self.held()
        self._log_base = self.proxy.log_size()

    async def quiet(self) -> None:
        """Wait until no exchange and no stream is left, in the proxy and at the backends."""

        async def is_quiet() -> bool:
            return not (
                any(backend.busy for backend in self.backends)
                or await self.proxy.metric("mcp_proxy_inflight")
                or await self.proxy.metric("mcp_proxy_open_streams")
            )

        await self.proxy.until(is_quiet, "no exchange in progress")

    async def check(self) -> None:
        """The check after every case."""
        self.hang_up()
        assert self.taken() == [], "a backend saw a request that nobody expected"
        await self.quiet()

        async def is_back() -> bool:
            return self.held() <= self._base + SLACK

        await self.proxy.until(is_back, f"{self.held()} descriptors back to {self._base}")
        await self.converse()
        for backend in self.backends:
            assert backend.violations == []
        assert self.proxy.traceback(self._log_base) == ""
        await self.assert_discreet()

    async def converse(self) -> None:
        """A session with every secret in its place; all of it must arrive and work."""
        self.script(McpServer(SECRET["session"], tool=secret_tool))
        fields = (
            f"Authorization: Bearer {SECRET['authorization']}",
            f"Cookie: id={SECRET['cookie']}",
            f"Proxy-Authorization: Basic {SECRET['proxy-authorization']}",
            f"X-Api-Key: {SECRET['api-key']}",
            f"Mcp-Param-Token: {SECRET['param']}",
            f"Last-Event-ID: {SECRET['last-event-id']}",
        )
        target = f"/mcp?token={SECRET['query']}"
        client = await Client.connect(self.proxy.port)
        try:
            opened = await client.ask(post(INITIALIZE, *fields, target=target))
            assert opened.status == 200, opened
            session = f"Mcp-Session-Id: {(opened.head.one('mcp-session-id') or b'').decode()}"
            answer = await client.ask(post(call(9, x=SECRET["argument"]), session, *fields, target=target))
            assert (answer.status, answer.framing, answer.json["id"]) == (200, "clean", 9)
            ended = await client.ask(get(session, *fields, target=target, method="DELETE"), "DELETE")
            assert ended.status == 200
        finally:
            client.close()
        assert [len(seen.body) > 0 for seen in self.taken()] == [True, True, False]

    async def assert_discreet(self) -> None:
        """No planted secret in the output, the metrics or the status."""
        said = self.proxy.output + await self.proxy.metrics() + json.dumps(await self.proxy.status())
        leaked = [name for name, value in SECRET.items() if value in said]
        assert leaked == []


async def secret_tool(request: Seen, conn: Conn) -> None:
    """Answers a call with secrets of the backend's."""
    body = result(json.loads(await request.whole()), text=SECRET["result"])
    await conn.answer(200, [JSON, ("Set-Cookie", f"id={SECRET['set-cookie']}")], body)


@contextlib.asynccontextmanager
async def bench(
    folder: Path,
    over: dict[str, Any] | None = None,
    *,
    backends: int = 1,
    receive_buffer: int | None = None,
    open_files: int | None = None,
    also: Callable[[list[str]], list[str]] = list,
) -> AsyncIterator[Rig]:
    """Backends and a proxy in front of them, at ``/mcp``, with ``over`` laid over the configuration.

    ``also`` maps the URLs of the backends to those that the proxy is told.
    ``receive_buffer`` is that of the backends' sockets.
    """
    async with contextlib.AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(Backend(json_answer(), receive_buffer=receive_buffer))
            for _ in range(backends)
        ]
        pool = {
            "backends": also([backend.url for backend in running]),
            "credentials": {},
            "timeouts": {"connect": "2s"},
        }
        config = {"pools": {"tools": pool}, "routes": [{"path": "/mcp", "pool": "tools"}]}
        proxy = await stack.enter_async_context(
            launch(merge(config, over or {}), folder, open_files=open_files)
        )
        rig = Rig(proxy, running)
        await rig.converse()
        yield rig


@contextlib.asynccontextmanager
async def case(rig: Rig) -> AsyncIterator[Rig]:
    """One case on a bench: its base before, the check after it."""
    await rig.begin()
    try:
        yield rig
        await rig.check()
    finally:
        rig.hang_up()
