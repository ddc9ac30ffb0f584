"""Replicas behind the shipped nginx configuration that stop, die and come back, and nginx itself when it is
reloaded: no POST fails while one replica serves, and none runs twice, whatever happens.

Rules of this file: every call has a number of its own, and the servers write down which they were asked for.
Nobody waits for a time: the next replica goes when every client has been served again.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.tools import PATIENCE_S
from tests.tools.client import Client, call, get, post
from tests.tools.http1 import LAST_CHUNK
from tests.tools.mcp_backend import INITIALIZE, JSON, McpServer, Stream, result
from tests.tools.nginx_site import NginxSite, nginx_site
from tests.tools.recording import Conn, Seen

CLIENTS = 6


class Ledger(McpServer):
    """Writes down the number of every call; each third is answered with an event stream."""

    def __init__(self, name: str) -> None:
        super().__init__(name, tool=self._call)
        self.ran: collections.Counter[int] = collections.Counter()

    async def _call(self, request: Seen, conn: Conn) -> None:
        message = json.loads(await request.whole())
        self.ran[message["id"]] += 1
        if message["id"] % 3:
            await conn.answer(200, [JSON], result(message, ok=True))
            return
        await conn.stream_head("")
        await conn.send_chunk(b'data: {"step":1}\n\n')
        await conn.send_chunk(b"data: " + result(message, ok=True) + b"\n\n")
        await conn.send(LAST_CHUNK)


class Walker:
    """A client with one session that calls all the time, and listens all the time."""

    def __init__(self, port: int, numbers: Callable[[], int]) -> None:
        self.port = port
        self._number = numbers
        self.field = ""
        self.calls = 0
        self.failures: list[str] = []
        self.ends: list[str] = []
        """How each of its GET streams ended."""
        self.listens = False
        self.stops = False

    async def begin(self) -> None:
        async with await Client.connect(self.port) as client:
            answer = await client.ask(post(INITIALIZE))
        assert answer.status == 200, answer
        self.field = f"Mcp-Session-Id: {(answer.head.one('mcp-session-id') or b'').decode()}"

    async def call_on(self) -> None:
        client = await Client.connect(self.port)
        while not self.stops:
            number = self._number()
            answer = await client.ask(post(call(number), self.field))
            whole = answer.status == 200 and answer.framing == "clean"
            if not whole or b'"id": %d' % number not in answer.body:
                self.failures.append(f"call {number}: {answer}")
            self.calls += 1
            if answer.says_close or answer.framing != "clean":
                client.close()
                client = await Client.connect(self.port)
        client.close()

    async def listen_on(self) -> None:
        while not self.stops:
            async with await Client.connect(self.port) as client:
                await client.send(get(self.field))
                head = await client.head("GET")
                if head.status != 200:
                    self.failures.append(f"GET: {head.raw!r}")
                    continue
                self.listens = True
                self.ends.append((await client.rest()).framing)
                self.listens = False


@contextlib.asynccontextmanager
async def walking(port: int) -> AsyncIterator[list[Walker]]:
    numbers = iter(range(1, 10**9))
    walkers = [Walker(port, lambda: next(numbers)) for _ in range(CLIENTS)]
    for walker in walkers:
        await walker.begin()
    calling = [asyncio.create_task(walker.call_on()) for walker in walkers]
    listening = [asyncio.create_task(walker.listen_on()) for walker in walkers]
    try:
        yield walkers
        for walker in walkers:
            walker.stops = True
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*calling)
    finally:
        for task in (*calling, *listening):
            task.cancel()
        await asyncio.gather(*calling, *listening, return_exceptions=True)


async def served_again(site: NginxSite, walkers: list[Walker], at: int = 0) -> None:
    """Every client has made twenty more calls and listens; ``at``: a replica that works."""
    goals = [walker.calls + 20 for walker in walkers]

    async def is_so() -> bool:
        return all(
            walker.calls >= goal and walker.listens for walker, goal in zip(walkers, goals, strict=True)
        )

    await site.replicas[at].proxy.until(is_so, "every client is served again")


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[NginxSite]:
    async with nginx_site(tmp_path, limits={"drain_delay": "0s"}) as site:
        yield site
        for backend in site.backends:
            assert backend.violations == []


def ran(*ledgers: Ledger) -> collections.Counter[int]:
    return sum((ledger.ran for ledger in ledgers), collections.Counter())


async def test_a_rolling_restart_fails_no_post_and_runs_none_twice(site: NginxSite) -> None:
    ledgers = [Ledger("a"), Ledger("b")]
    for backend, ledger in zip(site.backends, ledgers, strict=True):
        backend.handler = ledger
    async with walking(site.port) as walkers:
        await served_again(site, walkers)
        for replica in site.replicas:
            await replica.stop()
            await replica.start()
            await served_again(site, walkers)
    assert [failure for walker in walkers for failure in walker.failures] == []
    assert {end for walker in walkers for end in walker.ends} == {"clean"}
    assert all(walker.ends for walker in walkers), "every client was moved"
    counted = ran(*ledgers)
    assert set(counted.values()) == {1}
    assert sum(counted.values()) == sum(walker.calls for walker in walkers)
    assert sum(len(ledger.sessions) for ledger in ledgers) == CLIENTS, "no session was made anew"


async def test_a_replica_that_dies_costs_only_what_was_on_it_and_nothing_runs_twice(site: NginxSite) -> None:
    """SIGKILL under load: calls that were in it fail as what they are, and the others never notice."""
    ledgers = [Ledger("a"), Ledger("b")]
    for backend, ledger in zip(site.backends, ledgers, strict=True):
        backend.handler = ledger
    async with walking(site.port) as walkers:
        await served_again(site, walkers)
        await site.replicas[0].kill()
        await served_again(site, walkers, at=1)
        await site.replicas[0].start()
    failures = [failure for walker in walkers for failure in walker.failures]
    assert len(failures) <= 2 * CLIENTS, "at most one call and one stream of each"
    assert max(ran(*ledgers).values()) == 1
    for failure in failures:
        assert "edge_lost" in failure or "framing='truncated'" in failure or "framing='reset'" in failure


async def test_a_dead_replica_is_not_noticed(site: NginxSite) -> None:
    await site.replicas[0].kill()
    client = await site.client()
    for number in range(50):
        answer = await client.ask(post(call(number)))
        assert (answer.status, answer.json["id"]) == (200, number)
    assert len(site.taken()) == 50
    await site.replicas[0].start()


async def test_without_any_replica_clients_are_told_to_come_again(site: NginxSite) -> None:
    field = await opened(site)
    await asyncio.gather(*(replica.kill() for replica in site.replicas))
    requests = {"POST": post(call(), field), "GET": get(field), "DELETE": get(field, method="DELETE")}
    for method, request in requests.items():
        answer = await site.ask(request, method)
        assert (answer.status, answer.reason) == (503, "edge_unavailable")
        assert answer.head.one("retry-after") == b"1"
        assert (answer.json["id"], answer.json["error"]["code"]) == (None, -32603)
    await asyncio.gather(*(replica.start() for replica in site.replicas))

    async def is_back() -> bool:
        return (await site.ask(post(call(), field))).status == 200

    await site.replicas[0].proxy.until(is_back, "the session is served again")


async def opened(site: NginxSite) -> str:
    site.script(McpServer())
    return await site.session()


# --- reload -------------------------------------------------------------------------------------------------


async def test_a_reload_cuts_no_stream_and_fails_no_call(site: NginxSite) -> None:
    server = McpServer()
    site.script(server)
    field = await site.session()
    client, stream = await site.listen(server, field)
    await flows(client, stream, b"data: before\n\n")
    before = set(site.nginx.workers())
    site.nginx.reload()

    async def is_new() -> bool:
        """Workers with the new configuration serve beside one that still has the stream."""
        assert (await site.ask(post(call(), field))).status == 200
        return bool(set(site.nginx.workers()) - before) and bool(set(site.nginx.workers()) & before)

    await site.replicas[0].proxy.until(is_new, "new workers")
    await flows(client, stream, b"data: after\n\n")
    await stream.end()
    assert (await client.rest()).framing == "clean"

    async def is_gone() -> bool:
        return not set(site.nginx.workers()) & before

    await site.replicas[0].proxy.until(is_gone, "the old workers have ended")


async def flows(client: Client, stream: Stream, event: bytes) -> None:
    await stream.send(event)
    await client.body_until(event)
