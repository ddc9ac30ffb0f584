"""Traffic through the shipped nginx configuration, two replicas of the proxy and Redis, as clients and
servers see it.

Rules of this file: what is unbuffered is shown by cause and effect: a server goes on only when the client has
confirmed what came before. Everything is asserted on what the servers received.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from tests.tools.client import call, get, post
from tests.tools.http1 import chunk
from tests.tools.mcp_backend import McpServer, Streams, json_answer
from tests.tools.nginx_shipped import NAME
from tests.tools.nginx_site import NginxSite, nginx_site
from tests.tools.recording import Conn, Seen

EVENT = b'id: %d\r\nevent: message\r\n: comment\r\ndata: {"n":%d}\r\n\r\n'


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NginxSite]:
    async with nginx_site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture
async def site(shared: NginxSite) -> AsyncIterator[NginxSite]:
    shared.script(json_answer())
    yield shared
    await shared.check()


# --- streams --------------------------------------------------------------------------------------------


async def test_every_event_of_a_get_stream_arrives_before_the_next_is_sent(site: NginxSite) -> None:
    server = McpServer()
    site.script(server)
    client, stream = await site.listen(server, await site.session())
    seen = b""
    for number in range(20):
        await stream.send(EVENT % (number, number))
        seen += EVENT % (number, number)
        assert await client.body_until(EVENT % (number, number)) == seen
    await stream.end()
    answer = await client.rest()
    assert (answer.framing, answer.body) == ("clean", seen)
    site.taken()


async def test_the_head_of_a_silent_stream_arrives_before_its_first_event(site: NginxSite) -> None:
    server = McpServer()
    site.script(server)
    client, stream = await site.listen(server, await site.session())  # has read the head
    await stream.send(EVENT % (1, 1))
    assert await client.body_until(b"\r\n\r\n") == EVENT % (1, 1)
    await stream.end()
    assert (await client.rest()).framing == "clean"
    site.taken()


async def test_an_event_arrives_that_is_cut_into_bytes(site: NginxSite) -> None:
    streams = Streams()
    site.script(streams)
    client = await site.client()
    await client.send(post(call()))
    stream = await streams.next()
    assert (await client.head()).status == 200
    whole = b""
    for byte in EVENT % (7, 7):
        whole += bytes([byte])
        await stream.send(bytes([byte]))
        while len(await client.body_until(b"")) < len(whole):
            await client.body_until(whole)
    await stream.end()
    assert (await client.rest()).body == EVENT % (7, 7)
    site.taken()


@pytest.mark.parametrize(
    "field", ["X-Accel-Buffering: yes", "X-Accel-Redirect: /metrics", "X-Accel-Limit-Rate: 1"]
)
async def test_no_server_steers_nginx_with_a_header(site: NginxSite, field: str) -> None:
    streams = Streams(f"{field}\r\n")
    site.script(streams)
    client = await site.client()
    await client.send(post(call()))
    stream = await streams.next()
    assert (await client.head()).status == 200
    for number in range(3):
        await stream.send(EVENT % (number, number))
        await client.body_until(EVENT % (number, number))
    await stream.end()
    assert (await client.rest()).framing == "clean"
    site.taken()


async def test_a_client_that_leaves_frees_the_server(site: NginxSite) -> None:
    server = McpServer()
    site.script(server)
    client, stream = await site.listen(server, await site.session())
    await stream.send(EVENT % (1, 1))
    await client.body_until(EVENT % (1, 1))
    client.close()
    await stream.conn.gone()
    stream.finished()
    site.taken()


async def test_a_stream_that_breaks_looks_broken(site: NginxSite) -> None:
    streams = Streams()
    site.script(streams)
    client = await site.client()
    await client.send(post(call()))
    stream = await streams.next()
    assert (await client.head()).status == 200
    await stream.send(EVENT % (1, 1))
    await client.body_until(EVENT % (1, 1))
    stream.reset()
    assert (await client.rest()).framing in ("truncated", "reset")
    site.taken()


# --- bodies and sessions ------------------------------------------------------------------------------------


BODIES = {
    "text": call(1, text="ä€𝄞  \\u0000 spaces"),
    "larger than a buffer": call(2, blob="x" * 100_000),
    "almost the limit": call(3, blob="y" * (4 * 1024 * 1024 - 200)),
}


@pytest.mark.parametrize("coding", ["length", "chunked"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_bodies_pass_byte_for_byte_both_ways(site: NginxSite, body: bytes, coding: str) -> None:
    async def mirror(request: Seen, conn: Conn) -> None:
        await conn.answer(200, [("Content-Type", "application/json")], await request.whole())

    site.script(mirror)
    if coding == "length":
        request = post(body)
    else:
        half = len(body) // 2
        chunks = chunk(body[:half]) + chunk(body[half:]) + b"0\r\n\r\n"
        request = post(chunks, framing="Transfer-Encoding: chunked")
    answer = await site.ask(request)
    (seen,) = site.taken()
    assert (answer.status, seen.body == body, answer.body == body) == (200, True, True)


async def test_a_session_is_served_by_both_replicas_at_its_own_server(site: NginxSite) -> None:
    servers = [McpServer("a"), McpServer("b")]
    for backend, server in zip(site.backends, servers, strict=True):
        backend.handler = server
    sessions = [await site.session() for _ in range(4)]
    for backend in site.backends:
        backend.take()
    before = [await replica.proxy.metric("mcp_proxy_requests_total") for replica in site.replicas]
    for number in range(12):
        field = sessions[number % 4]
        answer = await site.ask(post(call(number), field))
        assert (answer.status, answer.json["id"]) == (200, number)
    for backend, server in zip(site.backends, servers, strict=True):
        for request in backend.take():
            assert (request.head.one("mcp-session-id") or b"").decode() in server.sessions
    after = [await replica.proxy.metric("mcp_proxy_requests_total") for replica in site.replicas]
    assert all(now > then for now, then in zip(after, before, strict=True)), "both replicas were asked"
    for field in sessions:
        assert (await site.ask(get(field, method="DELETE"), "DELETE")).status == 200
        assert (await site.ask(post(call(), field))).status == 404
    site.taken()


async def test_routes_of_the_proxy_are_reached(site: NginxSite) -> None:
    answer = await site.ask(post(call(5), target="/weather/mcp?a=%20b&c"))
    (seen,) = site.taken()
    assert (answer.status, seen.target) == (200, b"/mcp?a=%20b&c")


# --- who asks, and by which name -----------------------------------------------------------------------

CLAIMS = {
    "X-Forwarded-For": "6.6.6.6",
    "X-Forwarded-Proto": "ftp",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Port": "666",
    "X-Real-IP": "6.6.6.6",
    "Forwarded": "for=6.6.6.6;proto=ftp",
    "X-Request-Id": "claimed-by-the-client",
    "Via": "1.1 claimed",
}


async def test_what_a_client_claims_about_itself_ends_at_nginx(site: NginxSite) -> None:
    answer = await site.ask(post(call(), *(f"{name}: {value}" for name, value in CLAIMS.items()), host=NAME))
    (seen,) = site.taken()
    assert answer.status == 200
    assert b"6.6.6.6" not in seen.raw
    assert b"evil" not in seen.raw
    assert seen.head.all("x-forwarded-for") == [b"127.0.0.1, 127.0.0.1"]  # the client, nginx
    assert seen.head.all("x-forwarded-proto") == [b"https"]
    assert seen.head.all("x-forwarded-host") == [NAME.encode()]
    assert seen.head.all("forwarded") == seen.head.all("x-real-ip") == seen.head.all("x-forwarded-port") == []


async def test_a_request_has_one_name_everywhere(site: NginxSite) -> None:
    count = len(site.files.access_lines())
    answer = await site.ask(post(call(), "X-Request-Id: claimed-by-the-client"))
    (seen,) = site.taken()
    (name,) = answer.head.all("x-request-id")
    assert seen.head.all("x-request-id") == [name]
    line = (await site.logged(count + 1))[-1]
    assert line["request_id"] == name.decode() != "claimed-by-the-client"

    async def is_written() -> bool:
        lines = [each for replica in site.replicas for each in replica.proxy.access_lines()]
        return [each["peer"] for each in lines if each["request_id"] == name.decode()] == ["127.0.0.1"]

    await site.replicas[0].proxy.until(is_written, "one access line of one replica with this name")


@pytest.mark.parametrize("host", [NAME, f"{NAME}:8443", NAME.upper()])
async def test_the_host_arrives_as_the_client_wrote_it(site: NginxSite, host: str) -> None:
    assert (await site.ask(post(call(), host=host))).status == 200
    (seen,) = site.taken()
    assert seen.head.all("x-forwarded-host") == [host.encode()]


async def test_a_host_beside_another_one_in_the_request_line_is_not_believed(site: NginxSite) -> None:
    request = post(call(), target=f"https://{NAME}/mcp", host="evil.example")
    answer = await (await site.client()).ask(request)
    seen = site.taken()
    assert answer.status in (200, 400, 421)
    for each in seen:
        assert b"evil" not in each.raw


async def test_a_trace_goes_through(site: NginxSite) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert (await site.ask(post(call(), f"traceparent: {trace}"))).status == 200
    (seen,) = site.taken()
    assert trace.encode()[3:35] in (seen.head.one("traceparent") or b"")


# --- the log ----------------------------------------------------------------------------------------


async def test_the_log_names_who_refused_and_holds_no_secret(site: NginxSite) -> None:
    count = len(site.files.access_lines())
    secret = "never-to-be-written"
    fields = (f"Authorization: Bearer {secret}", f"Cookie: {secret}", f"Mcp-Session-Id: {secret}")
    assert (await site.ask(post(call(name=secret), *fields, target=f"/mcp?token={secret}"))).status == 404
    assert (await site.ask(post(call(), *fields, target="/mc%22p%0a"))).status == 404
    lines = (await site.logged(count + 2))[count:]
    assert [(each["status"], each["reason"]) for each in lines] == [
        ("404", "session_not_found"),
        ("404", "edge_not_found"),
    ]
    assert [each["path"] for each in lines] == ["/mcp", "/mc%22p%0a"]
    assert all(each["method"] == "POST" and each["host"] == NAME for each in lines)
    assert secret not in json.dumps(site.files.access_lines())
    assert secret not in site.files.error_log()
