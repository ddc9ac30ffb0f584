"""Requests of the stateless era that one backend can serve better than the others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mcp_proxy.affinity import Affinity
from mcp_proxy.errors import StoreError
from tests.unit.fakes import settle
from tests.unit.gatehouse import (
    EVENTS,
    JSON,
    USER,
    Client,
    Gatehouse,
    by_header,
    modern,
    slow_house,
)
from tests.unit.poolside import unreachable

TAP = 1024
TENANT = b"x-tenant"
ACCEPTS = (b"accept-encoding", b"gzip")


def tapped(**options: Any) -> Gatehouse:
    return Gatehouse(4, tap=TAP, **options)


def answer(**result: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 7, "result": result}).encode()


TASK = answer(resultType="task", taskId="t-1", status="working")
ASKS = answer(resultType="input_required", requestState="s-1")


def task(method: str = "tasks/get", task_id: str = "t-1", *headers: tuple[bytes, bytes]) -> tuple[Any, ...]:
    return (*modern(method, taskId=task_id), *headers)


def learn(house: Gatehouse, body: bytes, *headers: tuple[bytes, bytes]) -> str:
    """A call is answered with ``body``; by which backend."""
    client = house.ask(*modern("tools/call"), *headers)
    attempt = house.take()
    attempt.answer(200, body, JSON)
    assert (client.reply.status, client.reply.body) == (200, body)
    return attempt.backend


def reached(house: Gatehouse, *request: Any) -> str:
    house.ask(*request)
    attempt = house.take()
    attempt.answer(200, answer(resultType="complete"), JSON)
    return attempt.backend


# --- affinity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["principal", "client", "header:x-tenant"])
async def test_a_caller_stays_with_a_backend(setting: str) -> None:
    house = Gatehouse(4, affinity=Affinity(setting), identify=by_header)
    request = (*modern("tools/call"), (USER, b"alice"), (TENANT, b"acme"))
    assert len({reached(house, *request) for _ in range(12)}) == 1
    house.assert_quiet()


async def test_callers_are_spread_and_those_without_a_name_are_balanced() -> None:
    house = Gatehouse(4, identify=by_header)
    named = {reached(house, *modern("tools/call"), (USER, b"user %d" % n)) for n in range(40)}
    nameless = [reached(house, *modern("tools/call")) for _ in range(4)]
    assert len(named) == len(set(nameless)) == 4


async def test_affinity_gives_way_to_a_backend_that_refuses() -> None:
    house = Gatehouse(4, identify=by_header)
    favourite = reached(house, *modern("tools/call"), (USER, b"alice"))
    client = house.ask(*modern("tools/call"), (USER, b"alice"))
    attempt = house.take()
    assert attempt.backend == favourite
    attempt.fail("refused")
    second = house.take()
    assert second.backend != favourite
    second.answer(200, b"{}", JSON)
    assert client.reply.status == 200
    house.assert_quiet()


# --- what the tap learns --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
async def test_a_task_is_asked_for_where_it_is(method: str) -> None:
    house = tapped()
    owner = learn(house, TASK)
    assert {reached(house, *task(method)) for _ in range(6)} == {owner}
    house.assert_quiet()


async def test_a_retry_goes_to_who_asked_for_it() -> None:
    house = tapped()
    owner = learn(house, ASKS)
    retry = modern("tools/call", requestState="s-1", inputResponses={})
    assert {reached(house, *retry) for _ in range(6)} == {owner}


async def test_whoever_listens_for_a_task_is_sent_where_it_is() -> None:
    house = tapped()
    owner = learn(house, TASK)
    listening = modern("subscriptions/listen", notifications={"taskIds": ["t-1", "t-2"]})
    assert {reached(house, *listening) for _ in range(3)} == {owner}


@pytest.mark.parametrize("cut", [1, 20, len(TASK) // 2])
async def test_an_event_stream_is_read_as_it_passes(cut: int) -> None:
    house = tapped()
    client = house.ask(*modern("tools/call"))
    attempt = house.take()
    stream = b'data: {"jsonrpc":"2.0","method":"x"}\n\ndata: ' + TASK + b"\n\n"
    attempt.head(200, [EVENTS])
    attempt.body(stream[:cut], stream[cut:])
    attempt.end()
    assert client.reply.body == stream
    assert {reached(house, *task()) for _ in range(4)} == {attempt.backend}
    house.assert_quiet()


async def test_a_body_in_pieces_is_read_when_it_is_whole() -> None:
    house = tapped()
    client = house.ask(*modern("tools/call"))
    attempt = house.take()
    attempt.head(200, [JSON], None)
    attempt.body(TASK[:9], TASK[9:])
    assert client.reply.status == 0
    attempt.end()
    assert client.reply.body == TASK
    assert reached(house, *task()) == attempt.backend


async def test_tasks_belong_to_whom_they_were_made_for() -> None:
    house = tapped(identify=by_header, affinity=Affinity("header:x-tenant"))
    owner = learn(house, TASK, (USER, b"alice"))
    assert {reached(house, *task("tasks/get", "t-1", (USER, b"alice"))) for _ in range(4)} == {owner}
    assert len({reached(house, *task("tasks/get", "t-1", (USER, b"bob"))) for _ in range(4)}) == 4


async def test_backends_are_asked_for_answers_that_can_be_read() -> None:
    for house, encoding in ((tapped(), b"identity"), (Gatehouse(), b"gzip")):
        house.ask(*modern("tools/call"), ACCEPTS)
        assert [value for name, value in house.take().outgoing.headers if name == ACCEPTS[0]] == [encoding]


async def test_without_a_tap_nothing_is_learnt() -> None:
    house = Gatehouse(4)
    learn(house, TASK)
    assert len({reached(house, *task()) for _ in range(4)}) == 4


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_errors_teach_nothing(status: int) -> None:
    house = tapped()
    client = house.ask(*modern("tools/call"))
    house.take().answer(status, TASK, JSON)
    assert client.reply.status == status
    assert len({reached(house, *task()) for _ in range(4)}) == 4


# --- an owner that is not there -------------------------------------------------------------------


async def test_the_owner_of_a_task_gets_a_moment_and_nobody_else_is_asked_meanwhile() -> None:
    """Another backend would say that there is no such task, and the client would believe it."""
    house = tapped()
    owner = learn(house, TASK)
    client = house.ask(*task())
    house.take().fail("refused")
    assert client.reply.status == 0
    assert house.attempts == []
    client.leave()
    house.assert_quiet()
    assert owner


async def test_a_task_of_a_lost_backend_is_asked_for_anywhere() -> None:
    house = tapped(lost_after_s=0.0)
    owner = learn(house, TASK)
    unreachable(house.pool, house.find(owner), 3600.0)
    client = house.ask(*task())
    attempt = house.take()
    assert attempt.backend != owner
    attempt.answer(400, b"{}", JSON)
    assert client.reply.status == 400
    house.assert_quiet()


# --- a registry that takes its time ---------------------------------------------------------------


async def test_the_answer_that_names_a_task_leaves_when_its_owner_is_known() -> None:
    house, store = slow_house(tap=TAP)
    client = house.ask(*modern("tools/call"))
    house.take().answer(200, TASK, JSON)
    await settle()
    assert client.reply.status == 0
    ((operation, key, future),) = store.asked
    assert (operation, key.route) == ("create", "task:pool")
    assert b"t-1" not in key.session_id
    future.set_result(True)
    await settle()
    assert (client.reply.status, client.reply.body) == (200, TASK)
    house.assert_quiet()


@pytest.mark.parametrize("at", ["create", "get"])
async def test_a_registry_that_fails_changes_no_answer(at: str) -> None:
    house, store = slow_house(tap=TAP)
    client = house.ask(*(modern("tools/call") if at == "create" else task()))
    if at == "create":
        house.take().answer(200, TASK, JSON)
    await settle()
    ((operation, _, future),) = store.asked
    assert operation == at
    future.set_exception(StoreError("away"))
    await settle()
    if at == "get":
        house.take().answer(200, b"{}", JSON)
        await settle()
    assert client.reply.status == 200
    assert ("store_error", at) in house.journal.events
    house.assert_quiet()


async def test_a_client_that_leaves_while_the_owner_is_written_down_is_gone() -> None:
    house, store = slow_house(tap=TAP)
    client: Client = house.ask(*modern("tools/call"))
    house.take().answer(200, TASK, JSON)
    await settle()
    client.leave()
    store.asked[0][2].cancel()
    await settle()
    house.assert_quiet()
