"""The process around the listeners: sockets, signals, and the order in which things end."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from mcp_proxy.clock import Ticker
from mcp_proxy.downstream import server as servers
from mcp_proxy.downstream.http11 import Http11Protocol
from mcp_proxy.downstream.settings import (
    RESERVED_FDS,
    SHED_CONNECTIONS,
    DoorSettings,
    connections_for,
    current_fd_limit,
    raise_fd_limit,
    settings_of,
)  # fmt: skip
from mcp_proxy.errors import StartupError
from tests.tools import PATIENCE_S
from tests.tools.client import Client, get, post
from tests.unit.doorway import ScriptedHandler, Served, settings
from tests.unit.fakes import until

GRACE_S = 30


class Application:
    """What uvicorn is given: its lifespan, and the door's settings as an attribute."""

    def __init__(self, handler: ScriptedHandler | None = None, *, startup: str = "complete") -> None:
        self.handler = handler or ScriptedHandler()
        self.http11 = settings(self.handler)
        self.events: list[str] = []
        self._startup = startup

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        await receive()
        self.events.append("startup")
        ticker = Ticker()  # idle connections get a moment before they are closed
        ticker.add(self.http11.sweep)
        ticker.start()
        await send({"type": f"lifespan.startup.{self._startup}"})
        await receive()
        self.events.append("shutdown")
        ticker.stop()
        await send({"type": "lifespan.shutdown.complete"})


async def health(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Running:
    """``run_servers`` in a task of this loop."""

    def __init__(
        self,
        application: Application,
        *,
        has_admin: bool = False,
        grace_s: int = GRACE_S,
        delay_s: float = 0.0,
    ) -> None:
        self.application = application
        self.events: list[str] = []
        self.started = asyncio.Event()
        sock = servers.bind("127.0.0.1", 0)
        self.socket = sock
        self.port: int = sock.getsockname()[1]
        data = servers.config(
            application, sock, http=Http11Protocol, lifespan="on", timeout_graceful_shutdown=grace_s
        )
        self.server = servers.Server(
            data, on_drain=lambda: self.events.append("drain"), drain_delay_s=delay_s
        )
        admin = None
        if has_admin:
            admin_sock = servers.bind("127.0.0.1", 0)
            self.admin_port: int = admin_sock.getsockname()[1]
            admin = (
                servers.Server(servers.config(health, admin_sock, http="h11", lifespan="off")),
                admin_sock,
            )
        self.task = asyncio.create_task(
            servers.run_servers(
                (self.server, sock),
                admin,
                on_started=self._started,
                on_reopen=lambda: self.events.append("reopen"),
            )
        )

    def _started(self) -> None:
        self.events.append("started")
        self.started.set()

    @property
    def has_closed(self) -> bool:
        """Nobody can connect any more."""
        return not any(server.sockets for server in self.server.servers)

    async def exit_code(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.shield(self.task)


Start = Callable[..., Any]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts servers; afterwards they are stopped and the signals are the loop's own again."""
    running: list[Running] = []

    async def begin(application: Application | None = None, **options: Any) -> Running:
        one = Running(application or Application(), **options)
        running.append(one)
        async with asyncio.timeout(PATIENCE_S):
            await one.started.wait()
        return one

    yield begin
    for one in running:
        one.server.should_exit = one.server.force_exit = True
        await asyncio.gather(one.task, return_exceptions=True)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        asyncio.get_running_loop().remove_signal_handler(number)


# -- sockets -----------------------------------------------------------------------------------


def test_a_taken_port_is_named_with_its_cure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            StartupError, match=rf"127\.0\.0\.1:{port}: Address already in use; choose another"
        ):
            servers.bind("127.0.0.1", port)


def test_a_port_is_taken_from_the_moment_it_is_bound() -> None:
    """Of two proxies that are started together one must be told, before it says that it runs."""
    with servers.bind("127.0.0.1", 0) as first, pytest.raises(StartupError):
        servers.bind("127.0.0.1", first.getsockname()[1]).close()


@pytest.mark.parametrize("host", ["203.0.113.7", "nowhere.invalid", "2001:db8::1"])
def test_an_address_that_is_not_ours_is_named(host: str) -> None:
    shown = f"[{host}]" if ":" in host else host
    with pytest.raises(StartupError) as caught:
        servers.bind(host, 8080)
    assert f"cannot listen on {shown}:8080" in str(caught.value)


def test_ipv6_is_bound() -> None:
    with servers.bind("::1", 0) as sock:
        assert sock.getsockname()[0] == "::1"


async def test_connections_are_probed_by_the_kernel(start: Start) -> None:
    """A client that vanished without FIN would else keep its idle stream, its session and its
    backend's stream for ever."""
    with servers.bind("127.0.0.1", 0) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


# -- running -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_order(start: Start, number: signal.Signals) -> None:
    running = await start()
    async with await Client.connect(running.port) as client:
        assert (await client.ask(post(b"{}"))).status == 200
        signal.raise_signal(number)
        assert await running.exit_code() == 0
        assert await client.closed() == "eof"
    assert running.events == ["started", "drain"]
    assert running.application.events == ["startup", "shutdown"]
    assert running.application.http11.connections == 0


async def test_started_means_that_both_listen_and_the_admin_ends_last(start: Start) -> None:
    handler = ScriptedHandler()
    handler.respond = None
    running = await start(Application(handler), has_admin=True)
    client = await Client.connect(running.port)
    await client.send(post(b"{}"))
    await until(lambda: len(handler.served) == 1, 0.001)
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: running.has_closed, 0.001)
    async with await Client.connect(running.admin_port) as admin:
        assert (await admin.ask(get(), "GET")).body == b"ok"
    with pytest.raises(ConnectionRefusedError):
        await Client.connect(running.port)
    handler.served[0].reply.answer(200, [], b"done")
    answer = await client.answer()
    assert (answer.body, answer.says_close) == (b"done", True)
    assert await running.exit_code() == 0
    with pytest.raises(ConnectionRefusedError):
        await Client.connect(running.admin_port)
    client.close()


async def test_for_the_drain_delay_everything_is_served(start: Start) -> None:
    """What stands in front has not seen yet that it is not ready."""
    running = await start(delay_s=3600.0)
    async with await Client.connect(running.port) as before:
        signal.raise_signal(signal.SIGTERM)
        await until(lambda: running.events == ["started", "drain"], 0.001)
        async with await Client.connect(running.port) as client:
            assert (await client.ask(post(b"{}"))).status == 200
        assert (await before.ask(post(b"{}"))).status == 200
    assert not running.has_closed
    signal.raise_signal(signal.SIGTERM)
    assert await running.exit_code() == 0
    assert running.events == ["started", "drain"]


async def test_after_the_drain_delay_the_listener_closes(start: Start) -> None:
    running = await start(delay_s=0.2)
    signal.raise_signal(signal.SIGTERM)
    assert await running.exit_code() == 0
    assert running.has_closed
    assert running.application.events == ["startup", "shutdown"]


async def test_a_signal_behind_a_drain_that_an_operator_asked_for_does_not_hurry(start: Start) -> None:
    """A pod ends so: its hook first, then the signal."""
    handler = ScriptedHandler()
    handler.respond = None
    running = await start(Application(handler))
    client = await Client.connect(running.port)
    await client.send(post(b"{}"))
    await until(lambda: len(handler.served) == 1, 0.001)
    running.server.drain()
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: running.has_closed, 0.001)
    handler.served[0].reply.answer(200, [], b"whole")
    assert (await client.answer()).body == b"whole"
    assert await running.exit_code() == 0
    client.close()


async def test_a_connection_that_the_kernel_had_accepted_is_served(start: Start) -> None:
    """It would be reset with the listener, and what was sent on it cannot be sent elsewhere."""
    handler = ScriptedHandler()
    running = await start(Application(handler))
    loop = asyncio.get_running_loop()
    clients: list[socket.socket] = []
    stopping: list[asyncio.Task[None]] = []

    def connect_and_stop() -> None:
        """Without a turn of the loop in between."""
        for _ in range(3):
            client = socket.create_connection(("127.0.0.1", running.port))
            client.sendall(post(b"last"))
            client.setblocking(False)
            clients.append(client)
        stopping.append(loop.create_task(running.server._accept_rest([running.socket])))

    loop.call_soon(connect_and_stop)
    await until(lambda: len(handler.served) == 3, 0.001)
    assert running.has_closed
    await stopping[0]
    for client in clients:
        async with asyncio.timeout(PATIENCE_S):
            assert b"200 OK" in await loop.sock_recv(client, 4096)
        client.close()


async def test_a_stream_is_told_to_drain_and_the_process_waits_for_it(start: Start) -> None:
    handler = ScriptedHandler()
    streams: list[Served] = []

    def respond(served: Served) -> None:
        served.reply.start(200, [(b"content-type", b"text/event-stream")], None)
        streams.append(served)

    handler.respond = respond
    running = await start(Application(handler))
    client = await Client.connect(running.port)
    await client.send(get())
    await client.head("GET")
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: streams[0].conversation.events == ["drain"], 0.001)
    assert not running.task.done()
    streams[0].reply.write(b"data: last\n\n")
    streams[0].reply.end()
    answer = await client.rest()
    assert (answer.body, answer.framing) == (b"data: last\n\n", "clean")
    assert await running.exit_code() == 0
    client.close()


async def test_a_second_signal_hurries_but_the_application_still_ends_properly(start: Start) -> None:
    """What is left must be recorded and log files flushed, even in a hurry."""
    handler = ScriptedHandler()
    handler.respond = None
    running = await start(Application(handler))
    client = await Client.connect(running.port)
    await client.send(post(b"{}"))
    await until(lambda: len(handler.served) == 1, 0.001)
    signal.raise_signal(signal.SIGTERM)
    await until(lambda: "drain" in running.events, 0.001)
    signal.raise_signal(signal.SIGTERM)
    assert await running.exit_code() == 0
    client.close()
    await until(lambda: running.application.http11.connections == 0, 0.001)
    assert running.application.events == ["startup", "shutdown"]


async def test_the_grace_is_bounded(start: Start) -> None:
    handler = ScriptedHandler()
    handler.respond = None
    running = await start(Application(handler), grace_s=1)
    client = await Client.connect(running.port)
    await client.send(post(b"{}"))
    await until(lambda: len(handler.served) == 1, 0.001)
    signal.raise_signal(signal.SIGTERM)
    assert await running.exit_code() == 0
    client.close()
    await until(lambda: running.application.http11.connections == 0, 0.001)
    assert running.application.events == ["startup", "shutdown"]


async def test_sigusr1_reopens_the_logs(start: Start) -> None:
    running = await start()
    signal.raise_signal(signal.SIGUSR1)
    await until(lambda: "reopen" in running.events, 0.001)
    assert not running.task.done()


async def test_an_application_that_cannot_start_is_exit_code_3() -> None:
    application = Application(startup="failed")
    sock = servers.bind("127.0.0.1", 0)
    server = servers.Server(servers.config(application, sock, http=Http11Protocol, lifespan="on"))
    with pytest.raises(SystemExit) as caught:
        await servers.run_servers((server, sock), None, on_started=lambda: None, on_reopen=lambda: None)
    assert caught.value.code == 3
    sock.close()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        asyncio.get_running_loop().remove_signal_handler(number)


async def test_an_admin_listener_that_cannot_start_is_not_kept_secret() -> None:
    class Failing(servers.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            raise OSError("cannot listen")

    sock, admin_sock = servers.bind("127.0.0.1", 0), servers.bind("127.0.0.1", 0)
    server = servers.Server(servers.config(Application(), sock, http=Http11Protocol, lifespan="on"))
    admin = Failing(servers.config(health, admin_sock, http="h11", lifespan="off"))
    task = asyncio.create_task(
        servers.run_servers(
            (server, sock), (admin, admin_sock), on_started=lambda: None, on_reopen=lambda: None
        )
    )
    await asyncio.wait([task], timeout=1)
    is_over = task.done()
    server.should_exit = server.force_exit = True
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    admin_sock.close()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        asyncio.get_running_loop().remove_signal_handler(number)
    assert is_over
    assert isinstance(outcome, OSError | StartupError)


# -- settings ----------------------------------------------------------------------------------


def test_the_settings_are_found_through_middleware() -> None:
    application = Application()
    wrapped = SimpleNamespace(app=SimpleNamespace(app=application))
    apps: list[Any] = [application, wrapped]
    for app in apps:
        config = uvicorn.Config(app, log_config=None, proxy_headers=False, ws="none", lifespan="off")
        assert settings_of(config) is application.http11
        assert isinstance(settings_of(config), DoorSettings)


def test_another_application_is_refused() -> None:
    for app in (health, SimpleNamespace(http11="something else"), SimpleNamespace(app=None)):
        with pytest.raises(TypeError, match="create_app"):
            settings_of(SimpleNamespace(loaded=True, loaded_app=app))


def test_connections_leave_room_for_one_to_a_backend_each() -> None:
    for limit in (256, 1024, 65536, 1_048_576):
        assert 2 * connections_for(limit) + RESERVED_FDS + SHED_CONNECTIONS <= limit
    assert connections_for(10) == 8


@pytest.fixture
def file_limit() -> Iterator[tuple[int, int]]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield limits
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_the_soft_limit_of_files_is_raised(file_limit: tuple[int, int]) -> None:
    hard = file_limit[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    assert raise_fd_limit() == hard
    assert current_fd_limit() == hard
    assert raise_fd_limit() == hard
