"""More than the proxy takes (O2, O3): it says so, keeps serving, and gives everything back."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from tests.tools.client import Answer, Client, call, get, post
from tests.tools.http1 import chunk
from tests.tools.mcp_backend import McpServer
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
