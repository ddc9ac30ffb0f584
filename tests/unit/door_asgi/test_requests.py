"""The portable door: what reaches the gateway of a request, and what never does."""

from __future__ import annotations

import pytest

from mcp_proxy.downstream.asgi import AsgiDoor
from mcp_proxy.wire import Rejection
from tests.tools.client import Client, get, post
from tests.unit.door_asgi.servers import uvicorn_serves
from tests.unit.doorway import BODY_LIMIT, ScriptedHandler, chunked

CHUNKED = "Transfer-Encoding: chunked"


async def test_target_headers_and_body_arrive_as_they_were_sent(
    client: Client, handler: ScriptedHandler
) -> None:
    fields = ("X-A: 1", "Mcp-Session-Id: s", "x-a: \xfc")
    answer = await client.ask(post(b'{"a":\x00}', *fields, target="/m%7e/..//x?q=%zz&&="))
    assert (answer.status, answer.body) == (200, b'{"a":\x00}')
    (served,) = handler.served
    request = served.request
    assert served.essence == (b"POST", b"/m%7e/..//x?q=%zz&&=", b'{"a":\x00}')
    assert request.headers == [
        (b"host", b"localhost"),
        (b"content-type", b"application/json"),
        (b"accept", b"application/json, text/event-stream"),
        (b"x-a", b"1"),
        (b"mcp-session-id", b"s"),
        (b"x-a", b"\xfc"),
    ]
    assert (request.peer, request.scheme) == ("127.0.0.1", "http")


async def test_a_chunked_body_arrives_whole(client: Client, handler: ScriptedHandler) -> None:
    answer = await client.ask(post(chunked(b"ab", b"c", b"d" * 70_000), framing=CHUNKED))
    assert answer.body == b"abc" + b"d" * 70_000
    assert handler.served[0].body == answer.body
    assert all(name != b"transfer-encoding" for name, _ in handler.served[0].request.headers)


async def test_an_empty_body_needs_no_framing(client: Client, handler: ScriptedHandler) -> None:
    for method in ("GET", "DELETE", "OPTIONS"):
        assert (await client.ask(get(method=method), method)).status == 200
    assert [body for _, _, body in handler.essences] == [b"", b"", b""]


async def test_the_lifespan_starts_and_stops_the_gateway(
    client: Client, calls: list[str], serves: object
) -> None:
    await client.ask(post(b"{}"))
    assert calls == ["startup"]


@pytest.mark.parametrize("body", ["length", "chunked", "none"])
async def test_a_refused_head_is_answered_before_its_body_and_closes_if_there_is_one(
    client: Client, handler: ScriptedHandler, body: str
) -> None:
    handler.judge = lambda request: Rejection("not_found")
    framing = {"length": "Content-Length: 1000", "chunked": CHUNKED, "none": "Content-Length: 0"}[body]
    answer = await client.ask(post(b"", framing=framing))
    assert (answer.status, answer.reason, answer.framing) == (404, "not_found", "clean")
    assert answer.says_close is (body != "none")
    assert handler.served == []


@pytest.mark.parametrize("framing", [f"Content-Length: {BODY_LIMIT + 1}", CHUNKED])
async def test_a_body_over_the_limit_is_refused(
    client: Client, handler: ScriptedHandler, framing: str
) -> None:
    body = chunked(b"x" * (BODY_LIMIT + 1))[:-5] if framing is CHUNKED else b""
    answer = await client.ask(post(body, framing=framing))
    assert (answer.status, answer.reason, answer.says_close) == (413, "body_too_large", True)
    assert handler.served == []


async def test_a_body_at_the_limit_is_served(client: Client, handler: ScriptedHandler) -> None:
    answer = await client.ask(post(b"x" * BODY_LIMIT))
    assert (answer.status, len(answer.body)) == (200, BODY_LIMIT)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_only_post_has_a_body(client: Client, handler: ScriptedHandler, method: str) -> None:
    request = post(b"{}").replace(b"POST", method.encode(), 1)
    answer = await client.ask(request, method)
    assert (answer.status, answer.reason) == (400, "bad_request")
    assert handler.served == []


async def test_http_1_0_is_told_to_use_1_1(client: Client, handler: ScriptedHandler) -> None:
    answer = await client.ask(post(b"{}").replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    assert (answer.status, answer.reason) == (505, "http_version")
    assert handler.served == []


async def test_a_client_that_leaves_within_its_body_is_not_served(
    client: Client, port: int, handler: ScriptedHandler
) -> None:
    await client.send(post(b"{", framing="Content-Length: 9"))
    await client.consumed()
    client.close()
    other = await Client.connect(port)
    assert (await other.ask(post(b"{}"))).status == 200
    other.close()
    assert [body for _, _, body in handler.essences] == [b"{}"]


async def test_a_websocket_is_refused(client: Client, handler: ScriptedHandler) -> None:
    fields = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    answer = await client.ask(get(*fields, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="), "GET")
    assert answer.status == 403
    assert handler.served == []


@pytest.mark.parametrize("smuggled", [b"", b"POST /admin HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"])
async def test_a_body_that_uvicorn_loses_to_an_upgrade_is_refused_and_nothing_follows(
    door: AsgiDoor, handler: ScriptedHandler, smuggled: bytes
) -> None:
    async with uvicorn_serves(door) as port, await Client.connect(port) as client:
        body = smuggled or b"{}"
        head = post(b"", "Connection: Upgrade", "Upgrade: h2c", framing=f"Content-Length: {len(body)}")
        await client.send_apart([head, body])
        assert isinstance(client, Client)
        answer = await client.answer()
        assert (answer.status, answer.reason, answer.says_close) == (400, "bad_request", True)
        assert await client.closed() in ("eof", "reset")
    assert handler.served == []
