"""One scripted backend, and the transport to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mcp_proxy.tasks import Tasks
from mcp_proxy.upstream import Outgoing
from mcp_proxy.upstream.httpx import HttpxTransport
from tests.tools.backend import Backend
from tests.tools.receiver import RecordingReceiver
from tests.tools.tls import Authority
from tests.unit.upstream_httpx.scripts import POST, Send, whole


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    owner = Tasks()
    yield owner
    await owner.aclose()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    async with Backend(whole) as running:
        yield running
    assert running.violations == []


@pytest.fixture
async def transport(backend: Backend, tasks: Tasks) -> AsyncIterator[HttpxTransport]:
    transport = HttpxTransport(
        origin=f"http://127.0.0.1:{backend.port}", tasks=tasks, head_timeout_s=5.0, idle_timeout_s=5.0
    )
    yield transport
    await transport.aclose()


@pytest.fixture
def send(transport: HttpxTransport) -> Send:
    def send(outgoing: Outgoing = POST, *, fresh: bool = False) -> RecordingReceiver:
        receiver = RecordingReceiver()
        transport.send(outgoing, receiver, fresh=fresh)
        return receiver

    return send
