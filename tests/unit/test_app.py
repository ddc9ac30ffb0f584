"""The composition root: what a configuration becomes, and one proxy in this very loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import resource
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mcp_proxy.app import Service
from mcp_proxy.config import Address, Config, Loaded, read
from mcp_proxy.downstream.http11 import Http11Protocol
from mcp_proxy.errors import StartupError
from mcp_proxy.process import run
from mcp_proxy.upstream.http11 import Http11Transport
from mcp_proxy.upstream.httpx import HttpxTransport
from mcp_proxy.view import ServiceView
from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.client import Client, call, get, post
from tests.tools.mcp_backend import INITIALIZE, McpServer, json_answer
from tests.tools.tls import Authority
from tests.unit.fakes import until

URL = "http://127.0.0.1:1/mcp"


def view(service: Service) -> ServiceView:
    return ServiceView(service, service.drain)


def config(tmp_path: Path, text: str = "", **pool: Any) -> Config:
    return loaded(tmp_path, text, **pool).config


def loaded(tmp_path: Path, text: str = "", *, url: str = URL, **pool: object) -> Loaded:
    """A configuration with one pool at /mcp; ``text`` is more YAML."""
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "proxy.yaml"
    pools = {"tools": {"backends": [url], **pool}}
    path.write_text(
        f"listen: 127.0.0.1:0\nadmin: {{listen: off}}\npools: {json.dumps(pools)}\n"
        "routes: [{path: /mcp, pool: tools}]\n"
        f"{text}" + ("" if "telemetry" in text else "telemetry: {access_log: off}\n")
    )
    return read(path, {}, {"log_level": "warning"})


class Running:
    """A Service behind the hardened door, on a port of this loop."""

    def __init__(self, service: Service, server: asyncio.Server, connections: set[Any]) -> None:
        self.service = service
        self.connections = connections
        self.server = server
        self.port: int = server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def running(configuration: Config) -> AsyncIterator[Running]:
    service = Service(configuration)
    state = SimpleNamespace(connections=set())
    uvicorn_config = SimpleNamespace(loaded=True, loaded_app=service.door)
    server = await asyncio.get_running_loop().create_server(
        lambda: Http11Protocol(uvicorn_config, state), "127.0.0.1", 0
    )
    await service.start()
    await service.start()
    try:
        yield Running(service, server, state.connections)
    finally:
        await service.aclose()
        await service.aclose()
        for connection in list(state.connections):
            connection.shutdown()
        server.close()
        await until(lambda: not state.connections, 0.001)


# -- what a configuration becomes --------------------------------------------------------------


async def test_each_backend_has_a_transport_of_its_pools_kind(tmp_path: Path) -> None:
    for kind, expected in (("http11", Http11Transport), ("httpx", HttpxTransport)):
        service = Service(config(tmp_path, transport=kind))
        pool = service.pools["tools"]
        (backend,) = pool.backends
        assert type(pool.transport(backend)) is expected
        assert backend.id == URL
        await service.aclose()


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "tls"),
    [
        ("http://localhost/", "localhost", 80, b"/", False),
        ("http://localhost", "localhost", 80, b"/mcp", False),
        ("https://mcp.example/a/b", "mcp.example", 443, b"/a/b", True),
        ("http://[::1]:8000/mcp", "::1", 8000, b"/mcp", False),
    ],
)
async def test_a_url_becomes_a_backend(
    tmp_path: Path, url: str, host: str, port: int, path: bytes, tls: bool
) -> None:
    service = Service(config(tmp_path, url=url))
    (backend,) = service.pools["tools"].backends
    assert (backend.host, backend.port, backend.path, backend.tls) == (host, port, path, tls)
    await service.aclose()


async def test_unusable_certificates_are_a_failed_start(tmp_path: Path) -> None:
    """They may go bad between the check of the configuration and the start."""
    authority = Authority(tmp_path)
    checked = config(tmp_path, url="https://127.0.0.1:1/mcp", tls={"ca": str(authority.ca)})
    authority.ca.write_text("")
    with pytest.raises(StartupError, match="certificates"):
        Service(checked)


async def test_streams_are_limited_by_the_descriptors_there_are(tmp_path: Path) -> None:
    service = Service(config(tmp_path, "limits: {streams: 100000000}\n"))
    limits = view(service).status().limits
    assert 0 < (limits["streams"] or 0) < (limits["connections"] or 0)
    few = Service(config(tmp_path, "limits: {streams: 7}\n"))
    assert view(few).status().limits["streams"] == 7
    for one in (service, few):
        await one.aclose()


async def test_status_and_readiness_tell_the_state(tmp_path: Path) -> None:
    service = Service(config(tmp_path))
    seen = view(service)
    status = seen.status()
    assert seen.alive()
    assert (status.listen, list(status.pools)) == ("127.0.0.1:0", ["tools"])
    assert [backend.id for backend in status.pools["tools"].backends] == [URL]
    assert all(check.ok for check in seen.ready())
    service.drain()
    assert [check.name for check in seen.ready() if not check.ok] == ["drain"]
    rendered = seen.metrics(None)
    assert rendered is not None
    assert b"mcp_proxy_inflight" in rendered[0]
    await service.aclose()


async def test_metrics_can_be_off(tmp_path: Path) -> None:
    service = Service(config(tmp_path, "telemetry: {access_log: off, metrics: false}\n"))
    assert view(service).metrics(None) is None
    assert view(service).status().counters == {}
    await service.aclose()


async def test_what_ends_while_metrics_are_off_is_not_measured(tmp_path: Path) -> None:
    metrics = "telemetry: {access_log: off, metrics: %s}\n"
    async with Backend(json_answer()) as backend:
        off, on = (config(tmp_path, metrics % word, url=backend.url) for word in ("false", "true"))
        async with running(off) as proxy, await Client.connect(proxy.port) as client:
            await client.ask(post(call(1)))
            proxy.service.reload(on)
            assert view(proxy.service).status().counters["requests"] == 0
            for number in range(2):
                await client.ask(post(call(number)))
            assert view(proxy.service).status().counters["requests"] == 2
            proxy.service.reload(off)
            await client.ask(post(call(4)))
            proxy.service.reload(on)
            assert view(proxy.service).status().counters["requests"] == 2


# -- one proxy in this loop --------------------------------------------------------------------


async def test_a_conversation_from_end_to_end(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    text = f"telemetry: {{access_log: json, access_log_file: {log}}}\n"
    async with Backend(McpServer("one")) as backend:
        async with running(config(tmp_path, text, url=backend.url)) as proxy:
            async with await Client.connect(proxy.port) as client:
                opened = await client.ask(post(INITIALIZE))
                session = f"Mcp-Session-Id: {(opened.head.one('mcp-session-id') or b'').decode()}"
                assert view(proxy.service).status().pools["tools"].backends[0].sessions == 1
                for number in range(3):
                    answer = await client.ask(post(call(number), session))
                    assert (answer.status, answer.json["id"]) == (200, number)
                ended = await client.ask(get(session, method="DELETE"), "DELETE")
                assert ended.status == 200
                assert (await client.ask(post(call(9), session))).status == 404
            assert len(backend.connections) == 1
        assert backend.violations == []
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["status"] for line in lines] == [200, 200, 200, 200, 200, 404]


async def test_a_stream_ends_cleanly_when_the_service_does(tmp_path: Path) -> None:
    server = McpServer("one")
    async with Backend(server) as backend, running(config(tmp_path, url=backend.url)) as proxy:
        async with await Client.connect(proxy.port) as client:
            opened = await client.ask(post(INITIALIZE))
            session = f"Mcp-Session-Id: {(opened.head.one('mcp-session-id') or b'').decode()}"
            await client.send(get(session))
            stream = await server.streams.next()
            await client.head("GET")
            await stream.send(b"data: 1\n\n")
            await client.body_until(b"data: 1\n\n")
            assert proxy.service.pools["tools"].streams == 1
            await proxy.service.aclose()
            answer = await client.rest()
            assert (answer.body, answer.framing) == (b"data: 1\n\n", "clean")
            assert proxy.service.pools["tools"].streams == 0
        await stream.conn.gone()


async def test_a_backend_with_a_certificate_of_the_pools_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=authority.listening("http/1.1"))
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
    trusting = config(tmp_path / "1", url=url, tls={"ca": str(authority.ca)})
    for configuration, status in ((trusting, 200), (config(tmp_path / "2", url=url), 503)):
        async with running(configuration) as proxy, await Client.connect(proxy.port) as client:
            assert (await client.ask(post(call(1)))).status == status
    server.close()


async def test_an_early_answer_over_real_tls_is_not_lost(tmp_path: Path) -> None:
    """The client sends all of a body that is too large before it reads."""
    authority = Authority(tmp_path)
    service = Service(config(tmp_path, "limits: {body: 1KiB}\n"))
    state = SimpleNamespace(connections=set())
    uvicorn_config = SimpleNamespace(loaded=True, loaded_app=service.door)
    server = await asyncio.get_running_loop().create_server(
        lambda: Http11Protocol(uvicorn_config, state), "127.0.0.1", 0, ssl=authority.listening("http/1.1")
    )
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", server.sockets[0].getsockname()[1], ssl=authority.trusting()
    )
    writer.write(post(b"x" * 40_000))
    with contextlib.suppress(ConnectionError):
        await writer.drain()
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    writer.transport.abort()
    server.close()
    await service.aclose()
    await until(lambda: not state.connections, 0.001)


# -- the process -------------------------------------------------------------------------------


@pytest.fixture
def process() -> Iterator[None]:
    """``run`` changes the process it is in; change it back."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    threshold = gc.get_threshold()
    hang_up = signal.getsignal(signal.SIGHUP)
    logger, uvicorn_logger = logging.getLogger(), logging.getLogger("uvicorn.error")
    handlers, levels = logger.handlers[:], (logger.level, uvicorn_logger.level)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    signal.signal(signal.SIGHUP, hang_up)
    gc.unfreeze()
    gc.set_threshold(*threshold)
    logger.handlers[:] = handlers
    logger.setLevel(levels[0])
    uvicorn_logger.setLevel(levels[1])


def test_run_serves_until_a_signal_and_tells_where(tmp_path: Path, process: None) -> None:
    seen: list[tuple[Address, Address | None]] = []

    def on_started(listen: Address, admin: Address | None) -> None:
        seen.append((listen, admin))
        with socket.create_connection((listen.host, listen.port), timeout=PATIENCE_S):
            signal.raise_signal(signal.SIGTERM)

    assert run(loaded(tmp_path), on_started=on_started) == 0
    ((listen, admin),) = seen
    assert (listen.host, admin) == ("127.0.0.1", None)
    assert listen.port > 0


def test_run_says_that_a_port_is_taken(tmp_path: Path, process: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = loaded(tmp_path)
        taking = told.config.model_copy(update={"listen": Address("127.0.0.1", port)})
        with pytest.raises(StartupError, match=str(port)):
            run(told._replace(config=taking), on_started=lambda listen, admin: None)


async def test_the_pieces_of_two_services_are_their_own(tmp_path: Path) -> None:
    async with Backend(json_answer()) as backend:
        first = config(tmp_path / "1", url=backend.url)
        second = config(tmp_path / "2", url=backend.url)
        async with running(first) as one, running(second) as two:
            async with await Client.connect(one.port) as client:
                assert (await client.ask(post(call(1)))).status == 200
            assert view(one.service).status().counters != view(two.service).status().counters
