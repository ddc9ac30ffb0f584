"""``X-Request-Id``: client, backend and access line have the same name for a request, through both doors.

Rules of this file: one of the loopback addresses is a trusted proxy, all others are anybody. The access log
is a file, because the portable door has no listener to ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import DOORS, TRANSPORTS, proxy
from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.client import Answer, Client, call, get, post
from tests.tools.mcp_backend import INITIALIZE, McpServer, json_answer
from tests.tools.nginx import nginx

TRUSTED = "127.0.0.2"
MINTED = re.compile(r"[0-9a-f]{32}")
NEVER = "never-to-be-seen"
UNUSABLE = [
    "",
    f"{NEVER} with spaces",
    f'{NEVER}"quoted"',
    f"{NEVER}\\u0000",
    f"{NEVER}{{}}",
    f"{NEVER},other",
    f"{NEVER}\xe4\xf6",
    f"{NEVER}<script>",
    NEVER + "x" * 128,
]
"""Not even from a trusted proxy."""


@dataclass
class Site:
    """A proxy, its log, and the backend behind it."""

    port: int
    log: Path
    backend: Backend
    clients: list[Client] = field(default_factory=list)

    async def connect(self, address: str = "127.0.0.1") -> Client:
        """Comes from this address."""
        sock = socket.socket()
        sock.bind((address, 0))
        sock.setblocking(False)
        client = Client(sock)
        self.clients.append(client)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        return client

    async def line(self, request_id: str) -> dict[str, Any]:
        """Of the request with this name, as soon as it has been written. A round trip between two looks, so
        that the proxy's loop has turned."""
        async with asyncio.timeout(PATIENCE_S), await Client.connect(self.port) as client:
            while not (found := [each for each in self.lines() if each["request_id"] == request_id]):
                await client.ask(post(b"no JSON"))
        (line,) = found
        return line

    def lines(self) -> list[dict[str, Any]]:
        whole = self.log.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    async def named(self, answer: Answer, *, is_forwarded: bool = True) -> str:
        """The one name that all have for this request."""
        (told,) = answer.head.all("x-request-id")
        seen = self.backend.take()
        assert len(seen) == is_forwarded
        for request in seen:
            assert request.head.all("x-request-id") == [told]
        assert (await self.line(told.decode()))["status"] == answer.status
        return told.decode()


@pytest.fixture(
    scope="module",
    params=list(itertools.product(DOORS, TRANSPORTS)),
    ids=lambda pair: f"{pair[0]}-door-{pair[1]}-transport",
)
async def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    door, transport = request.param
    log = tmp_path_factory.mktemp("site") / "access.log"
    async with Backend(json_answer()) as backend:
        config = {
            "trusted_proxies": [f"{TRUSTED}/32"],
            "limits": {"body": "64KiB"},
            "pools": {"tools": {"backends": [backend.url], "transport": transport}},
            "routes": [{"path": "/mcp", "pool": "tools"}],
            "telemetry": {"access_log_file": str(log)},
        }
        with proxy(door, config) as origin:
            yield Site(int(origin.rpartition(":")[2]), log, backend)


@pytest.fixture
async def site(shared: Site) -> AsyncIterator[Site]:
    shared.backend.handler = json_answer()
    yield shared
    for client in shared.clients:
        client.close()
    shared.clients.clear()
    assert shared.backend.take() == []
    assert shared.backend.violations == []


async def test_every_request_has_a_name_of_its_own(site: Site) -> None:
    client = await site.connect()
    names = [await site.named(await client.ask(post(call()))) for _ in range(5)]
    assert len(set(names)) == 5
    assert all(MINTED.fullmatch(name) for name in names)


async def test_nobody_else_names_a_request(site: Site) -> None:
    client = await site.connect()
    for _ in range(2):  # the second head is known already
        answer = await client.ask(post(call(), f"X-Request-Id: {NEVER}"))
        assert MINTED.fullmatch(await site.named(answer))
    assert NEVER not in site.log.read_text()


async def test_a_trusted_proxy_names_a_request(site: Site) -> None:
    client = await site.connect(TRUSTED)
    for name in ("ours/1", "ours/2", "a" * 128, "b3:4~c_d.e@f=g+h-i"):
        answer = await client.ask(post(call(), f"x-rEQUEST-id: {name}"))
        assert await site.named(answer) == name
    assert MINTED.fullmatch(await site.named(await client.ask(post(call()))))


async def test_clients_that_a_trusted_proxy_mixes_over_its_connections_are_told_apart(site: Site) -> None:
    connections = [await site.connect(TRUSTED) for _ in range(2)]
    for number in range(16):
        client, name, parent = number % 3, f"call-{number}", f"00-{number + 1:032x}-{number + 1:016x}-00"
        asked = post(
            call(),
            f"X-Forwarded-For: 192.0.2.{client}",
            f"X-Request-Id: {name}",
            f"traceparent: {parent}",
            f"Authorization: Bearer of-{client}",
        )
        answer = await connections[number // 3 % 2].ask(asked)
        head = site.backend.take_one().head
        assert answer.head.all("x-request-id") == head.all("x-request-id") == [name.encode()]
        assert head.all("traceparent") == [parent.encode()]
        assert head.all("authorization") == [f"Bearer of-{client}".encode()]
        assert head.all("x-forwarded-for") == [f"192.0.2.{client}, {TRUSTED}".encode()]
        assert (await site.line(name))["status"] == 200


@pytest.mark.parametrize("value", UNUSABLE)
async def test_a_name_that_may_do_harm_is_replaced(site: Site, value: str) -> None:
    client = await site.connect(TRUSTED)
    answer = await client.ask(post(call(), f"X-Request-Id: {value}"))
    assert MINTED.fullmatch(await site.named(answer))
    assert NEVER not in site.log.read_text()


async def test_two_names_are_none(site: Site) -> None:
    client = await site.connect(TRUSTED)
    answer = await client.ask(post(call(), f"X-Request-Id: {NEVER}1", f"X-Request-Id: {NEVER}2"))
    assert MINTED.fullmatch(await site.named(answer))


async def test_a_name_that_the_backend_has_for_itself_does_not_come_through(site: Site) -> None:
    site.backend.handler = json_answer(("X-Request-Id", NEVER))
    client = await site.connect()
    assert MINTED.fullmatch(await site.named(await client.ask(post(call()))))


async def test_a_listening_stream_has_its_name_from_its_head_to_its_line(site: Site) -> None:
    server = McpServer()
    site.backend.handler = server
    client = await site.connect()
    opened = await client.ask(post(INITIALIZE))
    await site.named(opened)
    await client.send(get(f"Mcp-Session-Id: {(opened.head.one('mcp-session-id') or b'').decode()}"))
    stream = await server.streams.next()
    head = await client.head("GET")
    assert head.status == 200
    await stream.end()
    answer = await client.rest()
    assert MINTED.fullmatch(await site.named(answer))
    (told,) = head.all("x-request-id")
    assert (await site.line(told.decode()))["stream"] is True


REFUSED = {
    404: post(call(), target="/nowhere"),
    405: get(method="PUT"),
    413: post(b" " * 70_000),
    400: post(b"no JSON"),
    403: post(call(), "Origin: https://evil.example"),
}


@pytest.mark.parametrize("status", REFUSED)
async def test_a_refusal_has_a_name(site: Site, status: int) -> None:
    client = await site.connect()
    answer = await client.ask(REFUSED[status])
    assert answer.status == status
    assert MINTED.fullmatch(await site.named(answer, is_forwarded=False))


@pytest.mark.parametrize("status", REFUSED)
async def test_a_trusted_proxy_names_what_is_refused(site: Site, status: int) -> None:
    client = await site.connect(TRUSTED)
    name = f"refused-{status}"
    head, end, body = REFUSED[status].partition(b"\r\n\r\n")
    answer = await client.ask(head + f"\r\nX-Request-Id: {name}".encode() + end + body)
    assert answer.status == status
    assert await site.named(answer, is_forwarded=False) == name


async def test_an_unknown_session_has_a_name(site: Site) -> None:
    client = await site.connect()
    answer = await client.ask(post(call(), "Mcp-Session-Id: nobody-knows-it"))
    assert answer.status == 404
    assert MINTED.fullmatch(await site.named(answer, is_forwarded=False))


@pytest.mark.parametrize("head", [b"GET\r\n\r\n", b"POST /mcp HTTP/1.1\r\nHost : a\r\n\r\n"])
async def test_a_head_that_cannot_be_read_has_a_name(
    site: Site, head: bytes, request: pytest.FixtureRequest
) -> None:
    client = await site.connect()
    answer = await client.ask(head)
    assert answer.status == 400
    if "asgi-door" in request.node.name:  # uvicorn answers by itself
        assert answer.head.one("x-request-id") is None
        return
    assert MINTED.fullmatch(await site.named(answer, is_forwarded=False))


async def test_a_backend_that_cannot_be_reached_leaves_the_name(site: Site) -> None:
    await site.backend.down()
    client = await site.connect()
    answer = await client.ask(post(call()))
    site.backend.listen()
    assert answer.status in (502, 503)
    assert MINTED.fullmatch(await site.named(answer, is_forwarded=False))


async def test_nginx_names_requests(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("proxy", "nginx")]
    for folder in folders:
        folder.mkdir()
    log = folders[0] / "access.log"
    async with Backend(json_answer()) as backend, contextlib.AsyncExitStack() as stack:
        config = {
            "trusted_proxies": ["127.0.0.0/8"],
            "pools": {"tools": {"backends": [backend.url]}},
            "routes": [{"path": "/mcp", "pool": "tools"}],
            "telemetry": {"access_log_file": str(log)},
        }
        origin = stack.enter_context(proxy("http11", config))
        ports = [int(origin.rpartition(":")[2])]
        port = await stack.enter_async_context(nginx(ports, folders[1], X_Request_Id="$request_id"))
        site = Site(port, log, backend)
        client = await site.connect()
        stack.callback(client.close)
        names = []
        for _ in range(3):
            answer = await client.ask(post(call(), f"X-Request-Id: {NEVER}"))
            names.append(await site.named(answer))
        assert len(set(names)) == 3
        assert NEVER not in log.read_text()
