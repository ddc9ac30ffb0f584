"""A collector that is away, and processes that send to one: what becomes of traffic, spans, and the end.

Rules of this file: everything is recorded (``sample: 1``); the metric of the proxy says what became of spans.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import proxy
from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.client import Client, call, get, post
from tests.tools.mcp_backend import McpServer, json_answer
from tests.tools.otlp_receiver import OtlpReceiver
from tests.tools.proxy import ROOT, ProxyProcess
from tests.tools.recording import Conn, Seen
from tests.wire.rig import Rig, bench
from tests.wire.team import team
from tests.wire.traced import Parent, ask, recorded, traces

SPANS = "mcp_proxy_trace_spans_total"
CALLS = 60
QUEUE = 8192
"""Spans that wait for a collector at most; a call has two."""

NOWHERE = "http://127.0.0.1:9/mcp"


async def burst(rig: Rig) -> None:
    """Calls, all of which must be answered as if there were no collector."""
    rig.script(json_answer())
    async with await rig.client() as client:
        for number in range(CALLS):
            answer = await client.ask(post(call(number)))
            assert (answer.status, answer.json["id"]) == (200, number)
    assert len(rig.taken()) == CALLS


async def become(process: ProxyProcess, result: str, count: int) -> None:
    """Wait until so many spans came to this."""

    async def is_so() -> bool:
        return await process.metric(SPANS, result=result) >= count

    await process.until(is_so, f"{count} spans {result}: {process.output[-2000:]}")


async def ended(process: ProxyProcess) -> None:
    assert await process.stop() == 0
    assert process.traceback() == ""


@pytest.mark.parametrize("what", ["is not there", "hangs", "is overloaded", "refuses"])
async def test_a_collector_that_takes_nothing_costs_spans_and_nothing_else(tmp_path: Path, what: str) -> None:
    async with OtlpReceiver() as receiver:
        if what == "is not there":
            await receiver.stop()
        elif what == "hangs":
            receiver.hang()
        else:
            receiver.answer(503 if what == "is overloaded" else 400)
        settings = traces(receiver.endpoint, sample=1, timeout="500ms")
        async with bench(tmp_path, settings) as rig:
            await burst(rig)
            await become(rig.proxy, "failed", 2 * CALLS)
            await burst(rig)
            await ended(rig.proxy)
            assert rig.proxy.output.count("does not take spans") == 1


async def test_what_the_queue_has_no_room_for_is_dropped(tmp_path: Path) -> None:
    async with OtlpReceiver() as receiver:
        receiver.hang()
        settings = traces(receiver.endpoint, sample=1, timeout="1h", limit="none")
        async with bench(tmp_path, settings) as rig:
            await asyncio.gather(*(calls(rig, QUEUE // 8) for _ in range(5)))
            await become(rig.proxy, "dropped", 1)
            await ended(rig.proxy)
            rig.hang_up()


async def calls(rig: Rig, count: int) -> None:
    """On a connection of its own."""
    async with await rig.client() as client:
        for number in range(count):
            assert (await client.ask(post(call(number)))).status == 200


async def test_a_collector_that_comes_back_gets_what_is_new(tmp_path: Path) -> None:
    async with OtlpReceiver() as receiver:
        receiver.answer(400)
        async with bench(tmp_path, traces(receiver.endpoint, sample=1)) as rig:
            await burst(rig)
            await become(rig.proxy, "failed", 2 * CALLS)
            receiver.answer(200)
            await burst(rig)
            await receiver.spans(2 * CALLS)
            await become(rig.proxy, "exported", 2 * CALLS)
            assert await rig.proxy.metric(SPANS, result="dropped") == 0


@pytest.mark.parametrize("what", ["hangs", "is overloaded"])
async def test_the_end_does_not_wait_for_a_collector_that_may_answer_in_an_hour(
    tmp_path: Path, what: str
) -> None:
    """Its patience with the collector is longer than ours with the proxy."""
    async with OtlpReceiver() as receiver:
        if what == "hangs":
            receiver.hang()
        else:
            receiver.answer(503)
        async with bench(tmp_path, traces(receiver.endpoint, sample=1, timeout="1h")) as rig:
            await burst(rig)
            await receiver.requested(1)
            await burst(rig)
            await ended(rig.proxy)


async def test_what_is_left_at_the_end_is_sent(tmp_path: Path) -> None:
    async with OtlpReceiver() as receiver:
        async with bench(tmp_path, traces(receiver.endpoint, sample=0)) as rig:
            parents = [Parent() for _ in range(5)]
            for parent in parents:
                await ask(rig, parent.line)
            await ended(rig.proxy)
        assert {span.trace_id for span in await receiver.spans(10)} == {each.trace for each in parents}


async def test_what_the_end_cuts_off_is_sent_too(tmp_path: Path) -> None:
    over = {"limits": {"drain": "500ms"}}
    async with OtlpReceiver() as receiver:
        async with bench(tmp_path, over | traces(receiver.endpoint, sample=0)) as rig:
            listening, calling, server = Parent(), Parent(), McpServer(tool=silent)
            rig.script(server)
            listener, caller = await rig.client(), await rig.client()
            session = await rig.session()
            await listener.send(get(session, listening.line))
            await server.streams.next()
            await listener.head("GET")
            await caller.send(post(call(), session, calling.line))
            await rig.backend.arrived(2)
            await ended(rig.proxy)
            rig.hang_up()
        for parent in (listening, calling):
            spans = await recorded(receiver, parent.trace)
            assert str(spans.server.attributes["mcp_proxy.end"]).startswith("D")


async def silent(request: Seen, conn: Conn) -> None:
    """Never answers."""
    await conn.gone()


async def test_every_worker_sends_its_own(tmp_path: Path) -> None:
    async with OtlpReceiver() as receiver, team(tmp_path, **traces(receiver.endpoint, sample=1)) as workers:
        for pid in await workers.pids():
            await workers.call(pid, 3)
        spans = await receiver.spans(2 * 2 * 3)
        assert len({span.resource["service.instance.id"] for span in spans}) == 2
        assert len({span.trace_id for span in spans}) == 2 * 3
        await become(workers.proxy, "exported", 2 * 2 * 3)
        await ended(workers.proxy)


async def test_workers_do_not_wait_for_a_collector_that_hangs(tmp_path: Path) -> None:
    async with OtlpReceiver() as receiver:
        receiver.hang()
        async with team(tmp_path, **traces(receiver.endpoint, sample=1, timeout="1h")) as workers:
            for pid in await workers.pids():
                await workers.call(pid, 3)
            await receiver.requested(2)
            await ended(workers.proxy)


async def test_the_portable_door_sends_until_its_end(tmp_path: Path) -> None:
    parent = Parent()
    async with OtlpReceiver() as receiver, Backend(json_answer()) as backend:
        pool = {"pools": {"a": {"backends": [backend.url]}}, "routes": [{"path": "/mcp", "pool": "a"}]}
        async with (
            asgi(pool | traces(receiver.endpoint, sample=0)) as port,
            await Client.connect(port) as client,
        ):
            assert (await client.ask(post(call(), parent.line))).status == 200
        spans = await recorded(receiver, parent.trace)
        (seen,) = backend.take()
        context = f"00-{parent.trace}-{spans.client.span_id}-01"
        assert seen.head.all("traceparent") == [context.encode()]


@contextlib.asynccontextmanager
async def asgi(config: dict[str, Any]) -> AsyncIterator[int]:
    """The portable door under uvicorn. It ends in a thread: what it sends then has to be taken here."""
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(proxy("asgi", config))
        yield int(origin.rpartition(":")[2])
        await asyncio.to_thread(stack.close)


async def test_anybodys_word_is_followed_up_to_the_limit(tmp_path: Path) -> None:
    settings = {"sample": 0, "limit": 2}
    async with OtlpReceiver() as receiver, bench(tmp_path, traces(receiver.endpoint, **settings)) as rig:
        rig.taken()
        parents = [Parent() for _ in range(20)]
        for parent in parents:
            _, seen = await ask(rig, parent.line)
            (context,) = seen.head.all("traceparent")
            if context == parent.text.encode():
                break
        else:
            raise AssertionError("all were recorded")
        assert await rig.proxy.metric(SPANS, result="limited") == 1
        assert rig.proxy.traceback() == ""
        rig.hang_up()


async def test_without_traces_a_context_passes_as_it_came(tmp_path: Path) -> None:
    parent = Parent()
    async with bench(tmp_path) as rig:
        rig.taken()
        _, seen = await ask(rig, parent.line, "tracestate: a=1")
        assert seen.head.all("traceparent") == [parent.text.encode()]
        assert seen.head.all("tracestate") == [b"a=1"]
        assert await rig.proxy.metric(SPANS) == 0


BUILD = """
import asyncio, json, os, sys
import mcp_proxy.process, mcp_proxy.workers.child
from mcp_proxy.asgi import create_app
from mcp_proxy.config import load

async def build():
    create_app(load(None, os.environ, {}))

asyncio.run(build())
print(json.dumps(sorted(name for name in sys.modules if name.partition(".")[0] == "opentelemetry")))
os._exit(0)  # what sends spans has a thread, and nobody ends it
"""
"""Prints what a proxy has imported of OpenTelemetry."""


@pytest.mark.parametrize("is_on", [False, True])
async def test_opentelemetry_is_imported_by_those_who_want_it(tmp_path: Path, is_on: bool) -> None:
    file = tmp_path / "proxy.yaml"
    config = {"pools": {"a": {"backends": [NOWHERE]}}, "routes": [{"path": "/mcp", "pool": "a"}]}
    file.write_text(json.dumps(config | (traces(NOWHERE, sample=0) if is_on else {})))
    environment = os.environ | {"MCP_PROXY_CONFIG": str(file), "PYTHONUNBUFFERED": "1"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", BUILD),
        cwd=ROOT,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE_S):
        printed, _ = await process.communicate()
    assert process.returncode == 0
    assert bool(json.loads(printed)) is is_on
