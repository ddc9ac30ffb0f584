"""More than the proxy takes (O2, O3): it says so, keeps serving, and gives everything back."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from tests.tools.client import Answer, Client, call, get, post
from tests.tools.http1 import chunk
from tests.tools.mcp_backend import McpServer, Streams, json_answer
from tests.tools.recording import Conn, Seen
from tests.wire.rig import Rig, bench, case

BODY_LIMIT = 256 * 1024
CONFIG = {"limits": {"body": BODY_LIMIT, "streams": 20}}
MIB = 1024 * 1024


# -- O2 ----------------------------------------------------------------------------------------


def chunked_body(size: int) -> bytes:
    return post(chunk(b" " * 65536) * (size // 65536) + b"0\r\n\r\n", framing="Transfer-Encoding: chunked")


ONE = chunk(call(1))
CHUNKED = "Transfer-Encoding: chunked"
LARGE = {
    "field of 8 MiB": (post(b"", "X: " + "x" * 8 * MIB), {431}),
    "field name of 8 MiB": (post(b"", "x" * 8 * MIB + ": x"), {431}),
    "field of 9 KiB": (post(call(), "X: " + "x" * 9 * 1024), {431}),
    "200 fields": (post(call(), *[f"X-{number}: x" for number in range(200)]), {431}),
    "20,000 fields": (post(call(), *[f"X-{number}: x" for number in range(20_000)]), {431}),
    "target of 64 KiB": (post(call(), target="/mcp?" + "x" * 65536), {414}),
    "target of 9 KiB": (post(call(), target="/mcp?" + "x" * 9 * 1024), {414}),
    "8 MiB without an end": (b"x" * 8 * MIB, {400, 414, 431}),
    "20,000 trailers": (
        post(
            ONE + b"0\r\n" + b"".join(b"X-%d: x\r\n" % number for number in range(20_000)) + b"\r\n",
            framing=CHUNKED,
        ),
        {400, 413, 431},
    ),
    "chunk extension of 8 MiB": (post(b"1;" + b"x" * 8 * MIB + b"\r\n", framing=CHUNKED), {400, 413}),
    "size with 8 MiB of zeros": (post(b"0" * 8 * MIB + b"1\r\n", framing=CHUNKED), {400, 413}),
    "one-byte chunks": (post(b"1\r\n \r\n" * 200_000, framing=CHUNKED), {400, 413}),
    "body above the limit by length": (post(b" " * (BODY_LIMIT + 1)), {413}),
    "body of a terabyte by length": (post(b"", framing="Content-Length: 1099511627776"), {413}),
    "body of 8 MiB by length": (post(b" " * 8 * MIB), {413}),
    "body of 8 MiB in chunks": (chunked_body(8 * MIB), {413}),
    "body in one endless chunk": (post(b"fffffff\r\n" + b" " * 8 * MIB, framing=CHUNKED), {413}),
}


async def pour(client: Client, raw: bytes) -> Answer | None:
    """Send while reading; None when the connection ended without an answer."""

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            await client.send(raw)

    sending = asyncio.create_task(send())
    try:
        answer = await client.answer()
        await client.closed()
        return answer
    except EOFError:
        return None
    finally:
        client.close()
        await sending


@pytest.mark.parametrize(("raw", "statuses"), LARGE.values(), ids=LARGE.keys())
async def test_what_is_too_large_is_refused_and_costs_no_memory(
    rig: Rig, raw: bytes, statuses: set[int]
) -> None:
    before = rig.proxy.rss_bytes()
    answers = [await pour(await rig.client(), raw) for _ in range(3)]

    assert [answer.status for answer in answers if answer and answer.status not in statuses] == []
    if len(raw) <= 64 * 1024:
        assert None not in answers
    assert rig.proxy.rss_bytes() - before < 8 * MIB
    assert rig.taken() == []


@pytest.mark.parametrize("count", [100, 1000])
async def test_pipelined_requests_are_answered_in_order_or_the_connection_ends(rig: Rig, count: int) -> None:
    client = await rig.client()
    before = rig.proxy.rss_bytes()

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            await client.send(b"".join(post(call(number)) for number in range(count)))

    sending = asyncio.create_task(send())
    ids: list[int] = []
    with contextlib.suppress(EOFError):
        while len(ids) < count:
            ids.append((await client.answer()).json["id"])
    await sending

    assert ids == list(range(len(ids)))
    assert len(ids) == count or count > 100
    assert rig.proxy.rss_bytes() - before < 8 * MIB
    assert [one.body for one in rig.taken()][: len(ids)] == [call(number) for number in ids]


# -- O3 ----------------------------------------------------------------------------------------


async def streams_of(rig: Rig, count: int) -> tuple[list[Client], list[int]]:
    """Ask for so many listening streams, each of a session of its own."""
    clients = [await rig.client() for _ in range(count)]
    sessions = [await rig.session(client) for client in clients]
    statuses = []
    for client, session in zip(clients, sessions, strict=True):
        await client.send(get(session))
        head = await client.head("GET")
        statuses.append(head.status)
        if head.status == 503:
            assert head.one("retry-after")
            assert head.one("mcp-proxy-reason") == b"overloaded"
            await client.rest()
    return clients, statuses


async def test_streams_above_the_limit_are_503_and_the_others_are_unharmed(rig: Rig) -> None:
    server = McpServer()
    rig.script(server)
    clients, statuses = await streams_of(rig, 70)
    assert statuses == [200] * 20 + [503] * 50
    assert len(rig.taken()) == 20

    session = await rig.session()
    caller = await rig.client()
    assert (await caller.ask(post(call(1), session))).status == 200
    for number in range(20):
        stream = await server.streams.next()
        await stream.send(b"data: %d\n\n" % number)
    for number, client in enumerate(clients[:20]):
        assert await client.body_until(b"\n\n") == b"data: %d\n\n" % number
        client.close()
    await rig.quiet()
    rig.taken()

    _, again = await streams_of(rig, 21)
    assert again == [200] * 20 + [503]
    rig.taken()


async def test_when_descriptors_run_out_new_clients_are_told_and_old_ones_served(tmp_path: Path) -> None:
    async with bench(tmp_path, {"limits": {"head_timeout": "30s"}}, open_files=256) as rig, case(rig):
        rig.script(McpServer())
        first = await rig.client()
        session = await rig.session(first)
        crowd = [await rig.client() for _ in range(400)]
        told = [await told_to_wait(client) for client in crowd]
        assert told.count("served") >= 64
        assert told.count("served") < 400
        assert (await first.ask(post(call(1), session))).status == 200
        for client in crowd:
            client.close()

        async def is_served() -> bool:
            return await told_to_wait(await rig.client()) == "served"

        await rig.proxy.until(is_served, "a new client is served again")
        rig.taken()


async def test_streams_above_what_descriptors_allow_are_503_and_calls_go_on(tmp_path: Path) -> None:
    async with bench(tmp_path, open_files=256) as rig, case(rig):
        limit = (await rig.proxy.status())["limits"]["streams"]
        rig.script(McpServer())
        caller = await rig.client()
        sessions = [await rig.session(caller) for _ in range(limit + 50)]
        for _ in range(2):  # what the first crowd took is given back
            statuses = await asyncio.gather(*[stream_of(rig, session) for session in sessions])
            assert sorted(statuses) == [200] * limit + [503] * 50
            answer = await caller.ask(post(call(1), sessions[0]))
            assert answer.status == 200
            rig.hang_up()
            await rig.quiet()
            assert len(rig.taken()) == limit + 1
            caller = await rig.client()


async def stream_of(rig: Rig, session: str) -> int:
    """Status of a stream on a connection of its own; a refusal says when to come back."""
    client = await rig.client()
    await client.send(get(session))
    head = await client.head("GET")
    if head.status == 503:
        assert head.one("retry-after")
        assert head.one("mcp-proxy-reason") == b"overloaded"
    return head.status


# -- one client, memory ------------------------------------------------------------------------


class Slow:
    """Tool of a server: ``tools/call`` takes until the test ends its stream, all else nothing."""

    def __init__(self) -> None:
        self.calls = Streams()
        self._answer = json_answer()

    async def __call__(self, request: Seen, conn: Conn) -> None:
        method = json.loads(await request.whole()).get("method")
        if method is None:
            await conn.answer(202, [])
        else:
            await (self.calls if method == "tools/call" else self._answer)(request, conn)


DISCOVER = post(
    b'{"jsonrpc":"2.0","id":1,"method":"server/discover","params":'
    b'{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}',
    "MCP-Protocol-Version: 2026-07-28",
    "Mcp-Method: server/discover",
)
NOTIFICATION = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}'
RESPONSE = b'{"jsonrpc":"2.0","id":"s1","result":{}}'


async def refused(client: Client, raw: bytes, status: int, reason: bytes, method: str = "POST") -> None:
    answer = await client.ask(raw, method)
    assert (answer.status, answer.head.one("mcp-proxy-reason")) == (status, reason)
    assert answer.head.one("retry-after")
    assert answer.json["error"]["data"]["reason"] == reason.decode()


async def test_a_client_has_its_share_of_requests_and_can_always_free_what_it_has(tmp_path: Path) -> None:
    limits = {"limits": {"per_client": {"requests": 2}}}
    async with bench(tmp_path, limits) as rig, case(rig):
        tool = Slow()
        rig.script(McpServer(tool=tool))
        client, *busy = [await rig.client() for _ in range(3)]
        session = await rig.session(client)
        streams = []
        for number, caller in enumerate(busy):
            await caller.send(post(call(number), session))
            streams.append(await tool.calls.next())
            assert (await caller.head()).status == 200
        rig.taken()

        await refused(client, post(call(7), session), 429, b"too_many_requests")
        await refused(client, post(call(8)), 429, b"too_many_requests")
        assert rig.taken() == []
        for raw, status in (
            (DISCOVER, 200),
            (post(NOTIFICATION, session), 202),
            (post(RESPONSE, session), 202),
        ):
            assert (await client.ask(raw)).status == status
        assert len(rig.taken()) == 3

        await streams[0].end()
        await busy[0].rest()
        assert (await client.ask(post(call(9, method="ping"), session))).status == 200
        await streams[1].end()
        await busy[1].rest()
        ended = await client.ask(get(session, method="DELETE"), "DELETE")
        assert (ended.status, len(rig.taken())) == (200, 2)


async def test_a_client_has_its_share_of_streams_and_those_are_unharmed(tmp_path: Path) -> None:
    limits = {"limits": {"per_client": {"streams": 1}}}
    async with bench(tmp_path, limits) as rig, case(rig):
        server = McpServer()
        rig.script(server)
        listener, client = await rig.client(), await rig.client()
        session, other = await rig.session(client), await rig.session(client)
        await listener.send(get(session))
        stream = await server.streams.next()
        assert (await listener.head("GET")).status == 200

        await refused(client, get(other), 429, b"too_many_requests", "GET")
        assert (await client.ask(post(call(1), other))).status == 200
        await stream.send(b"data: 1\n\n")
        assert await listener.body_until(b"\n\n") == b"data: 1\n\n"
        listener.close()
        await rig.quiet()
        await client.send(get(other))
        assert (await client.head("GET")).status == 200
        assert len(rig.taken()) == 3


async def test_a_client_has_its_share_of_connections(tmp_path: Path) -> None:
    limits = {"limits": {"per_client": {"connections": 3}}}
    async with bench(tmp_path, limits) as rig, case(rig):
        rig.script(McpServer())
        clients = [await rig.client() for _ in range(3)]
        assert [(await client.ask(post(call(1)))).status for client in clients] == [200] * 3
        surplus = await rig.client()
        await refused(surplus, post(call(2)), 429, b"too_many_requests")
        await surplus.closed()
        assert [(await client.ask(post(call(3)))).status for client in clients] == [200] * 3
        assert len(rig.taken()) == 6


async def test_without_memory_streams_and_calls_above_a_few_are_503_and_the_few_are_served(
    tmp_path: Path,
) -> None:
    few = 8
    async with bench(tmp_path, {"limits": {"memory": "16MiB"}}) as rig, case(rig):

        async def has_looked() -> bool:
            return "limits.memory is 16 MiB" in rig.proxy.output

        await rig.proxy.until(has_looked, "the proxy has looked at its memory")
        tool = Slow()
        server = McpServer(tool=tool)
        rig.script(server)
        client = await rig.client()
        sessions = [await rig.session(client) for _ in range(few)]
        for session in sessions:
            assert await stream_of(rig, session) == 200
        await refused(client, get(sessions[0]), 503, b"overloaded", "GET")
        streams = [await server.streams.next() for _ in range(few)]
        for number, session in enumerate(sessions):
            caller = await rig.client()
            await caller.send(post(call(number), session))
            assert (await caller.head()).status == 200
        await refused(client, post(call(99), sessions[0]), 503, b"overloaded")
        for stream in [*streams, *[await tool.calls.next() for _ in range(few)]]:
            await stream.end()
        await rig.quiet()
        assert (await client.ask(post(call(1, method="ping"), sessions[0]))).status == 200
        assert len(rig.taken()) == 2 * few + 1


async def told_to_wait(client: Client) -> str:
    """``served``, ``503`` or ``closed``; a client left hanging fails."""
    try:
        answer = await client.ask(post(call()))
    except (EOFError, ConnectionError):
        return "closed"
    if answer.status == 503:
        assert answer.head.one("retry-after")
        return "503"
    assert answer.status == 200
    return "served"
