"""Requests that must pass, without what must not (F5, F6, F8, F12).

Upgrade is ignored and its body kept, trailers are dropped, hop-by-hop fields end here, and
``Expect`` is answered by the proxy.
"""

from __future__ import annotations

import pytest

from tests.tools.client import call, get, post
from tests.tools.http1 import chunk
from tests.tools.mcp_backend import json_answer
from tests.tools.recording import Conn, Seen
from tests.wire.rig import Rig

CONFIG = {"limits": {"body": "64KiB"}}

INNER = "POST /mcp HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: 0\\r\\n\\r\\n"
BODY = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":"%b"}}}' % (
    INNER.encode()
)
"""JSON whose text looks like a request as far as JSON allows it."""

FORGED = post(call(666))


def upgrading(protocol: str, body: bytes, *, chunked: bool) -> bytes:
    settings = ("HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",) if protocol == "h2c" else ()
    nominated = "Upgrade, HTTP2-Settings" if settings else "Upgrade"
    fields = (f"Connection: {nominated}", f"Upgrade: {protocol}", *settings)
    if chunked:
        half = len(body) // 2
        wire = chunk(body[:half]) + chunk(body[half:]) + b"0\r\n\r\n"
        return post(wire, *fields, framing="Transfer-Encoding: chunked")
    return post(body, *fields)


@pytest.mark.parametrize("segments", ["one", "head and body", "head, half and half"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("protocol", ["h2c", "foo", "websocket"])
async def test_an_upgrade_is_ignored_and_the_body_is_kept(
    rig: Rig, protocol: str, chunked: bool, segments: str
) -> None:
    raw = upgrading(protocol, BODY, chunked=chunked)
    body_at = raw.index(b"\r\n\r\n") + 4
    cuts = {"one": [], "head and body": [body_at], "head, half and half": [body_at, body_at + 60]}
    client = await rig.client()

    await client.send_cut(raw + post(call(2)), cuts[segments])
    first, second = await client.answer(), await client.answer()
    seen = rig.taken()

    assert [(one.status, one.json["id"]) for one in (first, second)] == [(200, 1), (200, 2)]
    assert [one.body for one in seen] == [BODY, call(2)]
    for name in ("upgrade", "http2-settings", "connection", "transfer-encoding"):
        assert seen[0].head.all(name) == []


@pytest.mark.parametrize("segments", ["one", "head and body"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("protocol", ["h2c", "foo", "websocket"])
async def test_the_body_of_an_upgrade_is_never_read_as_a_request(
    rig: Rig, protocol: str, chunked: bool, segments: str
) -> None:
    raw = upgrading(protocol, FORGED, chunked=chunked)
    client = await rig.client()

    await client.send_cut(raw, [raw.index(b"\r\n\r\n") + 4] if segments != "one" else [])
    refused = await client.answer()
    client.finish()
    await client.closed()

    assert (refused.status, refused.json["error"]["code"]) == (400, -32700)
    assert rig.taken() == []


TRAILERS = [
    "Authorization: Bearer trailer",
    "Host: evil",
    "Mcp-Session-Id: trailer",
    "X-Forwarded-For: 6.6.6.6",
    "X-Trailer: trailer",
    "MCP-Protocol-Version: 2026-07-28",
]


@pytest.mark.parametrize("cut", ["one", "before the trailers", "inside the trailers"])
async def test_trailers_reach_neither_backend_nor_routing(rig: Rig, cut: str) -> None:
    fields = "".join(f"{line}\r\n" for line in TRAILERS).encode()
    raw = post(chunk(BODY) + b"0\r\n" + fields + b"\r\n", framing="Transfer-Encoding: chunked")
    cuts = {"one": 0, "before the trailers": raw.index(fields), "inside the trailers": len(raw) - 20}
    client = await rig.client()

    await client.send_cut(raw, [cuts[cut]])
    answer = await client.answer()
    seen = rig.backend.take_one()

    assert (answer.status, seen.body) == (200, BODY)
    assert b"trailer" not in seen.raw
    assert b"6.6.6.6" not in seen.raw
    assert b"evil" not in seen.raw


NOMINATIONS = {
    "one": ["Connection: X-Foo", "X-Foo: secret"],
    "first of two empty": ["Connection:", "Connection: X-Foo", "X-Foo: secret"],
    "beside close": ["Connection: keep-alive, X-Foo", "X-Foo: secret"],
    "other case": ["X-FOO: secret", "Connection: x-fOO"],
    "list with holes": ["Connection: ,, X-Foo ,", "X-Foo: secret"],
    "itself hop-by-hop": ["Connection: Keep-Alive", "Keep-Alive: secret"],
    "never nominated": ["TE: trailers, secret", "Proxy-Connection: secret", "Proxy-Authorization: secret"],
}


@pytest.mark.parametrize("fields", NOMINATIONS.values(), ids=NOMINATIONS.keys())
async def test_hop_by_hop_fields_end_at_the_proxy(rig: Rig, fields: list[str]) -> None:
    client = await rig.client()
    answer = await client.ask(post(call(), *fields, "X-Bar: kept"))
    seen = rig.backend.take_one()

    assert answer.status == 200
    assert b"secret" not in seen.raw
    assert seen.head.all("x-bar") == [b"kept"]


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "Mcp-Session-Id",
        "X-Forwarded-For",
        "Host",
        "Content-Length",
        "Mcp-Name",
        "Content-Type",
    ],
)
async def test_a_protected_field_cannot_be_nominated_away(rig: Rig, name: str) -> None:
    client = await rig.client()
    answer = await client.ask(post(call(), f"Connection: close, {name}", "Authorization: Bearer x"))

    assert (answer.status, answer.reason) == (400, "bad_request")
    assert rig.taken() == []


ALIASES = [
    "mcp_session_id: x",
    "Content_Length: 3",
    "x_forwarded_for: 6.6.6.6",
    "MCP_NAME: x",
    "authorization_: x",
]


async def test_claims_and_aliases_of_an_untrusted_client_end_at_the_proxy(rig: Rig) -> None:
    claims = [
        "X-Forwarded-For: 6.6.6.6",
        "X-Real-IP: 6.6.6.6",
        "Forwarded: for=6.6.6.6",
        "X-Forwarded-Host: 6.6.6.6",
    ]
    client = await rig.client()
    answer = await client.ask(post(call(), *claims, *ALIASES, "Cookie: secret"))
    seen = rig.backend.take_one()

    assert answer.status == 200
    assert b"6.6.6.6" not in seen.raw
    assert b"secret" not in seen.raw
    assert [name for name, _ in seen.headers if b"_" in name and name != b"authorization_"] == []
    assert seen.head.all("x-forwarded-for") == [b"127.0.0.1"]
    assert seen.head.all("host") == [b"127.0.0.1:%d" % rig.backend.port]


async def test_end_to_end_fields_keep_value_order_and_duplicates(rig: Rig) -> None:
    fields = ["X-A: 1", "Mcp-Param-Zone: eu", "x-a:\t2 2\t", "X-B: \xe9", "X-A:", "Accept-Language: de"]
    client = await rig.client()
    answer = await client.ask(post(call(), *fields))
    seen = rig.backend.take_one()

    assert answer.status == 200
    names = (b"x-a", b"mcp-param-zone", b"x-b", b"accept-language")
    kept = [(name.lower(), value) for name, value in seen.headers if name.lower() in names]
    assert kept == [
        (b"x-a", b"1"),
        (b"mcp-param-zone", b"eu"),
        (b"x-a", b"2 2"),
        (b"x-b", b"\xe9"),
        (b"x-a", b""),
        (b"accept-language", b"de"),
    ]


@pytest.mark.parametrize("nominated", ["X-Foo", "X-Foo, Mcp-Session-Id, Content-Type"])
async def test_hop_by_hop_fields_of_an_answer_end_at_the_proxy(rig: Rig, nominated: str) -> None:
    hidden = [("X-Foo", "secret"), ("Keep-Alive", "timeout=5, secret"), ("Proxy-Authenticate", "secret")]
    hidden += [("Upgrade", "secret"), ("Trailer", "secret")]
    rig.script(json_answer(("Connection", nominated), *hidden, ("X-Bar", "kept")))
    client = await rig.client()
    answer = await client.ask(post(call()))
    rig.backend.take_one()

    assert answer.status == 200
    assert b"secret" not in answer.head.raw
    assert answer.head.all("x-bar") == [b"kept"]
    assert answer.head.all("content-type") == [b"application/json"]


EXPECT = "Expect: 100-continue"


async def test_a_client_that_waits_for_100_gets_it_once_and_the_backend_none_of_it(rig: Rig) -> None:
    raw = post(BODY, EXPECT)
    head = raw[: -len(BODY)]
    client = await rig.client()

    await client.send(head)
    assert await client.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(BODY)
    answer = await client.answer()
    seen = rig.backend.take_one()

    assert (answer.status, answer.interim, seen.body) == (200, [], BODY)
    assert seen.head.all("expect") == []


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_client_that_does_not_wait_for_100_is_served_once(rig: Rig, framing: str) -> None:
    client = await rig.client()
    if framing == "length":
        raw = post(BODY, EXPECT)
    else:
        raw = post(chunk(BODY) + b"0\r\n\r\n", EXPECT, framing="Transfer-Encoding: chunked")
    answer = await client.ask(raw)

    assert answer.status == 200
    assert answer.interim in ([], [100])
    assert rig.backend.take_one().body == BODY


EARLY = {
    "too large": (post(b"", EXPECT, framing="Content-Length: 65537"), 413),
    "unknown path": (post(b"", EXPECT, framing="Content-Length: 10", target="/x"), 404),
    "foreign origin": (post(b"", EXPECT, "Origin: http://evil", framing="Content-Length: 10"), 403),
    "not JSON": (
        b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
        b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n",
        415,
    ),
    "unknown expectation": (post(b"", "Expect: 200-ok", framing="Content-Length: 10"), 417),
}


@pytest.mark.parametrize(("raw", "status"), EARLY.values(), ids=EARLY.keys())
async def test_an_early_refusal_says_close_and_harms_nobody(rig: Rig, raw: bytes, status: int) -> None:
    for _ in range(10):
        answer = await rig.refused(raw, status)
        assert answer.interim == []

    client = await rig.client()
    for number in range(50):
        assert (await client.ask(post(call(number)))).status == 200
    assert [one.body for one in rig.taken()] == [call(number) for number in range(50)]


@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS", "HEAD"])
async def test_a_body_where_none_belongs_is_never_read_as_a_request(rig: Rig, method: str) -> None:
    raw = get(f"Content-Length: {len(FORGED)}", method=method) + FORGED
    client = await rig.client()

    await client.send(raw)
    answer = await client.answer(method)
    client.finish()
    await client.closed()

    assert answer.status in (204, 400, 405)
    assert rig.taken() == []


async def test_an_early_answer_of_the_backend_is_not_mixed_up_with_the_next_request(rig: Rig) -> None:
    async def impatient(request: Seen, conn: Conn) -> None:
        await conn.answer(401, [("Content-Type", "application/json")], b"{}")

    client = await rig.client()
    rig.script(impatient)
    statuses = [(await client.ask(post(call(number), EXPECT))).status for number in range(20)]
    rig.script(json_answer())
    statuses += [(await client.ask(post(call(number)))).status for number in range(50)]

    assert statuses == [401] * 20 + [200] * 50
    assert len(rig.taken()) == 70
