"""The same conversation without the proxy and through it: every byte of every body is the same.

Rules of this file: raw sockets at both ends, and the direct run is the only oracle. Bodies are
compared as bytes in both directions. Of headers, all that are end-to-end are compared: values,
order and repetitions; names without case (RFC 9110 section 5.1). What a proxy has to rebuild,
remove or add is listed here, and nothing else may differ.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.conversation import REQUEST_FIELDS, RESPONSE_FIELDS, SESSION, STEPS, Fields, Step
from tests.e2e.processes import DOORS, TRANSPORTS, configuration, proxy
from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.client import Client
from tests.tools.http1 import LAST_CHUNK, Head, chunk
from tests.tools.ports import free_ports
from tests.tools.recording import Conn, Seen

FRAMING = {b"content-length", b"transfer-encoding", b"connection", b"keep-alive"}
"""Rebuilt on every hop (RFC 9112 section 6)."""

REQUEST_OWN = FRAMING | {
    b"host",
    b"via",
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-forwarded-host",
    b"x-request-id",
}
"""What the proxy says about itself and its client."""

RESPONSE_OWN = FRAMING | {b"date", b"server", b"x-request-id"}

INITIALIZE = (
    b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25",'
    b'"capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}'
)
INITIALIZED = b'{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-11-25","capabilities":{}}}'


@dataclass(frozen=True)
class Told:
    """What the backend received."""

    method: bytes
    query: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes


@dataclass(frozen=True)
class Heard:
    """What the client received."""

    status: int
    fields: list[tuple[bytes, bytes]]
    body: bytes


class Script:
    """The backend's part: plays the step it was given, and remembers what it was asked."""

    def __init__(self) -> None:
        self.step = STEPS[0]
        self.session = ""
        self.told: Told | None = None
        self.heard_bytes = asyncio.Semaphore(0)
        """Released by the client once per piece that it has read."""

    def begin(self, step: Step) -> None:
        self.step, self.told = step, None

    async def __call__(self, request: Seen, conn: Conn) -> None:
        body = await request.whole()
        if body == INITIALIZE:
            self.session = f"{{odd}}:{uuid.uuid4().hex}/!~"
            fields = [("Content-Type", "application/json"), ("Mcp-Session-Id", self.session)]
            await conn.answer(200, fields, INITIALIZED)
            return
        query = request.target.partition(b"?")[2]
        self.told = Told(request.method, query, _end_to_end(request.head, REQUEST_OWN), body)
        await self._play(self.step, conn)

    async def _play(self, step: Step, conn: Conn) -> None:
        framing = {
            "length": f"Content-Length: {sum(map(len, step.answer))}\r\n",
            "chunked": "Transfer-Encoding: chunked\r\n",
            "close": "Connection: close\r\n",
        }[step.framing]
        if step.status == 204:
            framing = ""
        content_type = [("Content-Type", step.content_type)] if step.answer else []
        lines = _lines([*RESPONSE_FIELDS[:3], *content_type, *RESPONSE_FIELDS[3:]])
        await conn.send(f"HTTP/1.1 {step.status} Whatever\r\n{framing}{lines}\r\n".encode("latin-1"))
        for piece in step.answer:
            await conn.send(chunk(piece) if step.framing == "chunked" else piece)
            if step.is_stream:
                await self.heard_bytes.acquire()
        if step.framing == "chunked":
            await conn.send(LAST_CHUNK)
        elif step.framing == "close":
            conn.close()


def _lines(fields: Fields) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in fields)


def _end_to_end(head: Head, own: set[bytes]) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in head.headers if name.lower() not in own]


async def _converse(port: int, script: Script, step: Step) -> tuple[Told, Heard]:
    """One session with one step on one connection; everything that either end received."""
    script.begin(step)
    async with asyncio.timeout(PATIENCE_S), await Client.connect(port) as client:
        initialized = await client.ask(_request("POST", "", [], INITIALIZE))
        assert initialized.body == INITIALIZED
        session = (initialized.head.one("mcp-session-id") or b"").decode()
        assert session == script.session
        fields = [(name, session if value == SESSION else value) for name, value in step.fields]
        await client.send(_request(step.method, step.query, fields, step.body))
        head = await client.head(step.method)
        if step.is_stream:
            for number in range(1, len(step.answer) + 1):
                # The backend sends no more until these very bytes have arrived here.
                await client.body_until(b"".join(step.answer[:number]))
                script.heard_bytes.release()
        answer = await client.rest()
    assert answer.framing in ("clean", "until-close")
    assert script.told is not None
    told = Told(
        script.told.method,
        script.told.query,
        [(name, b"" if name == b"mcp-session-id" else value) for name, value in script.told.fields],
        script.told.body,
    )
    return told, Heard(answer.status, _end_to_end(head, RESPONSE_OWN), answer.body)


def _request(method: str, query: str, fields: Fields, body: bytes) -> bytes:
    framing = f"Content-Length: {len(body)}\r\n" if body else ""
    lines = _lines([*REQUEST_FIELDS[:5], *fields, *REQUEST_FIELDS[5:]])
    head = f"{method} /mcp{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n{framing}{lines}\r\n"
    return head.encode("latin-1") + body


@pytest.fixture(scope="module")
def backend_port() -> int:
    """Fixed for the module: the proxies are configured with it once."""
    return free_ports(1)[0]


@pytest.fixture(
    scope="module",
    params=[(door, transport) for door in DOORS for transport in TRANSPORTS],
    ids=lambda pair: f"{pair[0]}-door-{pair[1]}-transport",
)
def proxy_port(request: pytest.FixtureRequest, backend_port: int) -> Iterator[int]:
    door, transport = request.param
    config = configuration({"/mcp": [f"http://127.0.0.1:{backend_port}/mcp"]}, transport=transport)
    with proxy(door, config) as origin:
        yield int(origin.rpartition(":")[2])


@pytest.fixture
async def script(backend_port: int) -> AsyncIterator[Script]:
    """A backend that is up for one test; it reads strictly, and nothing it read was malformed."""
    script = Script()
    backend = Backend(script)
    backend.port = backend_port
    async with backend:
        yield script
    assert backend.violations == []


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
async def test_bodies_and_headers_pass_unchanged_in_both_directions(
    proxy_port: int, backend_port: int, script: Script, step: Step
) -> None:
    direct = await _converse(backend_port, script, step)
    through = await _converse(proxy_port, script, step)
    # The first two say the same as the last one, with a shorter report when they fail.
    assert through[0].body == direct[0].body == step.body
    assert through[1].body == direct[1].body == b"".join(step.answer)
    assert through == direct
