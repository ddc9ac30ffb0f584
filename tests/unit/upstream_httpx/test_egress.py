"""The ``httpx`` transport through egress proxies and with certificates of one's own."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable

import pytest

from mcp_proxy.tasks import Tasks
from mcp_proxy.upstream.httpx import HttpxTransport
from tests.tools.backend import Backend
from tests.tools.egress_proxy import EgressProxy
from tests.tools.h2_backend import H2Backend, Stream
from tests.tools.receiver import RecordingReceiver
from tests.tools.tls import Authority
from tests.unit.upstream_httpx.scripts import POST

Open = Callable[..., HttpxTransport]


@pytest.fixture
async def tunnelled(authority: Authority) -> AsyncIterator[H2Backend]:
    async def answer(stream: Stream) -> None:
        await stream.answer(b"{}")

    async with H2Backend(answer, authority.listening("h2")) as running:
        yield running


@pytest.fixture
async def egress() -> AsyncIterator[EgressProxy]:
    async with EgressProxy() as running:
        yield running


@pytest.fixture
async def connect(tasks: Tasks) -> AsyncIterator[Open]:
    opened = []

    def connect(origin: str, context: ssl.SSLContext | None = None, **options: object) -> HttpxTransport:
        transport = HttpxTransport(origin=origin, tasks=tasks, ssl_context=context, **options)  # type: ignore[arg-type]
        opened.append(transport)
        return transport

    yield connect
    for transport in opened:
        await transport.aclose()


async def ask(transport: HttpxTransport) -> RecordingReceiver:
    receiver = RecordingReceiver()
    transport.send(POST, receiver)
    return await receiver.over()


async def test_a_cleartext_backend_is_asked_through_the_proxy(
    backend: Backend, egress: EgressProxy, connect: Open
) -> None:
    origin = f"http://127.0.0.1:{backend.port}"
    receiver = await ask(connect(origin, proxy=f"http://me:secret@127.0.0.1:{egress.port}"))
    assert receiver.body == b'{"ok":true}'
    (head,) = egress.heads
    assert head.start == (b"POST", f"{origin}/mcp".encode(), b"HTTP/1.1")
    assert head.one("proxy-authorization") == b"Basic bWU6c2VjcmV0"
    assert backend.take_one().body == b"{}"


async def test_a_tls_backend_is_tunnelled_to_and_its_certificate_verified(
    tunnelled: H2Backend, egress: EgressProxy, connect: Open, authority: Authority
) -> None:
    transport = connect(
        f"https://127.0.0.1:{tunnelled.port}",
        authority.trusting(),
        http2=True,
        proxy=f"http://me:secret@127.0.0.1:{egress.port}",
    )
    assert (await ask(transport)).ended
    assert (await ask(transport)).ended
    (head,) = egress.heads
    assert head.start == (b"CONNECT", b"127.0.0.1:%d" % tunnelled.port, b"HTTP/1.1")
    assert head.one("proxy-authorization") == b"Basic bWU6c2VjcmV0"
    assert len(tunnelled.streams) == 2
    assert all(name != b"proxy-authorization" for name, _ in tunnelled.streams[0].headers)


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [(b"HTTP/1.1 407 Who\r\n\r\n", "refused"), (b"", "lost"), (b"nonsense\r\n\r\n", "invalid")],
    ids=["refused", "closed", "nonsense"],
)
async def test_a_proxy_that_opens_no_tunnel_has_sent_nothing(
    tunnelled: H2Backend, egress: EgressProxy, connect: Open, authority: Authority, verdict: bytes, kind: str
) -> None:
    egress.verdict = verdict
    transport = connect(
        f"https://127.0.0.1:{tunnelled.port}",
        authority.trusting(),
        proxy=f"http://127.0.0.1:{egress.port}",
    )
    receiver = await ask(transport)
    assert receiver.verdict == ("CONNECT", kind, False, False)
    assert tunnelled.connections == []


async def test_an_unreachable_proxy_has_sent_nothing(connect: Open, egress: EgressProxy) -> None:
    await egress.__aexit__(None, None, None)
    transport = connect("http://backend.test:80", proxy=f"http://127.0.0.1:{egress.port}")
    assert (await ask(transport)).verdict == ("CONNECT", "refused", False, False)


async def test_a_backend_with_a_foreign_certificate_gets_nothing(tunnelled: H2Backend, connect: Open) -> None:
    receiver = await ask(connect(f"https://127.0.0.1:{tunnelled.port}"))
    assert receiver.verdict == ("CONNECT", "refused", False, False)
    assert "CERTIFICATE_VERIFY_FAILED" in receiver.error.detail
    assert tunnelled.streams == []


@pytest.mark.parametrize("present", [True, False], ids=["shown", "missing"])
async def test_a_backend_that_wants_a_certificate_gets_ours(
    connect: Open, authority: Authority, present: bool
) -> None:
    async def answer(stream: Stream) -> None:
        await stream.answer(b"{}")

    async with H2Backend(answer, authority.listening("h2", verify=True)) as strict:
        origin = f"https://127.0.0.1:{strict.port}"
        receiver = await ask(connect(origin, authority.trusting(present=present), http2=True))
        assert receiver.ended is present
        assert len(strict.streams) == present
        if not present:
            # TLS 1.3 refuses after the handshake: the request may have left already.
            assert receiver.verdict == ("HEAD", "lost", True, False)
