"""The connections to one backend: dialled, reused, expired, closed. On real sockets."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from mcp_proxy import clock
from mcp_proxy.tasks import Tasks
from mcp_proxy.upstream import Call, Outgoing
from mcp_proxy.upstream.http11 import IDLE_LIMIT, IDLE_S, Http11Transport
from mcp_proxy.wire import Fields
from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.receiver import RecordingReceiver
from tests.tools.recording import Conn, Seen
from tests.tools.tarpit import Tarpit
from tests.tools.tls import Authority
from tests.unit.fakes import settle

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

    def send(self, *, fresh: bool = False, transport: Http11Transport | None = None) -> tuple[RecordingReceiver, Call]:
        receiver = RecordingReceiver()
        return receiver, (transport or self.transport).send(POST, receiver, fresh=fresh)

    async def ask(self, *, fresh: bool = False, transport: Http11Transport | None = None) -> RecordingReceiver:
        receiver = await self.send(fresh=fresh, transport=transport)[0].over()
        await settle()
        return receiver

    async def closed(self, transport: Http11Transport | None = None) -> None:
        """Until no connection is open."""
        async with asyncio.timeout(PATIENCE_S):
            while (transport or self.transport).open_connections:  # noqa: ASYNC110
                await asyncio.sleep(0)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    tasks = Tasks()
    async with Backend(answer) as backend:
        rig = Rig(backend, tasks)
        yield rig
        await rig.transport.aclose()
        await rig.closed()
        await tasks.aclose()
        assert backend.violations == []


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


# -- reuse -------------------------------------------------------------------------------------


async def test_a_connection_is_used_again(rig: Rig) -> None:
    for _ in range(3):
        receiver = await rig.ask()
        assert (receiver.body, receiver.error) == (b"ok", None)
    assert len(rig.backend.connections) == 1
    assert [seen.raw for seen in rig.backend.take()] == [
        b"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept: */*\r\ncontent-length: 2\r\n\r\n" % rig.backend.port
    ] * 3
    assert repr(rig.transport) == f"<Http11Transport 127.0.0.1:{rig.backend.port} open=1 idle=1>"


async def test_a_fresh_request_leaves_the_idle_connections_alone(rig: Rig) -> None:
    await rig.ask()
    await rig.ask(fresh=True)
    assert rig.transport.open_connections == 2
    assert [seen.conn.number for seen in rig.backend.take()] == [0, 1]


async def test_the_youngest_idle_connection_is_used_first(rig: Rig) -> None:
    calls = [rig.send()[0] for _ in range(3)]
    for receiver in calls:
        await receiver.over()
    await settle()
    last = rig.backend.take()[-1].conn.number
    for _ in range(5):
        await rig.ask()
    used = {seen.conn.number for seen in rig.backend.take()}
    assert len(used) == 1
    assert used == {last}


async def test_idle_connections_are_closed_oldest_first(rig: Rig) -> None:
    await asyncio.gather(*(rig.send()[0].over() for _ in range(3)))
    await settle()
    assert rig.transport.open_connections == 3
    rig.transport.sweep(clock.now() + IDLE_S - 0.5)
    assert rig.transport.open_connections == 3
    rig.transport.sweep(clock.now() + IDLE_S + 0.1)
    await rig.closed()
    assert (await rig.ask()).body == b"ok"


async def test_a_busy_connection_has_no_idle_deadline(rig: Rig) -> None:
    await rig.ask()
    rig.backend.handler = never
    receiver, call = rig.send()
    rig.transport.sweep(clock.now() + 1e6)
    await settle()
    assert (receiver.error, rig.transport.open_connections) == (None, 1)
    call.cancel()
    await rig.closed()


async def test_no_more_than_a_limit_of_connections_stay_idle(rig: Rig) -> None:
    await asyncio.gather(*(rig.send()[0].over() for _ in range(IDLE_LIMIT + 20)))
    await settle()
    rig.transport.sweep(clock.now())
    async with asyncio.timeout(PATIENCE_S):
        while rig.transport.open_connections > IDLE_LIMIT:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert rig.transport.open_connections == IDLE_LIMIT


async def test_a_connection_that_the_backend_closed_while_idle_is_not_used(rig: Rig) -> None:
    await rig.ask()
    rig.backend.take_one().conn.close()
    await rig.closed()
    assert (await rig.ask()).body == b"ok"


async def test_bytes_on_an_idle_connection_end_it(rig: Rig) -> None:
    await rig.ask()
    await rig.backend.take_one().conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
    await rig.closed()
    receiver = await rig.ask()
    assert receiver.body == b"ok"


async def test_a_used_connection_that_is_reset_before_any_byte_is_stale(rig: Rig) -> None:
    await rig.ask()

    async def reset(request: Seen, conn: Conn) -> None:
        conn.reset()

    rig.backend.handler = reset
    assert (await rig.ask()).verdict == ("HEAD", "lost", True, True)
    assert (await rig.ask()).verdict == ("HEAD", "lost", True, False)


# -- connecting --------------------------------------------------------------------------------


async def test_a_refused_connect_says_so_and_nothing_was_sent(rig: Rig) -> None:
    await rig.backend.refuse()
    receiver, _ = rig.send()
    assert receiver.error is None, "never before send has returned"
    await receiver.over()
    assert receiver.verdict == ("CONNECT", "refused", False, False)
    assert rig.transport.open_connections == 0


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "x" * 64 + ".example", "\u0378.example", " "])
async def test_a_name_that_cannot_be_resolved_is_a_failed_connect(rig: Rig, host: str) -> None:
    receiver, _ = rig.send(transport=rig.to(host, 80))
    async with asyncio.timeout(PATIENCE_S):
        while len(rig.tasks):  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert receiver.verdict == ("CONNECT", "unresolved", False, False)


async def test_a_connect_that_hangs_times_out_and_leaves_no_socket(rig: Rig) -> None:
    async with Tarpit() as tarpit:
        held = tarpit.attempts()
        transport = rig.to("127.0.0.1", tarpit.port, connect_timeout_s=0.05)
        receiver = await rig.ask(transport=transport)
        assert receiver.verdict == ("CONNECT", "timeout", False, False)
        assert (transport.open_connections, len(rig.tasks)) == (0, 0)
        assert tarpit.attempts() == held


async def test_a_connect_that_is_cancelled_tells_nobody_and_leaves_no_socket(rig: Rig) -> None:
    async with Tarpit() as tarpit:
        held = tarpit.attempts()
        transport = rig.to("127.0.0.1", tarpit.port)
        receiver, call = rig.send(transport=transport)
        async with asyncio.timeout(PATIENCE_S):
            while tarpit.attempts() == held:  # noqa: ASYNC110
                await asyncio.sleep(0)
        call.cancel()
        await settle(10)
        assert (receiver.error, transport.open_connections, len(rig.tasks)) == (None, 0, 0)
        assert tarpit.attempts() == held


async def test_a_cancel_at_any_turn_of_the_loop_leaves_nothing(rig: Rig) -> None:
    """From the first step of the connect until the answer has come."""
    for turns in range(30):
        receiver, call = rig.send(fresh=True)
        for _ in range(turns):
            await asyncio.sleep(0)
        if receiver.is_over:
            break
        call.cancel()
        before = (receiver.head, receiver.body, receiver.ended, receiver.error)
        await settle(10)
        assert (receiver.head, receiver.body, receiver.ended, receiver.error) == before
    await rig.transport.aclose()
    await rig.closed()
    assert len(rig.tasks) == 0
    await rig.backend.until(lambda: not rig.backend.open_connections)


async def test_pauses_during_the_connect_hold_for_the_connection(rig: Rig) -> None:
    receiver, call = rig.send()
    call.pause()
    await rig.backend.arrived()
    await rig.backend.until(lambda: not rig.backend.busy)
    await settle(20)
    assert receiver.head is None
    call.resume()
    await receiver.over()
    assert receiver.body == b"ok"
    receiver, call = rig.send(fresh=True)
    call.pause()
    call.resume()
    await receiver.over()
    assert receiver.body == b"ok"


async def test_a_backend_that_accepts_and_resets_leaves_nothing_behind(rig: Rig) -> None:
    """The connection may be gone before the request could be sent."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    loop = asyncio.get_running_loop()

    async def accept() -> None:
        while True:
            sock, _ = await loop.sock_accept(listener)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

    accepting = asyncio.create_task(accept())
    transport = rig.to("127.0.0.1", listener.getsockname()[1])
    for _ in range(50):
        receiver = await rig.ask(transport=transport)
        assert receiver.error is not None
        assert receiver.verdict is not None
        assert receiver.verdict[1] in ("lost", "refused")
    accepting.cancel()
    listener.close()
    await rig.closed(transport)


async def test_without_descriptors_it_is_the_fault_of_this_process(rig: Rig) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = socket.socket()
    lowest = spare.fileno()
    spare.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        receiver, _ = rig.send()
        await receiver.over()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert receiver.verdict == ("CONNECT", "exhausted", False, False)
    assert (await rig.ask()).body == b"ok"


async def test_any_error_of_the_connect_is_told() -> None:
    """Whatever the loop raises, somebody waits for the answer."""
    tasks = Tasks()
    errors: list[tuple[Exception, str]] = [
        (OSError(errno.ENETUNREACH, "no route"), "refused"),
        (OSError(errno.EMFILE, "too many"), "exhausted"),
        (OSError(errno.ENFILE, "too many"), "exhausted"),
        (socket.gaierror(socket.EAI_SYSTEM, "too many"), "exhausted"),
        (socket.gaierror(socket.EAI_AGAIN, "later"), "unresolved"),
        (ssl.SSLError(1, "handshake"), "refused"),
        (TimeoutError(), "timeout"),
        (UnicodeError("idna"), "unresolved"),
        (RuntimeError("a bug"), "unresolved"),
    ]
    for error, kind in errors:

        class Failing(Http11Transport):
            async def dial(self, error: Exception = error) -> object:  # type: ignore[override]
                raise error

        receiver = RecordingReceiver()
        Failing("127.0.0.1", 1, tasks=tasks).send(POST, receiver)
        await settle(10)
        assert receiver.verdict == ("CONNECT", kind, False, False), error


async def test_a_stream_does_not_keep_the_body_of_its_request(rig: Rig) -> None:
    """A listening stream may last for days, and its request may have had megabytes."""

    async def stream(request: Seen, conn: Conn) -> None:
        await request.whole()
        await conn.stream_head()
        await conn.gone()

    rig.backend.handler = stream
    body = b"x" * 100_000
    receiver = RecordingReceiver()
    call = rig.transport.send(Outgoing(b"POST", b"/", Fields(), body, stream=True), receiver)
    await receiver.until(lambda: receiver.head is not None)
    await settle()
    assert sys.getrefcount(body) == 2, "this variable and the argument"
    call.cancel()


# -- timeouts ----------------------------------------------------------------------------------


async def test_the_head_timeout_ends_a_request_without_a_head(rig: Rig) -> None:
    rig.backend.handler = never
    transport = rig.to("127.0.0.1", rig.backend.port, head_timeout_s=3.0)
    receiver, _ = rig.send(transport=transport)
    await rig.backend.arrived()
    transport.sweep(clock.now() + 2.5)
    assert receiver.error is None
    transport.sweep(clock.now() + 3.1)
    assert receiver.verdict == ("HEAD", "timeout", True, False)
    await rig.closed(transport)


async def test_the_idle_timeout_runs_between_bytes_and_not_while_we_do_not_read(rig: Rig) -> None:
    async def slow(request: Seen, conn: Conn) -> None:
        await conn.stream_head()
        await conn.send_chunk(b"one")
        await conn.gone()

    rig.backend.handler = slow
    transport = rig.to("127.0.0.1", rig.backend.port, idle_timeout_s=3.0, head_timeout_s=1.0)
    receiver, call = rig.send(transport=transport)
    await receiver.until(lambda: receiver.body == b"one")
    transport.sweep(clock.now() + 2.5)
    assert receiver.error is None
    call.pause()
    transport.sweep(clock.now() + 3.1)
    transport.sweep(clock.now() + 3.1)
    assert receiver.error is None
    call.resume()
    transport.sweep(clock.now() + 1e6)
    assert receiver.verdict == ("BODY", "timeout", True, False)
    await rig.closed(transport)


async def test_timeouts_do_not_outlive_their_request(rig: Rig) -> None:
    transport = rig.to("127.0.0.1", rig.backend.port, idle_timeout_s=1.0, head_timeout_s=1.0)
    for _ in range(3):
        await rig.ask(transport=transport)
        transport.sweep(clock.now() + 2.0)
        assert transport.open_connections == 1
    await transport.aclose()
    await rig.closed(transport)


# -- closing -----------------------------------------------------------------------------------


async def test_closing_ends_idle_and_busy_connections_and_is_idempotent(rig: Rig) -> None:
    await rig.ask()
    rig.backend.handler = never
    busy, _ = rig.send()
    await rig.backend.arrived(2)
    rig.send(fresh=True)
    await rig.backend.arrived(3)
    await rig.transport.aclose()
    await rig.transport.aclose()
    assert busy.verdict is not None
    assert busy.verdict[:2] == ("HEAD", "lost")
    await rig.closed()


async def test_closing_ends_a_connect_in_progress(rig: Rig) -> None:
    """"Close idle connections and abort calls in progress": a call that is still being dialled is one."""
    receiver, _ = rig.send()
    await rig.transport.aclose()
    await receiver.over()
    assert receiver.error is not None
    await settle(20)
    assert rig.transport.open_connections == 0
    assert rig.backend.take() == []


async def test_a_connection_that_is_released_after_closing_is_closed(rig: Rig) -> None:
    receiver, _ = rig.send()
    async with asyncio.timeout(PATIENCE_S):
        while not rig.transport.open_connections:  # noqa: ASYNC110
            await asyncio.sleep(0)
    await rig.transport.aclose()
    await receiver.over()
    await rig.closed()


# -- addresses and TLS -------------------------------------------------------------------------


async def _serve(host: str, context: ssl.SSLContext | None, family: int) -> tuple[asyncio.Server, int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(2)
                echoed = head.split(b"\r\n")[1] + body
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(echoed), echoed))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(handle, host, 0, ssl=context, family=family)
    return server, server.sockets[0].getsockname()[1]


async def test_ipv6_addresses_are_dialled_and_have_brackets_in_host(rig: Rig) -> None:
    server, port = await _serve("::1", None, socket.AF_INET6)
    transport = rig.to("::1", port)
    receiver = await rig.ask(transport=transport)
    assert receiver.body == b"host: [::1]:%d{}" % port
    await transport.aclose()
    server.close()


async def test_tls_is_spoken_and_reused(rig: Rig, authority: Authority) -> None:
    server, port = await _serve("127.0.0.1", authority.listening("http/1.1"), socket.AF_INET)
    transport = rig.to("127.0.0.1", port, ssl_context=authority.trusting(), connect_timeout_s=5.0)
    for _ in range(2):
        assert (await rig.ask(transport=transport)).body == b"host: 127.0.0.1:%d{}" % port
    assert transport.open_connections == 1
    await transport.aclose()
    await rig.closed(transport)
    server.close()


Trouble = Callable[[Authority], Awaitable[tuple[asyncio.Server, int, ssl.SSLContext]]]


async def _untrusted(authority: Authority) -> tuple[asyncio.Server, int, ssl.SSLContext]:
    server, port = await _serve("127.0.0.1", authority.listening("http/1.1"), socket.AF_INET)
    return server, port, ssl.create_default_context()


async def _not_tls(authority: Authority) -> tuple[asyncio.Server, int, ssl.SSLContext]:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1], authority.trusting()


@pytest.mark.parametrize("trouble", [_untrusted, _not_tls])
async def test_a_failed_handshake_is_a_failed_connect(rig: Rig, authority: Authority, trouble: Trouble) -> None:
    server, port, context = await trouble(authority)
    transport = rig.to("127.0.0.1", port, ssl_context=context, connect_timeout_s=5.0)
    receiver = await rig.ask(transport=transport)
    assert receiver.verdict == ("CONNECT", "refused", False, False)
    assert transport.open_connections == 0
    server.close()


async def test_a_name_that_is_not_in_the_certificate_is_refused(rig: Rig, authority: Authority) -> None:
    server, port = await _serve("127.0.0.1", authority.listening("http/1.1"), socket.AF_INET)
    transport = rig.to("localhost", port, ssl_context=authority.trusting(), connect_timeout_s=5.0)
    receiver = await rig.ask(transport=transport)
    assert receiver.verdict == ("CONNECT", "refused", False, False)
    server.close()


async def test_a_handshake_that_hangs_times_out_or_is_cancelled(rig: Rig, authority: Authority) -> None:
    """A server that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        transport = rig.to("127.0.0.1", port, ssl_context=authority.trusting(), connect_timeout_s=0.05)
        assert (await rig.ask(transport=transport)).verdict == ("CONNECT", "timeout", False, False)
        patient = rig.to("127.0.0.1", port, ssl_context=authority.trusting())
        receiver, call = rig.send(transport=patient)
        first, _ = listener.accept()
        listener.setblocking(False)
        async with asyncio.timeout(PATIENCE_S):
            second, _ = await asyncio.get_running_loop().sock_accept(listener)
        call.cancel()
        for sock in (first, second):
            sock.setblocking(False)
            async with asyncio.timeout(PATIENCE_S):
                while await asyncio.get_running_loop().sock_recv(sock, 65536):
                    pass
            sock.close()
        assert receiver.error is None
        assert len(rig.tasks) == 0
