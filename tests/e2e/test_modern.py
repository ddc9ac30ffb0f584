"""MCP 2026-07-28: no handshake, no session, any replica. Official client and servers."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import mcp.types as types
import pytest
from mcp.client.session import ClientRequestContext
from mcp.shared.subscriptions import ToolsListChanged

from tests.e2e.clients import MODERN, Guest, answer
from tests.e2e.replica import ShoutParams
from tests.tools import PATIENCE_S

PATHS = ["stateful", "json", "stateless", "stateless-json"]


@pytest.mark.parametrize("path", PATHS)
async def test_a_client_that_may_choose_stays_modern(guest: Guest, path: str) -> None:
    async with guest.connect(path, "auto") as client:
        assert client.protocol_version == MODERN
        assert answer(await client.call_tool("whoami"))["visit"] is None
    arrived = await guest.journal()
    # The client lists the tools by itself, to validate what the call has returned.
    assert {request.mcp_method for request in arrived} == {"server/discover", "tools/call", "tools/list"}
    assert {(request.method, request.session) for request in arrived} == {("POST", None)}


@pytest.mark.parametrize("path", ["stateless", "stateless-json"])
async def test_calls_are_spread_over_the_replicas(guest: Guest, path: str) -> None:
    async with guest.connect(path, MODERN) as client:
        await client.list_tools()
        served = [answer(await client.call_tool("whoami"))["replica"] for _ in range(4)]
    assert sorted(served) == ["one", "one", "two", "two"]
    arrived = [request for request in await guest.journal() if request.mcp_method == "tools/call"]
    assert [request.headers["mcp-name"] for request in arrived] == ["whoami"] * 4


async def test_progress_arrives_while_the_tool_still_runs(guest: Guest) -> None:
    seen: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)
        await guest.replicas.open_gate(f"{guest.mark}-{progress:.0f}")

    async with guest.connect("stateless", MODERN) as client:
        arguments = {"key": guest.mark, "count": 3}
        result = await client.call_tool("steps", arguments, progress_callback=on_progress)
    assert seen == [1, 2, 3]
    (served,) = [request for request in await guest.journal() if request.mcp_method == "tools/call"]
    assert answer(result) == f"done by {served.replica}"


async def test_a_question_to_the_user_is_another_round_trip_that_any_replica_can_serve(guest: Guest) -> None:
    asked: list[str] = []

    async def on_elicitation(
        _: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"topping": "capers"})

    async with guest.connect("stateless", MODERN, elicitation_callback=on_elicitation) as client:
        result = answer(await client.call_tool("order"))
    assert asked == ["Which topping?"]
    assert result.startswith("pizza with capers")
    rounds = [request for request in await guest.journal() if request.mcp_method == "tools/call"]
    assert sorted(request.replica for request in rounds) == ["one", "two"]


async def test_a_call_that_the_client_gives_up_is_cancelled_on_its_replica(guest: Guest) -> None:
    started = asyncio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        started.set()

    async with guest.connect("stateless", MODERN) as client:
        arguments = {"key": guest.mark}
        call = asyncio.create_task(client.call_tool("linger", arguments, progress_callback=on_progress))
        async with asyncio.timeout(PATIENCE_S):
            await started.wait()
            # In this revision nothing is sent to cancel: the closed connection is the signal.
            call.cancel()
            await asyncio.wait([call])
            (served,) = await guest.journal()
            await guest.replicas.was_cancelled(served.replica, guest.mark)


async def test_a_subscription_delivers_events_until_the_client_closes_it(guest: Guest) -> None:
    async with guest.connect("stateful", MODERN) as client:
        async with asyncio.timeout(PATIENCE_S), client.listen(tools_list_changed=True) as subscription:
            for _ in range(2):
                await guest.replicas.tools_changed()
                assert await anext(aiter(subscription)) == ToolsListChanged()
        assert answer(await client.call_tool("echo", {"text": "still here"})) == "still here"


class Shouted(types.Result):
    """The result of a method that no specification knows."""

    loud: str
    replica: str


class Shout(types.Request[ShoutParams, Literal["com.example/shout"]]):
    method: Literal["com.example/shout"] = "com.example/shout"
    params: ShoutParams


@pytest.mark.parametrize("mode", ["legacy", MODERN])
async def test_a_method_of_an_extension_passes(guest: Guest, mode: str) -> None:
    async with guest.connect("stateful", mode) as client:
        result = await client.session.send_request(Shout(params=ShoutParams(text="hey, ö")), Shouted)
    served = (await guest.journal())[-1] if mode == MODERN else None
    assert result.loud == "HEY, Ö"
    assert served is None or (served.mcp_method, served.replica) == ("com.example/shout", result.replica)


async def test_listings_and_their_cache_hints_pass(guest: Guest) -> None:
    listed: list[Any] = []
    for origin in (guest.replicas.origins["one"], guest.origin):
        async with guest.connect("stateful", MODERN, origin=origin) as client:
            listed.append((await client.list_tools()).model_dump())
    assert listed[0] == listed[1]
    assert listed[0]["tools"]
