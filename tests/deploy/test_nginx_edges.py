"""What the shipped nginx configuration keeps away from the proxy, and what clients are told instead.

Rules of this file: whatever is refused, the assertion is that no replica or no server heard of it, and that
the answer is one that an MCP client can act on: a JSON-RPC error with ``"id": null``, and 404 for unknown
paths only.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import pytest

from tests.tools.client import Answer, Client, call, get, post
from tests.tools.http1 import Malformed
from tests.tools.mcp_backend import json_answer
from tests.tools.nginx_shipped import NAME
from tests.tools.nginx_site import NginxSite, nginx_site
from tests.tools.nginx_tunnel import trusting, tunnel

LIMIT = 4 * 1024 * 1024
"""``limits.body`` of the proxy, and ``client_max_body_size`` of nginx."""


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NginxSite]:
    async with nginx_site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture
async def site(shared: NginxSite) -> AsyncIterator[NginxSite]:
    shared.script(json_answer())
    yield shared
    await shared.check()


async def asked(site: NginxSite) -> float:
    """Requests that the replicas have heard of and ended, refusals included."""
    return sum([await each.proxy.metric("mcp_proxy_requests_total") for each in site.replicas])


def is_edge(answer: Answer, status: int, reason: str, code: int = -32600) -> bool:
    """An answer of nginx itself, in the form of a JSON-RPC error."""
    error = answer.json["error"]
    said = answer.status, answer.reason, error["data"]["reason"], error["code"], answer.json["id"]
    typed = answer.head.one("content-type") == b"application/json"
    return said == (status, reason, reason, code, None) and typed and bool(answer.head.one("x-request-id"))


# --- smuggling ------------------------------------------------------------------------------------------

SMUGGLED = post(call(666))
BODY = call(1)
BIG = call(1, fill="x" * 20_000)
UPGRADES = {
    "h2c": (
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
    ),
    "websocket": ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
    "anything": ("Connection: upgrade", "Upgrade: foo/2"),
    "without Connection": ("Upgrade: h2c",),
}


@pytest.mark.parametrize("cut", [False, True], ids=["one segment", "two segments"])
@pytest.mark.parametrize("fields", UPGRADES.values(), ids=UPGRADES.keys())
async def test_an_upgrade_is_a_request_like_any_other(
    site: NginxSite, fields: tuple[str, ...], cut: bool
) -> None:
    """The body holds a whole request; it arrives as a body."""
    request = post(SMUGGLED, *fields, target="/mcp")
    client = await site.client()
    await client.send_cut(request, [len(request) - len(SMUGGLED)] if cut else [])
    answer = await client.answer()
    assert (answer.status, answer.reason) == (400, "parse_error"), "the body is no JSON"
    assert site.taken() == []

    good = await client.ask(post(BIG, *fields))
    (seen,) = site.taken()
    assert (good.status, seen.body) == (200, BIG)
    assert seen.head.all("upgrade") == seen.head.all("http2-settings") == []


def framed(*fields: str, body: bytes = b"0\r\n\r\n" + SMUGGLED, version: str = "HTTP/1.1") -> bytes:
    lines = [f"POST /mcp {version}", f"Host: {NAME}", "Content-Type: application/json", *fields]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


FRAMINGS = {
    "length then chunked": framed("Content-Length: 5", "Transfer-Encoding: chunked"),
    "chunked then length": framed("Transfer-Encoding: chunked", "Content-Length: 5"),
    "chunked twice": framed("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "chunked in a list": framed("Transfer-Encoding: chunked, chunked"),
    "xchunked": framed("Transfer-Encoding: xchunked"),
    "identity beside length": framed("Transfer-Encoding: identity", "Content-Length: 5"),
    "gzip before chunked": framed("Transfer-Encoding: gzip, chunked"),
    "tab before chunked": framed("Transfer-Encoding: \x0bchunked"),
    "length twice": framed("Content-Length: 5", "Content-Length: 6"),
    "length as a list": framed("Content-Length: 5, 5"),
    "length with a plus": framed("Content-Length: +5"),
    "length in hexadecimal": framed("Content-Length: 0x5"),
    "length beyond 64 bits": framed("Content-Length: 18446744073709551621"),
    "space before the colon": framed("Content-Length : 5"),
    "a folded field": framed("X-Field: a\r\n Content-Length: 5"),
    "NUL in a field": framed("X-Field: a\0b", "Content-Length: 5"),
    "chunk size with 0x": framed("Transfer-Encoding: chunked", body=b"0x5\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk longer than its size": framed(
        "Transfer-Encoding: chunked", body=b"1\r\nhello\r\n0\r\n\r\n" + SMUGGLED
    ),
    "chunked in HTTP/1.0": framed("Transfer-Encoding: chunked", version="HTTP/1.0"),
    "HTTP/2.0": framed("Content-Length: 5", version="HTTP/2.0"),
}


@pytest.mark.parametrize("raw", FRAMINGS.values(), ids=FRAMINGS.keys())
async def test_a_request_that_could_be_two_is_one_or_none(site: NginxSite, raw: bytes) -> None:
    """Behind it stands a second request. Whatever nginx makes of the bytes, no server gets it through the
    first: it is only served if nginx itself has read it as a request, and then it has its own answer."""
    client = await site.client()
    await client.send(raw)
    answers = []
    with contextlib.suppress(EOFError, Malformed):
        while True:
            answer = await client.answer()
            answers.append(answer)
            if answer.framing != "clean" or answer.says_close or len(answers) == 2:
                break
    seen = site.taken()
    served = [answer for answer in answers if answer.status == 200]
    assert len(seen) == len(served), (seen, answers)
    for request in seen:
        assert (request.target, request.body) == (b"/mcp", call(666))
        assert request.head.all("transfer-encoding") == []


async def test_a_body_of_get_or_delete_never_becomes_a_request(site: NginxSite) -> None:
    for method in ("GET", "DELETE"):
        client = await site.client()
        request = get(f"Content-Length: {len(SMUGGLED)}", method=method) + SMUGGLED
        answer = await client.ask(request, method)
        assert (answer.status, answer.reason) == (400, "bad_request")
    assert site.taken() == []


# --- what cannot be reached -------------------------------------------------------------------------------

ELSEWHERE = [
    "/", "/metrics", "/livez", "/readyz", "/status.json", "/config", "/sessions", "/backends", "/drain",
    "/events", "/mcp/", "/mcp/metrics", "/mcp/../metrics", "/mcp/%2e%2e/metrics", "/mcp%2f..%2fmetrics",
    "//metrics", "/mcp/..;/metrics", "/.edge/lost", "/.edge/refused", "/.edge/timeout", "/mcp%00", "/MCP",
    "/weather/mcp/metrics", "/a/b/mcp", "/.well-known/oauth-protected-resource",
    "/.well-known/oauth-protected-resource/mcp",
]  # fmt: skip


@pytest.mark.parametrize("target", ELSEWHERE)
async def test_nothing_but_mcp_paths_is_passed_on(site: NginxSite, target: str) -> None:
    before = await asked(site)
    for method in ("GET", "POST"):
        request = get(target=target) if method == "GET" else post(call(), target=target)
        answer = await site.ask(request, method)
        assert answer.status in (400, 404), answer
        if answer.status == 404:
            assert (answer.reason, answer.head.one("content-type")) == ("edge_not_found", b"text/plain")
    assert await asked(site) == before
    assert site.taken() == []


async def test_paths_that_mean_the_endpoint_but_are_not_it_are_refused_by_the_proxy(site: NginxSite) -> None:
    for target in ("/%6dcp", "/a/../mcp", "//mcp", "/./mcp"):
        assert (await site.ask(post(call(), target=target))).status == 404
    assert site.taken() == []


async def test_another_host_is_not_served(site: NginxSite) -> None:
    answer = await (await site.client()).ask(post(call(), host="evil.example"))
    assert is_edge(answer, 421, "edge_misdirected")
    assert site.taken() == []


async def test_another_name_gets_no_certificate(site: NginxSite) -> None:
    for name in ("evil.example", None):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized[ _]name"):
            await asyncio.open_connection(
                "127.0.0.1", site.nginx.port, ssl=context, server_hostname=name or ""
            )


async def test_old_tls_is_not_spoken(site: NginxSite) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = trusting(site.files.certificate)
        context.minimum_version = context.maximum_version = version
        async with tunnel(site.nginx.port, NAME, context) as port, await Client.connect(port) as client:
            assert (await client.ask(post(call()))).status == 200
    site.taken()
    context = trusting(site.files.certificate)
    context.set_ciphers("AES128-GCM-SHA256:AES256-SHA@SECLEVEL=0")  # without forward secrecy
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        await asyncio.open_connection("127.0.0.1", site.nginx.port, ssl=context, server_hostname=NAME)


async def test_a_post_to_the_plain_port_is_told_where_to_repeat_it(site: NginxSite) -> None:
    client = await site.client(site.files.http_port)
    answer = await client.ask(post(call(), target="/mcp?a=b", host=NAME))
    assert (answer.status, answer.head.one("location")) == (308, f"https://{NAME}/mcp?a=b".encode())
    other = await (await site.client(site.files.http_port)).ask(post(call(), host="evil.example"))
    assert (other.status, other.head.one("location")) == (421, None)
    assert site.taken() == []


# --- sizes ----------------------------------------------------------------------------------------------


async def test_a_body_above_the_limit_is_told_so_in_json(site: NginxSite) -> None:
    before = await asked(site)
    client = await site.client()
    await client.send(post(b"", framing=f"Content-Length: {LIMIT + 1}"))
    assert is_edge(await client.answer(), 413, "edge_body_too_large")
    client = await site.client()
    await client.send(post(b"%x\r\n" % (LIMIT + 1) + b"x" * 1000, framing="Transfer-Encoding: chunked"))
    assert is_edge(await client.answer(), 413, "edge_body_too_large")
    assert await asked(site) == before


async def test_a_refusal_of_a_large_body_arrives_as_what_it_is(site: NginxSite) -> None:
    """It is said before the body has been read, and nginx reads no answer before it has sent all."""
    request = post(call(1, fill="x" * (LIMIT - 1000)), "Origin: https://elsewhere.example")
    answers = await asyncio.gather(*(site.ask(request) for _ in range(12)))
    assert {(answer.status, answer.reason) for answer in answers} == {(403, "forbidden_origin")}
    assert site.taken() == []


async def test_a_body_of_exactly_the_limit_is_served(site: NginxSite) -> None:
    body = call(1, fill="")
    body = call(1, fill="x" * (LIMIT - len(body)))
    assert len(body) == LIMIT
    assert (await site.ask(post(body))).status == 200
    (seen,) = site.taken()
    assert seen.body == body


async def test_a_body_in_tiny_chunks_goes_through_a_temporary_file(site: NginxSite) -> None:
    """Framing counts in ``client_body_buffer_size``, and here it is five times the body. When the workers of
    root's nginx may not enter the folder of this test, it is nginx that says so."""
    body = call(1, fill="x" * (LIMIT // 4))
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    before = len(site.files.error_log())
    answer = await site.ask(post(chunks, framing="Transfer-Encoding: chunked"))
    assert f"{site.files.folder}/temp-0/" in site.files.error_log()[before:]
    assert answer.status == 200 or is_edge(answer, 500, "edge_error", -32603)
    assert [seen.body for seen in site.taken()] == ([body] if answer.status == 200 else [])


async def test_a_body_that_the_proxy_refuses_unread_gets_its_refusal(site: NginxSite) -> None:
    """And not 502: what nginx has accepted from its client is taken from it, of whatever size."""
    big = call(1, fill="x" * 60_000)
    for _ in range(5):
        answer = await site.ask(post(big, "Origin: https://evil.example"))
        assert (answer.status, answer.reason) == (403, "forbidden_origin")
    assert site.taken() == []


async def test_a_head_that_the_proxy_would_take_is_taken(site: NginxSite) -> None:
    lines = [f"X-Field-{number}: {'v' * 8000}" for number in range(3)]
    assert (await site.ask(post(call(), *lines))).status == 200
    (seen,) = site.taken()
    assert len(seen.head.all("x-field-2")[0]) == 8000


async def test_a_head_above_the_limit_is_told_so_in_json(site: NginxSite) -> None:
    before = await asked(site)
    client = await site.client()
    await client.send(get("X-Field: " + "v" * 9000))
    assert is_edge(await client.answer("GET"), 431, "edge_head_too_large")
    client = await site.client()
    await client.send(get(target="/mcp?" + "q" * 9000))
    assert is_edge(await client.answer("GET"), 414, "edge_uri_too_long")
    client = await site.client()
    await client.send(b"GET /mcp HTTP/1.1\r\n\r\n")
    assert is_edge(await client.answer("GET"), 400, "edge_refused")
    assert await asked(site) == before


async def test_plain_http_to_the_tls_port_is_told_so_in_json(site: NginxSite) -> None:
    client = await site.client(site.nginx.port)
    assert is_edge(await client.ask(post(call())), 400, "edge_refused")
    assert site.taken() == []


# --- slow clients -------------------------------------------------------------------------------------------


async def test_a_client_that_sends_slowly_never_occupies_a_replica(site: NginxSite) -> None:
    """Half a head, and half a body behind a whole head: nginx ends both, and no replica knows of them."""
    before = await asked(site)
    head, body = await site.client(), await site.client()
    await head.send(post(call())[:60])
    await body.send(post(BIG)[:-1])
    assert (await site.ask(post(call()))).status == 200  # has gone the same way behind them
    assert [await each.proxy.metric("mcp_proxy_inflight") for each in site.replicas] == [0, 0]
    ends = await asyncio.gather(head.closed(), body.closed())
    assert set(ends) <= {"eof", "reset"}
    assert await asked(site) == before + 1
    assert len(site.taken()) == 1
