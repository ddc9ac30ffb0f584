"""Connecting to a backend: refused, unresolved, hanging, cancelled, over TLS. On real sockets."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from mcp_proxy.tasks import Tasks
from mcp_proxy.upstream.http11 import Http11Transport
from tests.tools import PATIENCE_S
from tests.tools.receiver import RecordingReceiver
from tests.tools.tarpit import Tarpit
from tests.tools.tls import Authority
from tests.unit.fakes import settle, until
from tests.unit.uplink import POST, Rig, uplink


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with uplink() as rig:
        yield rig


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


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
    await until(lambda: len(rig.tasks) == 0)
    assert receiver.verdict in [("CONNECT", kind, False, False) for kind in ("refused", "unresolved")]


async def test_a_name_that_does_not_exist_is_as_good_as_a_refusal(rig: Rig) -> None:
    """That of a pod or a container that is gone. What no resolver says is not known: a name of 64 letters
    could never be asked for."""
    receiver, _ = rig.send(transport=rig.to(" ", 80))
    await until(lambda: len(rig.tasks) == 0)
    assert receiver.verdict == ("CONNECT", "refused", False, False)
    receiver, _ = rig.send(transport=rig.to("x" * 64 + ".example", 80))
    await until(lambda: len(rig.tasks) == 0)
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
        await until(lambda: tarpit.attempts() > held)
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
async def test_a_failed_handshake_is_a_failed_connect(
    rig: Rig, authority: Authority, trouble: Trouble
) -> None:
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


# -- probes ------------------------------------------------------------------------------------


async def test_a_probe_opens_a_connection_and_sends_nothing(rig: Rig) -> None:
    assert await rig.transport.probe() is True
    await rig.closed()
    await rig.backend.until(lambda: bool(rig.backend.connections) and not rig.backend.open_connections)
    assert rig.backend.take() == []


async def test_a_probe_knows_away_from_unknown(rig: Rig) -> None:
    await rig.backend.refuse()
    assert await rig.transport.probe() is False
    assert await rig.to(" ", 80).probe() is False
    assert await rig.to("a..b", 80).probe() is None
    async with Tarpit() as tarpit:
        held = tarpit.attempts()
        assert await rig.to("127.0.0.1", tarpit.port, connect_timeout_s=0.05).probe() is False
        assert tarpit.attempts() == held
    assert rig.transport.open_connections == 0


async def test_a_request_after_the_close_leaves_no_connection_behind(rig: Rig) -> None:
    await rig.transport.aclose()
    receiver, _ = rig.send()
    await receiver.over()
    await rig.closed()
    await until(lambda: not rig.backend.open_connections)
