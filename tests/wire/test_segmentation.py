"""Where TCP cuts a message means nothing (F11): every golden exchange is repeated with a cut at each
byte, and once with every byte alone, on both sides of the proxy.

And where a peer stops means nothing to anybody else: the same walks, ending at each byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable

import pytest

from tests.tools.backend import Handler
from tests.tools.client import Answer, Client, call, get, post
from tests.tools.http1 import chunk
from tests.tools.mcp_backend import INITIALIZE, McpServer, json_answer, raw_answer
from tests.tools.recording import Conn, Seen
from tests.tools.wire import pieces
from tests.wire.rig import Rig

BODY = call(1)
MODERN = (
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"e",'
    b'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",'
    b'"io.modelcontextprotocol/clientCapabilities":{}}}}'
)
MODERN_FIELDS = ("MCP-Protocol-Version: 2026-07-28", "Mcp-Method: tools/call", "Mcp-Name: e")


def chunked(body: bytes, *fields: str, trailer: bytes = b"") -> bytes:
    wire = chunk(body[:10]) + chunk(body[10:]) + b"0;last\r\n" + trailer + b"\r\n"
    return post(wire, *fields, framing="Transfer-Encoding: chunked")


REQUESTS: dict[str, tuple[bytes, list[str]]] = {
    "length": (post(BODY), ["POST"]),
    "chunked with trailers": (chunked(BODY, trailer=b"X-A: b\r\n"), ["POST"]),
    "expecting 100": (post(BODY, "Expect: 100-continue"), ["POST"]),
    "upgrading": (post(BODY, "Connection: Upgrade", "Upgrade: h2c"), ["POST"]),
    "upgrading, chunked, with one behind": (
        chunked(BODY, "Connection: Upgrade", "Upgrade: foo") + post(call(2)),
        ["POST", "POST"],
    ),
    "pipelined": (post(BODY) + get() + post(call(3)), ["POST", "GET", "POST"]),
    "modern": (post(MODERN, *MODERN_FIELDS), ["POST"]),
    "initialize": (post(INITIALIZE), ["POST"]),
    "not JSON": (post(b"{"), ["POST"]),
}

Outcome = list[object]

OF_ITS_OWN = (b"date", b"x-request-id")
"""What is another one in every answer."""


def seen_fields(seen: Seen) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in seen.headers if name.lower() not in OF_ITS_OWN]


def outcome(answers: list[Answer], seen: list[Seen]) -> Outcome:
    """Everything that must not depend on the cuts."""
    told: Outcome = []
    for answer in answers:
        fields = [(name, value) for name, value in answer.head.headers if name.lower() not in OF_ITS_OWN]
        kept = [(name, re.sub(rb"server-[0-9a-f]+", b"server", value)) for name, value in fields]
        told.append((answer.status, kept, answer.body, answer.framing))
    return told + [(one.method, one.target, seen_fields(one), one.body) for one in seen]


async def exchange(rig: Rig, client: Client, raw: bytes, methods: list[str], cuts: Iterable[int]) -> Outcome:
    await client.send_cut(raw, cuts)
    answers = [await client.answer(method) for method in methods]
    return outcome(answers, rig.taken())


@pytest.mark.parametrize(("raw", "methods"), REQUESTS.values(), ids=REQUESTS.keys())
async def test_a_request_cut_at_any_byte_is_the_same_request(
    rig: Rig, raw: bytes, methods: list[str]
) -> None:
    rig.script(McpServer())
    client = await rig.client()
    whole = await exchange(rig, client, raw, methods, [])

    for at in range(1, len(raw)):
        assert await exchange(rig, client, raw, methods, [at]) == whole, f"cut at {at}: {raw[:at]!r}"
    assert await exchange(rig, client, raw, methods, range(1, len(raw))) == whole


REFUSED = {
    "length and chunked": post(b"0\r\n\r\n" + post(BODY), "Transfer-Encoding: chunked"),
    "two lengths": post(BODY, "Content-Length: 3"),
    "folded": post(BODY, "A: b\r\n c"),
    "bare CR": post(BODY, "A: b\rc"),
    "no Host": post(BODY).replace(b"Host: localhost\r\n", b""),
    "chunk longer than its size": post(
        b"3\r\nabcd\r\n0\r\n\r\n" + post(BODY), framing="Transfer-Encoding: chunked"
    ),
    "upgrading with two lengths": post(BODY, "Connection: Upgrade", "Upgrade: h2c", "Content-Length: 3"),
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
async def test_a_refused_request_is_refused_wherever_it_is_cut(rig: Rig, raw: bytes) -> None:
    for cuts in [[], *([at] for at in range(1, len(raw), 3)), range(1, len(raw))]:
        client = await rig.client()
        with contextlib.suppress(ConnectionError):  # refused before the rest was sent
            await client.send_cut(raw, cuts)
        assert (await client.answer()).status in (400, 501)
        await client.closed()
        client.close()
    assert rig.taken() == []


OK = b"HTTP/1.1 200 OK\r\n"
JSON = b"Content-Type: application/json\r\n"
SSE = b"Content-Type: text/event-stream\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
EVENTS = b": hi\r\n\r\n" + b"id: 7\r\nretry: 10\r\ndata: {}\r\n\r\n" + b"data:\n\n"
RESPONSES: dict[str, bytes] = {
    "length": OK + JSON + b"Content-Length: 5\r\nX-A: b\r\n\r\nhello",
    "chunked": OK + JSON + CHUNKED + chunk(b"he") + chunk(b"llo") + b"0\r\n\r\n",
    "events": OK + SSE + CHUNKED + chunk(EVENTS) + chunk(b"data: 2\n\n") + b"0\r\n\r\n",
    "events with trailers": OK + SSE + CHUNKED + b"3;x=y\r\na\n\n\r\n0\r\nA: b\r\n\r\n",
    "events with a length": OK + SSE + b"Content-Length: 9\r\n\r\ndata: 1\n\n",
    "no content": b"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n",
    "accepted": b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n",
    "interim": EARLY * 2 + OK + JSON + b"Content-Length: 2\r\n\r\n{}",
    "surplus": OK + JSON + b"Content-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
    "bad length": OK + JSON + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
}  # fmt: skip


def cutting(wire: bytes, cuts: Iterable[int]) -> Handler:
    return raw_answer(*pieces(wire, cuts))


@pytest.mark.parametrize("wire", RESPONSES.values(), ids=RESPONSES.keys())
async def test_an_answer_cut_at_any_byte_is_the_same_answer(rig: Rig, wire: bytes) -> None:
    client = await rig.client()

    async def ask(cuts: Iterable[int]) -> Outcome:
        rig.script(cutting(wire, cuts))
        return outcome([await client.ask(post(BODY))], rig.taken())

    whole = await ask([])
    for at in range(1, len(wire)):
        assert await ask([at]) == whole, f"cut at {at}: {wire[:at]!r}"
    assert await ask(range(1, len(wire))) == whole


async def test_an_answer_until_close_cut_at_any_byte_is_the_same_answer(rig: Rig) -> None:
    wire = OK + JSON + b"\r\nhello"
    client = await rig.client()
    bodies = []
    for at in range(len(wire)):
        rig.script(raw_answer(*pieces(wire, [at]), then="close"))
        bodies.append((await client.ask(post(BODY))).body)

    assert bodies == [b"hello"] * len(wire)
    assert len(rig.taken()) == len(wire)


# -- ending anywhere ---------------------------------------------------------------------------

LEAVE: dict[str, Callable[[Client], None]] = {"closes": Client.close, "resets": Client.reset}


@pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE.keys())
async def test_a_client_may_leave_after_any_byte_of_its_request(
    rig: Rig, leave: Callable[[Client], None]
) -> None:
    raw = post(BODY)
    for at in range(len(raw)):
        client = await rig.client()
        await client.send_apart([raw[:at]])
        leave(client)

    assert rig.taken() == []


@pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE.keys())
@pytest.mark.parametrize("name", ["length", "events", "chunked", "interim"])
async def test_a_client_may_leave_after_any_byte_of_the_answer(
    rig: Rig, name: str, leave: Callable[[Client], None]
) -> None:
    """The upstream connection, cancelled at each of its steps: it is closed at once, or it was
    complete and may serve another."""
    wire = RESPONSES[name]
    parts: asyncio.Queue[Conn] = asyncio.Queue()

    async def stopping(request: Seen, conn: Conn) -> None:
        await request.whole()
        await conn.send_apart([wire[: stop_at[0]]])
        parts.put_nowait(conn)
        if stop_at[0] < len(wire):
            await conn.gone()

    stop_at = [0]
    rig.script(stopping)
    for stop_at[0] in range(len(wire) + 1):
        client = await rig.client()
        await client.send(post(BODY))
        conn = await parts.get()
        leave(client)
        if stop_at[0] < len(wire):
            assert await conn.gone() in ("fin", "rst")
    assert len(rig.taken()) == len(wire) + 1


@pytest.fixture
async def golden(rig: Rig) -> Client:
    """A client that has a warm upstream connection behind it."""
    client = await rig.client()
    await client.ask(post(BODY))
    rig.taken()
    return client


@pytest.mark.parametrize("name", ["length", "chunked", "interim"])
async def test_a_backend_may_leave_after_any_byte_of_a_json_answer(
    rig: Rig, golden: Client, name: str
) -> None:
    """Held until whole, so it is whole or a 502; never half."""
    wire = RESPONSES[name]
    for at in range(len(wire)):
        rig.script(raw_answer(wire[:at], then="reset" if at % 2 else "close"))
        answer = await golden.ask(post(BODY))
        assert (answer.status, answer.framing) == (502, "clean"), wire[:at]
    rig.script(json_answer())
    assert (await golden.ask(post(BODY))).status == 200
    assert len(rig.taken()) == len(wire) + 1


async def test_a_backend_may_leave_after_any_byte_of_an_event_stream(rig: Rig) -> None:
    """Before the end of the head: 502. After it: the events that were sent, and no clean end."""
    wire = RESPONSES["events"]
    body_at = wire.index(b"\r\n\r\n") + 4
    for at in range(len(wire)):
        rig.script(raw_answer(wire[:at], then="close"))
        client = await rig.client()
        answer = await client.ask(post(BODY))
        if at < body_at:
            assert (answer.status, answer.framing) == (502, "clean")
        else:
            assert (answer.status, answer.framing) == (200, "truncated")
            assert (EVENTS + b"data: 2\n\n").startswith(answer.body)
        client.close()
    assert len(rig.taken()) == len(wire)
