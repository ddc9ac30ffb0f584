"""Sessions of the 2025 revisions: official client and servers, two replicas, the proxy between."""

from __future__ import annotations

import asyncio
from typing import Any

import mcp.types as types
import pytest
from mcp.client.session import ClientRequestContext, IncomingMessage

from tests.e2e.clients import Guest, answer
from tests.tools import PATIENCE_S


@pytest.mark.parametrize("path", ["stateful", "json"])
async def test_two_sessions_live_on_two_replicas_and_each_stays_where_its_state_is(
    guest: Guest, path: str
) -> None:
    async with guest.connect(path, "legacy") as a, guest.connect(path, "legacy") as b:
        seen = [(answer(await a.call_tool("whoami")), answer(await b.call_tool("whoami"))) for _ in range(3)]
    first, second = seen[0][0]["replica"], seen[0][1]["replica"]
    assert {first, second} == {"one", "two"}
    assert seen == [
        ({"replica": first, "visit": visit}, {"replica": second, "visit": visit}) for visit in (1, 2, 3)
    ]


@pytest.mark.parametrize("path", ["stateful", "json"])
async def test_everything_a_client_does_in_its_life_reaches_one_replica(guest: Guest, path: str) -> None:
    async with guest.connect(path, "legacy") as client:
        owner = answer(await client.call_tool("whoami"))["replica"]
        assert {tool.name for tool in (await client.list_tools()).tools} >= {"whoami", "echo"}
    arrived = await guest.journal()
    assert {request.replica for request in arrived} == {owner}
    sessions = {request.session for request in arrived}
    assert len(sessions - {None}) == 1
    assert [request.method for request in arrived if request.session is None] == ["POST"], "initialize"
    assert sum(request.method == "GET" for request in arrived) <= 1
    assert arrived[-1].method == "DELETE"


async def test_a_session_that_was_deleted_is_unknown_afterwards(guest: Guest) -> None:
    async with guest.connect("stateful", "legacy"):
        pass
    session = next(request.session for request in await guest.journal() if request.session)
    before = len(await guest.journal())
    async with guest.http() as http:
        message = {"jsonrpc": "2.0", "id": 7, "method": "tools/list"}
        headers = {
            "Accept": "application/json, text/event-stream",
            "Mcp-Session-Id": session,
            "Mcp-Protocol-Version": "2025-11-25",
        }
        response = await http.post("/stateful", json=message, headers=headers)
    assert response.status_code == 404
    assert response.json()["id"] == 7
    assert len(await guest.journal()) == before


@pytest.mark.parametrize("path", ["stateful", "resumable"])
async def test_progress_arrives_while_the_tool_still_runs(guest: Guest, path: str) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total, message))
        await guest.replicas.open_gate(f"{guest.mark}-{progress:.0f}")

    async with guest.connect(path, "legacy") as client:
        owner = answer(await client.call_tool("whoami"))["replica"]
        arguments = {"key": guest.mark, "count": 3}
        result = await client.call_tool("steps", arguments, progress_callback=on_progress)
    # The tool goes on only after its event was seen, so a proxy that holds events never gets here.
    assert seen == [(1, 3, "step 1"), (2, 3, "step 2"), (3, 3, "step 3")]
    assert answer(result) == f"done by {owner}"


async def test_the_server_may_ask_the_user_in_the_middle_of_a_call(guest: Guest) -> None:
    asked: list[str] = []

    async def on_elicitation(
        _: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"topping": "olives"})

    async with guest.connect("stateful", "legacy", elicitation_callback=on_elicitation) as client:
        owner = answer(await client.call_tool("whoami"))["replica"]
        result = await client.call_tool("order")
    assert asked == ["Which topping?"]
    assert answer(result) == f"pizza with olives from {owner}"


async def test_the_server_may_ask_the_model_of_the_client_in_the_middle_of_a_call(guest: Guest) -> None:
    async def on_sampling(
        _: ClientRequestContext, params: types.CreateMessageRequestParams
    ) -> types.CreateMessageResult:
        assert isinstance(params.messages[0].content, types.TextContent)
        reply = types.TextContent(type="text", text=f"{params.messages[0].content.text} Ada!")
        return types.CreateMessageResult(role="assistant", content=reply, model="a model")

    async with guest.connect("stateful", "legacy", sampling_callback=on_sampling) as client:
        assert answer(await client.call_tool("christen")) == "A name? Ada!"


async def test_notifications_outside_a_call_arrive_on_the_get_stream(guest: Guest) -> None:
    arrived: asyncio.Queue[IncomingMessage] = asyncio.Queue()

    async with guest.connect("stateful", "legacy", message_handler=arrived.put) as client:
        owner = answer(await client.call_tool("announce"))
        async with asyncio.timeout(PATIENCE_S):
            notifications = [await arrived.get(), await arrived.get()]
    assert {type(notification) for notification in notifications} == {
        types.ToolListChangedNotification,
        types.ResourceUpdatedNotification,
    }
    streams = [request for request in await guest.journal() if request.method == "GET"]
    assert [stream.replica for stream in streams] == [owner]


async def test_many_calls_at_once_on_one_session_each_get_their_own_answer(guest: Guest) -> None:
    async with guest.connect("stateful", "legacy") as client:
        calls = [client.call_tool("echo", {"text": f"call {number} — ünïcödé"}) for number in range(40)]
        answers = [answer(result) for result in await asyncio.gather(*calls)]
    assert answers == [f"call {number} — ünïcödé" for number in range(40)]


async def test_a_json_answer_of_megabytes_passes_whole(guest: Guest) -> None:
    big = "ä€𝄞x" * 250_000  # 2.5 MB of UTF-8, twice in the answer: above every holding limit.
    async with guest.connect("json", "legacy") as client:
        assert answer(await client.call_tool("echo", {"text": big})) == big


async def test_a_call_that_the_client_gives_up_is_cancelled_on_its_replica(guest: Guest) -> None:
    started = asyncio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        started.set()

    async with guest.connect("stateful", "legacy") as client:
        owner = answer(await client.call_tool("whoami"))["replica"]
        arguments = {"key": guest.mark}
        call = asyncio.create_task(client.call_tool("linger", arguments, progress_callback=on_progress))
        async with asyncio.timeout(PATIENCE_S):
            await started.wait()
            call.cancel()
            await asyncio.wait([call])
            await guest.replicas.was_cancelled(owner, guest.mark)
        assert answer(await client.call_tool("echo", {"text": "still here"})) == "still here"


async def test_a_stream_that_the_server_closed_is_resumed_on_the_same_replica(guest: Guest) -> None:
    async with guest.connect("resumable", "legacy") as client:
        owner = answer(await client.call_tool("whoami"))["replica"]
        await guest.replicas.open_gate(guest.mark)
        assert answer(await client.call_tool("hang_up", {"key": guest.mark})) == f"resumed on {owner}"
    resumptions = [request for request in await guest.journal() if "last-event-id" in request.headers]
    assert resumptions
    assert {request.replica for request in resumptions} == {owner}


def _failures() -> list[Any]:
    """What may go wrong in a call, by name."""
    unknown: types.Request[Any, Any] = types.Request(method="com.example/unheard-of", params=None)
    return [
        pytest.param(lambda client: client.call_tool("fail"), id="a tool that fails"),
        pytest.param(lambda client: client.call_tool("no such tool"), id="an unknown tool"),
        pytest.param(lambda client: client.read_resource("test://nowhere"), id="an unknown resource"),
        pytest.param(
            lambda client: client.session.send_request(unknown, types.EmptyResult), id="an unknown method"
        ),
    ]


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize("operation", _failures())
async def test_a_failure_looks_the_same_through_the_proxy_as_without_it(
    guest: Guest, mode: str, operation: Any
) -> None:
    outcomes = []
    for origin in (guest.replicas.origins["one"], guest.origin):
        async with guest.connect("stateful", mode, origin=origin) as client:
            try:
                outcomes.append(repr(await operation(client)))
            except Exception as error:
                outcomes.append(repr(error))
    assert outcomes[0] == outcomes[1]
