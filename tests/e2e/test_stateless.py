"""Servers of the 2025 revisions that keep no session: nothing sticks, nothing is invented."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.clients import Guest, answer
from tests.tools import PATIENCE_S

PATHS = ["stateless", "stateless-json"]


@pytest.mark.parametrize("path", PATHS)
async def test_calls_without_a_session_are_spread_over_the_replicas(guest: Guest, path: str) -> None:
    async with guest.connect(path, "legacy") as client:
        await client.list_tools()  # or the client does it by itself, between two calls
        served = [answer(await client.call_tool("whoami")) for _ in range(4)]
    assert sorted(visit["replica"] for visit in served) == ["one", "one", "two", "two"]
    assert {visit["visit"] for visit in served} == {None}
    arrived = await guest.journal()
    assert {(request.method, request.session) for request in arrived} == {("POST", None)}


async def test_progress_arrives_while_the_tool_still_runs(guest: Guest) -> None:
    seen: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)
        await guest.replicas.open_gate(f"{guest.mark}-{progress:.0f}")

    async with guest.connect("stateless", "legacy") as client:
        arguments = {"key": guest.mark, "count": 3}
        result = await client.call_tool("steps", arguments, progress_callback=on_progress)
    assert seen == [1, 2, 3]
    assert answer(result) in ("done by one", "done by two")


@pytest.mark.parametrize("path", PATHS)
async def test_a_listening_stream_without_a_session_is_refused_before_the_server_hangs(
    guest: Guest, path: str
) -> None:
    # The server would answer, and then ping for ever.
    async with asyncio.timeout(PATIENCE_S), guest.http() as http:
        response = await http.get(f"/{path}", headers={"Accept": "text/event-stream"})
    assert response.status_code == 405
    assert "POST" in response.headers["allow"]
    assert await guest.journal() == []
