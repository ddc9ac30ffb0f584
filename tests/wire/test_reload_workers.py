"""Another configuration for several workers: all of them have it, also those that begin while it comes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.tools.backend import Backend
from tests.tools.client import Client, call, post
from tests.tools.mcp_backend import Streams, json_answer
from tests.wire.reloading import Site, early, flows, pools
from tests.wire.team import SESSIONS, Team, team


def having(backend: Backend, secret: str, **others: Any) -> dict[str, Any]:
    return {"workers": 2, **pools([backend], credentials={"authorization": secret}), **SESSIONS, **others}


def site_of(crew: Team, folder: Path) -> Site:
    return Site(crew.proxy, folder / "proxy.yaml")


async def credential(crew: Team, pid: int) -> bytes:
    """What a backend gets from this worker."""
    crew.backend.take()
    async with await crew.connect(pid):
        return crew.backend.take_one().head.one("authorization") or b""


async def test_all_workers_reload_and_a_stream_goes_on_in_each(tmp_path: Path) -> None:
    async with team(tmp_path) as crew:
        proxy = site_of(crew, tmp_path)
        streams = Streams()
        pids = await crew.pids()
        open_ = [await crew.stream(pid, streams) for pid in pids]
        await proxy.reload(having(crew.backend, "Bearer new"))
        assert [await credential(crew, pid) for pid in pids] == [b"Bearer new"] * 2
        for client, stream in open_:
            await flows(client, stream, "still")
            client.close()
        log = await proxy.refused("pools: {}")
        assert "stays in force" in log
        assert "the last reload failed" in await proxy.readiness()
        assert [await credential(crew, pid) for pid in pids] == [b"Bearer new"] * 2
        assert await crew.pids() == pids


async def test_workers_share_the_new_limits(tmp_path: Path) -> None:
    async with team(tmp_path) as crew:
        proxy = site_of(crew, tmp_path)
        await proxy.reload(having(crew.backend, "Bearer new", limits={"streams": 6, "requests": 8}))
        limits = (await crew.proxy.status())["limits"]
        assert (limits["streams"], limits["requests"]) == (6, 8)


async def test_a_worker_that_comes_later_has_what_was_reloaded(tmp_path: Path) -> None:
    async with team(tmp_path) as crew:
        proxy = site_of(crew, tmp_path)
        await proxy.reload(having(crew.backend, "Bearer new"))
        victim, _ = await crew.pids()
        os.kill(victim, signal.SIGKILL)
        await crew.replaced(victim)
        for pid in await crew.pids():
            assert await credential(crew, pid) == b"Bearer new"


async def test_a_worker_that_dies_while_it_is_told_comes_back_with_the_new_one(tmp_path: Path) -> None:
    async with team(tmp_path) as crew:
        proxy = site_of(crew, tmp_path)
        victim, other = await crew.pids()
        before = await proxy.reloads()
        os.kill(victim, signal.SIGSTOP)
        proxy.place(proxy.text(having(crew.backend, "Bearer new")))
        proxy.hang_up()
        # nobody knows when it is asked; whenever it was, it dies with the question or before it
        await crew.proxy.admin("/livez")
        os.kill(victim, signal.SIGKILL)
        await proxy.reloaded(before + 1)
        assert await proxy.is_current(), proxy.log()
        await crew.replaced(victim)
        for pid in await crew.pids():
            assert await credential(crew, pid) == b"Bearer new"
        assert other in await crew.pids()


async def test_a_worker_that_begins_while_others_are_told_does_not_miss_it(tmp_path: Path) -> None:
    """One worker is frozen so that the reload lasts; meanwhile another one is replaced, and begins with
    what was in force."""
    async with team(tmp_path) as crew:
        proxy = site_of(crew, tmp_path)
        slow, victim = await crew.pids()
        before = await proxy.reloads()
        os.kill(slow, signal.SIGSTOP)
        try:
            proxy.place(proxy.text(having(crew.backend, "Bearer new")))
            proxy.hang_up()
            os.kill(victim, signal.SIGKILL)

            async def is_replaced() -> bool:
                return await crew.proxy.metric("mcp_proxy_worker_restarts_total") >= 1

            await crew.proxy.until(is_replaced, "a worker in its place")
        finally:
            os.kill(slow, signal.SIGCONT)
        await proxy.reloaded(before + 1)
        await crew.replaced(victim)
        for pid in await crew.pids():
            assert await credential(crew, pid) == b"Bearer new"


async def test_a_worker_that_still_begins_when_the_others_have_been_told_does_not_miss_it(
    tmp_path: Path,
) -> None:
    async with team(tmp_path) as crew:
        proxy = site_of(crew, tmp_path)
        victim, _ = await crew.pids()
        os.kill(victim, signal.SIGKILL)

        async def is_replaced() -> bool:
            return await crew.proxy.metric("mcp_proxy_worker_restarts_total") >= 1

        await crew.proxy.until(is_replaced, "another one is being started")
        await proxy.reload(having(crew.backend, "Bearer new"))
        await crew.replaced(victim)
        for pid in await crew.pids():
            assert await credential(crew, pid) == b"Bearer new"


async def test_what_is_drained_stays_so_in_a_worker_that_begins_during_a_reload(tmp_path: Path) -> None:
    async with team(tmp_path) as crew, Backend(json_answer()) as other:
        proxy = site_of(crew, tmp_path)
        both = pools([crew.backend, other], credentials={"authorization": "Bearer new"})
        await proxy.reload({"workers": 2, **both, **SESSIONS})
        target = f"/backends/{quote(other.url, safe='')}/drain?for=1h"
        async with await Client.connect(crew.proxy.admin_port) as admin:
            answer = await admin.ask(post(b"", "Connection: close", target=target))
            assert answer.status in (200, 202), answer
        victim, _ = await crew.pids()
        os.kill(victim, signal.SIGKILL)

        async def is_replaced() -> bool:
            return await crew.proxy.metric("mcp_proxy_worker_restarts_total") >= 1

        await crew.proxy.until(is_replaced, "another one is being started")
        await proxy.reload({"workers": 2, **both, **SESSIONS, "limits": {"body": "1MiB"}})
        await crew.replaced(victim)
        other.take()
        for pid in await crew.pids():
            await crew.call(pid, 10)
        assert other.take() == []


async def test_a_hang_up_of_one_worker_means_nothing(tmp_path: Path) -> None:
    async with team(tmp_path) as crew:
        pids = await crew.pids()
        for pid in pids:
            os.kill(pid, signal.SIGHUP)
        for pid in pids:
            await credential(crew, pid)
        assert await crew.pids() == pids


async def test_reloads_while_the_workers_drain_harm_nothing(tmp_path: Path) -> None:
    streams = Streams()
    async with team(tmp_path) as crew:
        proxy = site_of(crew, tmp_path)
        open_ = [await crew.stream(pid, streams) for pid in await crew.pids()]
        crew.proxy.process.terminate()
        await crew.draining()
        await proxy.reload(having(crew.backend, "Bearer new"))
        for client, stream in open_:
            await flows(client, stream, "still")
            await stream.end()
            assert (await client.rest()).framing == "clean"
            client.close()
            proxy.hang_up()
        assert await crew.proxy.wait() == 0, crew.proxy.output
        assert crew.proxy.traceback() == ""


async def test_a_hang_up_before_the_workers_serve_is_not_the_end(tmp_path: Path) -> None:
    async with Backend(json_answer()) as backend, early(having(backend, "Bearer one"), tmp_path) as proxy:
        client = await proxy.client()
        assert (await client.ask(post(call(1)))).status == 200
