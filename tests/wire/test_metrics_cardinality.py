"""Ten thousand of whatever clients can make up: the metrics stay as many as they are, and as small."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.tools.client import Client, call, get, post
from tests.wire.rig import Rig

COUNT = 10_000
FEW = 1_000
"""Of what ends its connection and of which no label is said to be made anywhere."""
PIPELINE = 50
"""Requests on their way on one connection."""
AT_ONCE = 8
"""Connections, for requests that end theirs."""
MIB = 1024 * 1024
GROWTH = 3 * MIB
"""What is kept for each of so many would be more: a series takes some hundred bytes."""


def _method(number: int) -> bytes:
    return post(call(number, method=f"junk/{number}"), f"X-Request-Id: junk-{number}")


def _tool(number: int) -> bytes:
    junk = f"junk-{number}"
    return post(call(number, name=junk), f"MCP-Protocol-Version: {junk}", f"User-Agent: {junk}", f"{junk}: 1")


def _path(number: int) -> bytes:
    return post(call(number), target=f"/junk/{number}")


def _session(number: int) -> bytes:
    return post(call(number), f"Mcp-Session-Id: junk-{number}")


def _http_method(number: int) -> bytes:
    return get(method="JUNK-" + "".join(chr(ord("A") + int(digit)) for digit in str(number)))


def _host(number: int) -> bytes:
    return post(call(number), host=f"junk-{number}.example")


def _origin(number: int) -> bytes:
    return post(call(number), f"Origin: http://junk-{number}.example")


Make = Callable[[int], bytes]
Send = Callable[[Rig, Make, int], Awaitable[set[int]]]


async def series(rig: Rig) -> set[str]:
    """Names and labels of all that is exposed."""
    lines = (await rig.proxy.metrics()).splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


async def pipelined(rig: Rig, make: Make, count: int) -> set[int]:
    """The statuses of so many requests."""
    client = await rig.client()
    statuses = set()
    for start in range(0, count, PIPELINE):
        await client.send(b"".join(map(make, range(start, start + PIPELINE))))
        statuses |= {(await client.answer()).status for _ in range(PIPELINE)}
    return statuses


async def one_by_one(rig: Rig, make: Make, count: int) -> set[int]:
    """The same, with a connection for each."""
    numbers = iter(range(count))
    statuses = set()

    async def ask() -> None:
        for number in numbers:
            async with await Client.connect(rig.proxy.port) as client:
                statuses.add((await client.ask(make(number))).status)

    await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    return statuses


@pytest.mark.parametrize(
    ("make", "send", "count", "status", "passes"),
    [
        pytest.param(_method, pipelined, COUNT, 200, True, id="JSON-RPC methods and request ids"),
        pytest.param(_tool, pipelined, COUNT, 200, True, id="tools, revisions, agents and fields"),
        pytest.param(_session, pipelined, COUNT, 404, False, id="sessions"),
        pytest.param(_path, one_by_one, COUNT, 404, False, id="paths"),
        pytest.param(_http_method, one_by_one, FEW, 400, False, id="HTTP methods"),
        pytest.param(_host, one_by_one, FEW, 421, False, id="hosts"),
        pytest.param(_origin, one_by_one, FEW, 403, False, id="origins"),
    ],
)
async def test_what_clients_make_up_adds_no_series_and_no_memory(
    rig: Rig,
    make: Make,
    send: Send,
    count: int,
    status: int,
    passes: bool,
) -> None:
    await send(rig, lambda number: make(COUNT + number), PIPELINE)  # one of each kind, and what is made once
    rig.taken()
    before, requests = await series(rig), await rig.proxy.metric("mcp_proxy_requests_total")
    rss = rig.proxy.rss_bytes()

    assert await send(rig, make, count) == {status}

    assert await series(rig) == before
    assert await rig.proxy.metric("mcp_proxy_requests_total") == requests + count
    assert rig.proxy.rss_bytes() - rss < GROWTH
    assert len({seen.head.raw + seen.body for seen in rig.taken()}) == (count if passes else 0)
