"""Reloads at the worst moment, and configurations that turn everything around while sessions live.

Rules of this file: what a session gets is judged by who answers, never by a status alone; the counts of
sessions are compared right after it all.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.client import call, get, post
from tests.tools.mcp_backend import Streams, json_answer
from tests.wire.reloading import Config, Site, early, flows, pools, servers, site

KEY = "a-key-for-the-reloads-0123456789-abcdef"


def two(first: Any, second: Any, **settings: Any) -> Config:
    """Pool ``one`` at ``/mcp`` and pool ``two`` at ``/two``."""
    return {
        "pools": {
            "one": {"backends": [first.url], **settings},
            "two": {"backends": [second.url], **settings},
        },
        "routes": [{"path": "/mcp", "pool": "one"}, {"path": "/two", "pool": "two"}],
    }


async def counted(proxy: Site) -> dict[str, int]:
    """Sessions by backend, as operators see them."""
    status = await proxy.proxy.status()
    return {
        backend["id"]: backend["sessions"]
        for pool in status["pools"].values()
        for backend in pool["backends"]
    }


async def test_a_storm_of_signals_ends_with_what_the_file_says(tmp_path: Path) -> None:
    async with servers("a") as ((a,), (backend,)), site(pools([backend]), tmp_path) as proxy:
        session = await proxy.session()
        client, stream = await proxy.listening(session, a)
        for number in range(200):
            if number % 20 == 0:
                config = pools([backend], credentials={"authorization": f"Bearer {number}"})
                proxy.place(proxy.text(config))
            proxy.hang_up()
            if number % 10 == 0:
                assert (await session.call()).status == 200
        backend.take()

        async def is_last() -> bool:
            assert (await session.call()).status == 200
            return backend.take_one().head.one("authorization") == b"Bearer 180"

        await proxy.proxy.until(is_last, "the last one is in force")
        assert await proxy.reloads("failed") == 0
        await flows(client, stream, "still")


async def test_a_signal_before_it_serves_is_not_the_end(tmp_path: Path) -> None:
    async with Backend(json_answer()) as backend, early(pools([backend]), tmp_path) as proxy:
        assert (await (await proxy.client()).ask(post(call(1)))).status == 200


async def test_a_reload_during_the_drain_changes_nothing_about_the_end(tmp_path: Path) -> None:
    streams = Streams()
    async with Backend(streams) as backend, site(pools([backend]), tmp_path) as proxy:
        client = await proxy.client()
        await client.send(post(call(1)))
        stream = await streams.next()
        await client.head()
        proxy.proxy.process.terminate()

        async def is_draining() -> bool:
            return (await proxy.proxy.admin("/readyz")).status == 503

        await proxy.proxy.until(is_draining, "it is draining")
        await proxy.reload({**pools([backend], balance="hash"), "limits": {"drain": "20s"}})
        assert (await proxy.proxy.admin("/readyz")).status == 503
        await flows(client, stream, "still")
        proxy.hang_up()
        await stream.end()
        assert (await client.rest()).framing == "clean"
        assert await proxy.proxy.wait() == 0, proxy.proxy.output


async def test_a_file_that_changes_all_the_time_is_never_taken_half(tmp_path: Path) -> None:
    """Both pools always have the same credential, or the file was mixed up."""
    async with Backend(json_answer()) as backend:

        def having(number: int) -> Config:
            return two(backend, backend, credentials={"authorization": f"Bearer {number}"})

        async with site(having(0), tmp_path) as proxy:
            client = await proxy.client()
            for number in range(1, 40):
                proxy.place(proxy.text(having(number)))
                proxy.hang_up()
                proxy.place(proxy.text(having(number + 1000)))
                for target in ("/mcp", "/two"):
                    assert (await client.ask(post(call(number), target=target))).status == 200
            await proxy.reload(having(2000))
            backend.take()
            for target in ("/mcp", "/two"):
                assert (await client.ask(post(call(1), target=target))).status == 200
            assert [seen.head.one("authorization") for seen in backend.take()] == [b"Bearer 2000"] * 2


async def test_a_file_that_is_half_written_fails_once_and_heals_without_a_signal(tmp_path: Path) -> None:
    async with Backend(json_answer()) as backend, site(pools([backend]), tmp_path) as proxy:
        text = proxy.text(pools([backend], balance="hash"))
        await proxy.refused(text[: len(text) // 2])
        proxy.place(text)
        await proxy.reloaded(1, "done")
        assert await proxy.is_current()


async def test_routes_that_are_swapped_take_no_session_to_a_strange_backend(tmp_path: Path) -> None:
    async with servers("a", "b") as ((a, b), backends), site(two(*backends), tmp_path) as proxy:
        first, second = await proxy.session(), await proxy.session("/two")
        client, stream = await proxy.listening(first, a)
        for backend in backends:
            backend.take()
        config = two(*backends)
        for route, pool in zip(config["routes"], ("two", "one"), strict=True):
            route["pool"] = pool
        await proxy.reload(config)
        for session in (first, second):
            answer = await session.call()
            assert answer.status in (404, 503), answer
        assert [backend.take() for backend in backends] == [[], []]
        assert await counted(proxy) == {backend.url: 0 for backend in backends}
        await flows(client, stream, "an open stream goes on where it is")
        assert (await proxy.session()).id in b.sessions
        assert (await proxy.session("/two")).id in a.sessions

        await proxy.reload(two(*backends))
        assert (await first.call()).status == 200
        assert (await second.call()).status == 200
        assert await proxy.proxy.metric("mcp_proxy_sessions") == 4


async def test_a_pool_under_another_name_keeps_its_sessions_and_its_streams(tmp_path: Path) -> None:
    async with servers("a") as ((a,), (backend,)), site(pools([backend], drain="2s"), tmp_path) as proxy:
        session = await proxy.session()
        client, stream = await proxy.listening(session, a)
        old = pools([backend], drain="2s")
        await proxy.reload(
            {"pools": {"other": old["pools"]["tools"]}, "routes": [{"path": "/mcp", "pool": "other"}]}
        )
        assert (await session.call()).status == 200
        await flows(client, stream, "still")
        assert await proxy.proxy.metric("mcp_proxy_sessions", pool="other") == 1
        assert await proxy.proxy.metric("mcp_proxy_sessions", pool="tools") == 0
        assert (await client.rest()).framing == "clean"
        client, stream = await proxy.listening(session, a)
        await flows(client, stream, "again")
        assert (await session.call()).status == 200


async def test_a_session_that_ends_after_its_pool_was_renamed_ends_its_stream(tmp_path: Path) -> None:
    async with servers("a") as ((a,), (backend,)), site(pools([backend]), tmp_path) as proxy:
        session = await proxy.session()
        client, _ = await proxy.listening(session, a)
        old = pools([backend])
        await proxy.reload(
            {"pools": {"other": old["pools"]["tools"]}, "routes": [{"path": "/mcp", "pool": "other"}]}
        )
        assert (await session.client.ask(get(session.field, method="DELETE"), "DELETE")).status == 200
        assert (await client.rest()).framing == "clean"


async def test_a_backend_that_goes_and_comes_back_in_time_keeps_its_sessions(tmp_path: Path) -> None:
    async with servers("a", "b") as ((a, _), backends), site(pools(backends), tmp_path) as proxy:
        session = await proxy.session_on(a)
        client, stream = await proxy.listening(session, a)
        expected = await counted(proxy)
        for _ in range(5):
            await proxy.reload(pools(backends[1:]))
            assert await counted(proxy) == expected
            assert (await session.call()).status == 200
            await proxy.reload(pools(backends))
            assert await counted(proxy) == expected
            assert (await session.call()).status == 200
        assert "draining" not in await proxy.readiness()
        await flows(client, stream, "still")
        await proxy.session_on(a)


@pytest.mark.parametrize("store", ["signed", "memory"])
async def test_a_session_survives_a_backend_that_had_left_and_is_added_again(
    store: str, tmp_path: Path
) -> None:
    """Its client did not ask meanwhile."""
    sessions = {"store": "signed", "keys": [KEY]} if store == "signed" else {}
    async with servers("a", "b") as ((a, _), backends):

        def having(*some: Backend) -> Config:
            return {**pools(some, drain="1s"), "sessions": sessions}

        async with site(having(*backends), tmp_path) as proxy:
            session = await proxy.session()
            while backends[0].take() == []:
                session = await proxy.session()
            await proxy.reload(having(backends[1]))

            async def has_left() -> bool:
                return backends[0].url not in await counted(proxy)

            await proxy.proxy.until(has_left, "the backend has left")
            await proxy.reload(having(*backends))
            assert (await session.call()).status == 200
            assert len(backends[0].take()) == 1
            assert (await counted(proxy))[backends[0].url] == len(a.sessions)


async def test_named_backends_become_found_ones_and_back_and_sessions_stay(tmp_path: Path) -> None:
    async with servers("a") as ((a,), (backend,)):
        address = f"http://127.0.0.1:{backend.port}/mcp"
        found = {
            "pools": {"tools": {"discover": {"dns": "localhost", "port": backend.port, "every": "1s"}}},
            "routes": [{"path": "/mcp", "pool": "tools"}],
        }
        async with site(pools([address]), tmp_path) as proxy:
            session = await proxy.session()
            client, stream = await proxy.listening(session, a)
            for config in (found, pools([address]), found, pools([address])):
                await proxy.reload(config)
                await proxy.session()
                assert (await session.call()).status == 200
                await flows(client, stream, "still")
            await proxy.proxy.until(lambda: _is_staying(proxy), "the named one stays")
            assert (await counted(proxy))[address] == len(a.sessions)


async def _is_staying(proxy: Site) -> bool:
    return "1 of 1 backends up" in await proxy.readiness()


async def test_a_call_whose_backend_is_down_and_then_removed_is_told_so(tmp_path: Path) -> None:
    """The owner is dialled again after a pause, in which it may have been forgotten."""
    async with servers("a", "b") as ((a, _), backends), site(pools(backends), tmp_path) as proxy:
        session = await proxy.session_on(a)
        await backends[0].down()
        waiting = asyncio.create_task(session.call())
        proxy.place(proxy.text(pools(backends[1:])))
        proxy.hang_up()
        async with asyncio.timeout(PATIENCE_S):
            assert (await waiting).status in (404, 503)
        await proxy.reloaded(1, "done")
        answer = await session.call()
        assert (answer.status, answer.reason) == (404, "session_not_found")


async def test_a_thousand_unknown_keys_are_all_told_and_the_loop_goes_on(tmp_path: Path) -> None:
    async with Backend(json_answer()) as backend, site(pools([backend]), tmp_path) as proxy:
        document = json.loads(proxy.text(pools([backend])))
        document |= {f"unknown_{number}": number for number in range(1000)}
        log = await proxy.refused(json.dumps(document, indent=1))
        assert log.count("unknown_") >= 1000
        assert (await (await proxy.client()).ask(post(call(1)))).status == 200
        await proxy.reload(pools([backend]))
