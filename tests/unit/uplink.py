"""A scripted backend and the http11 transport to it, on real sockets."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from mcp_proxy.tasks import Tasks
from mcp_proxy.upstream import Call, Outgoing
from mcp_proxy.upstream.http11 import Http11Transport
from mcp_proxy.wire import Fields
from tests.tools.backend import Backend
from tests.tools.receiver import RecordingReceiver
from tests.tools.recording import Conn, Seen
from tests.unit.fakes import settle, until

POST = Outgoing(b"POST", b"/mcp", Fields([(b"accept", b"*/*")]), b"{}")


async def answer(request: Seen, conn: Conn) -> None:
    await request.whole()
    await conn.answer(200, [("Content-Type", "application/json")], b"ok")


async def never(request: Seen, conn: Conn) -> None:
    await conn.gone()


class Rig:
    def __init__(self, backend: Backend, tasks: Tasks) -> None:
        self.backend = backend
        self.tasks = tasks
        self.transport = self.to("127.0.0.1", backend.port)

    def to(self, host: str, port: int, **options: object) -> Http11Transport:
        return Http11Transport(host, port, tasks=self.tasks, **options)  # type: ignore[arg-type]

    def send(
        self, *, fresh: bool = False, transport: Http11Transport | None = None
    ) -> tuple[RecordingReceiver, Call]:
        receiver = RecordingReceiver()
        return receiver, (transport or self.transport).send(POST, receiver, fresh=fresh)

    async def ask(
        self, *, fresh: bool = False, transport: Http11Transport | None = None
    ) -> RecordingReceiver:
        receiver = await self.send(fresh=fresh, transport=transport)[0].over()
        await settle()
        return receiver

    async def closed(self, transport: Http11Transport | None = None) -> None:
        """Until no connection is open."""
        await until(lambda: not (transport or self.transport).open_connections)


@contextlib.asynccontextmanager
async def uplink() -> AsyncIterator[Rig]:
    """A rig that is empty again at the end."""
    tasks = Tasks()
    async with Backend(answer) as backend:
        rig = Rig(backend, tasks)
        yield rig
        await rig.transport.aclose()
        await rig.closed()
        await tasks.aclose()
        assert backend.violations == []
