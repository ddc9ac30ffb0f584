"""``mcp-proxy report`` on the access log of a running proxy: what went over the wire is what it says."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from asyncio.subprocess import PIPE
from typing import Any

from tests.tools import PATIENCE_S
from tests.tools.client import call, get, post
from tests.tools.mcp_backend import McpServer, json_answer
from tests.wire.rig import Rig

CALLS = 5


async def report(log: bytes) -> dict[str, Any]:
    """The report of a log on standard input, by method."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mcp_proxy", "report", "-", "--by", "method", "--format", "json"),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate(log)
    assert (process.returncode, err) == (0, b"")
    document: dict[str, Any] = json.loads(out)
    return document


async def logged(rig: Rig) -> int:
    """How many access lines there are, once there is one for every exchange that was counted."""

    async def are_there() -> bool:
        return len(rig.proxy.access_lines()) == await rig.proxy.metric("mcp_proxy_requests_total")

    await rig.quiet()
    await rig.proxy.until(are_there, "every exchange has its line")
    return len(rig.proxy.access_lines())


async def written(rig: Rig, before: int, count: int) -> bytes:
    """The access lines of the last ``count`` exchanges, once they are there."""

    async def are_there() -> bool:
        return len(rig.proxy.access_lines()) >= before + count

    await rig.proxy.until(are_there, "every exchange has its line")
    lines = rig.proxy.access_lines()[before:]
    assert len(lines) == count
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


async def test_calls_errors_and_bytes_are_those_of_the_wire(rig: Rig) -> None:
    before = await logged(rig)
    rig.script(json_answer())
    client = await rig.client()
    answers = [await client.ask(post(call())) for _ in range(CALLS)]
    stranger = await client.ask(get("Mcp-Session-Id: nobody"), "GET")
    bodies = [seen.body for seen in rig.taken()]

    found = await report(gzip.compress(await written(rig, before, CALLS + 1)))

    groups = {each["method"]: each for each in found["groups"]}
    calls = groups["tools/call"]
    assert (calls["calls"], calls["errors"], calls["streams"]) == (CALLS, 0, 0)
    assert calls["bytes_in"] == sum(map(len, bodies))
    assert calls["bytes_out"] == sum(len(answer.body) for answer in answers)
    assert 0 < calls["overhead_p50_ms"] < calls["p50_ms"] <= calls["p99_ms"]
    assert stranger.status == 404
    assert (groups["GET"]["calls"], groups["GET"]["errors"], groups["GET"]["overhead_p99_ms"]) == (1, 1, None)
    assert found["total"]["calls"] == CALLS + 1


async def test_a_stream_that_its_client_leaves_is_a_stream_and_no_error(rig: Rig) -> None:
    server = McpServer()
    rig.script(server)
    session = await rig.session()
    before = await logged(rig)
    listener = await rig.client()
    await listener.send(get(session))
    stream = await server.streams.next()
    await listener.head("GET")
    await stream.send(b"data: 1\n\n")
    await listener.body_until(b"data: 1\n\n")
    listener.close()
    await stream.conn.gone()
    rig.backend.take_one()

    found = await report(await written(rig, before, 1))

    (group,) = found["groups"]
    assert (group["method"], group["calls"], group["streams"], group["errors"]) == ("GET", 0, 1, 0)
    assert (group["bytes_out"], group["p99_ms"]) == (len(b"data: 1\n\n"), None)
