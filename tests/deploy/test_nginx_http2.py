"""HTTP/2 clients of the shipped nginx configuration: streams and calls on one connection, and frames that try
to become a request of HTTP/1.1.

Rules of this file: for an nginx before 1.25.1 it is the variant with HTTP/2 that runs, which is a comment in
the file for these versions. The hostile client writes whatever it is told; what counts is what the servers
received.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import h2.config
import h2.connection
import h2.events
import httpx2
import pytest

from tests.tools import PATIENCE_S
from tests.tools.client import call, post
from tests.tools.mcp_backend import INITIALIZE, McpServer, json_answer
from tests.tools.nginx_shipped import NAME, RunningNginx, install, run
from tests.tools.nginx_site import EVERYBODY, NginxSite, nginx_site
from tests.tools.nginx_tunnel import trusting

EVENT = b'id: %d\ndata: {"n":%d}\n\n'
HEADERS = {"content-type": "application/json", "accept": "application/json, text/event-stream"}


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[NginxSite, RunningNginx]]:
    async with nginx_site(tmp_path_factory.mktemp("site")) as site:
        ports = [replica.port for replica in site.replicas]
        folder = tmp_path_factory.mktemp("nginx")
        async with run(install(ports, folder, unlimited=EVERYBODY, with_http2=True)) as nginx:
            yield site, nginx


@pytest.fixture
async def site(shared: tuple[NginxSite, RunningNginx]) -> AsyncIterator[NginxSite]:
    site, _ = shared
    site.script(json_answer())
    yield site
    await site.check()


@pytest.fixture
def nginx(shared: tuple[NginxSite, RunningNginx]) -> RunningNginx:
    return shared[1]


async def test_a_client_calls_and_listens_on_one_connection(site: NginxSite, nginx: RunningNginx) -> None:
    server = McpServer()
    site.script(server)
    verify = trusting(nginx.installed.certificate)
    base = f"https://{NAME}:{nginx.port}"
    async with httpx2.AsyncClient(http1=False, http2=True, verify=verify, base_url=base) as client:
        opened = await client.post("/mcp", content=INITIALIZE, headers=HEADERS)
        assert (opened.status_code, opened.http_version) == (200, "HTTP/2")
        own = {**HEADERS, "mcp-session-id": opened.headers["mcp-session-id"]}
        request = client.build_request("GET", "/mcp", headers=own)
        listening = asyncio.create_task(client.send(request, stream=True))
        stream = await server.streams.next()
        await stream.send(EVENT % (0, 0))  # old versions of nginx keep the head until it is there
        answer = await listening
        events = answer.aiter_raw()
        assert await anext(events) == EVENT % (0, 0)
        for number in range(1, 6):
            await stream.send(EVENT % (number, number))
            assert await anext(events) == EVENT % (number, number)
            called = await client.post("/mcp", content=call(number), headers=own)
            assert (called.status_code, called.json()["id"]) == (200, number)
        await stream.end()
        assert [event async for event in events] == []
        await answer.aclose()
    assert len(site.taken()) == 7


# --- frames that are no request --------------------------------------------------------------------------

Pairs = list[tuple[bytes, bytes]]
SMUGGLED = post(call(666))
GOOD = call(1)


def pairs(*more: tuple[bytes, bytes], **pseudo: bytes) -> Pairs:
    """Of a POST to ``/mcp``, with these instead or in addition."""
    start = {"method": b"POST", "scheme": b"https", "authority": NAME.encode(), "path": b"/mcp", **pseudo}
    own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    return [*((b":" + name.encode(), value) for name, value in start.items()), *own, *more]


REFUSED = {
    "length below the data": (pairs((b"content-length", b"5")), GOOD + SMUGGLED),
    "length above the data": (pairs((b"content-length", b"500")), GOOD),
    "Transfer-Encoding": (pairs((b"transfer-encoding", b"chunked")), b"0\r\n\r\n" + SMUGGLED),
    "line end in a value": (pairs((b"x-a", b"b\r\n\r\nPOST /mcp HTTP/1.1")), GOOD),
    "line end in a name": (pairs((b"x-a: b\r\nx", b"c")), GOOD),
    "line end in the path": (pairs(path=b"/mcp HTTP/1.1\r\nX: y"), GOOD),
    "space in the path": (pairs(path=b"/mcp HTTP/1.1"), GOOD),
    "a request in the method": (pairs(method=b"GET / HTTP/1.1\r\n\r\nPOST"), GOOD),
    "two hosts": (pairs((b"host", b"evil.example")), GOOD),
    "another host": (pairs(authority=b"evil.example"), GOOD),
    "a body with GET": (pairs(method=b"GET"), SMUGGLED),
}
HARMLESS = {
    "Upgrade": pairs((b"upgrade", b"h2c"), (b"http2-settings", b"AAMAAABkAAQAoAAAAAIAAAAA")),
    "claims with underscores": pairs((b"x_forwarded_for", b"6.6.6.6"), (b"mcp_session_id", b"x")),
    "TE": pairs((b"te", b"gzip")),
}


@pytest.mark.parametrize(("headers", "body"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_is_no_request_of_http2_reaches_no_server(
    site: NginxSite, nginx: RunningNginx, headers: Pairs, body: bytes
) -> None:
    assert await told(nginx, headers, body) in (b"400", b"421", b"reset")
    assert site.taken() == []


@pytest.mark.parametrize("headers", HARMLESS.values(), ids=HARMLESS.keys())
async def test_what_belongs_to_a_connection_stays_there(
    site: NginxSite, nginx: RunningNginx, headers: Pairs
) -> None:
    assert await told(nginx, headers, GOOD) == b"200"
    (seen,) = site.taken()
    assert seen.body == GOOD
    for name in ("upgrade", "http2-settings", "te", "x_forwarded_for", "mcp_session_id"):
        assert seen.head.all(name) == []


async def told(nginx: RunningNginx, headers: Pairs, body: bytes) -> bytes:
    """Send this as it is; the status of the answer, or ``reset``."""
    context = trusting(nginx.installed.certificate, "h2")
    reader, writer = await asyncio.open_connection("127.0.0.1", nginx.port, ssl=context, server_hostname=NAME)
    config = h2.config.H2Configuration(
        validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding=None
    )
    own = h2.connection.H2Connection(config)
    own.initiate_connection()
    own.send_headers(1, headers)
    own.send_data(1, body, end_stream=True)
    writer.write(own.data_to_send())
    try:
        async with asyncio.timeout(PATIENCE_S):
            while data := await reader.read(65536):
                for event in own.receive_data(data):
                    if isinstance(event, h2.events.ResponseReceived):
                        return bytes(dict(event.headers)[b":status"])
                    if isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                        return b"reset"
                writer.write(own.data_to_send())
        return b"reset"
    finally:
        writer.transport.abort()
