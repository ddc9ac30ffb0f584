"""Backends that refuse, vanish, hang, or close at the wrong moment (B1-B6)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.tools.backend import Backend
from tests.tools.client import Answer, Client, call, get, post
from tests.tools.mcp_backend import JSON, McpServer, json_answer, result
from tests.tools.recording import Conn, Seen
from tests.wire.rig import Rig, bench, case

LIMIT = 8 * 1024 * 1024
CONFIG = {"limits": {"body": LIMIT}, "pools": {"tools": {"balance": "round_robin"}}}


def unavailable(answer: Answer) -> bool:
    """503 that tells the client to come again, by the proxy's own word."""
    assert answer.framing == "clean"
    return (answer.status, answer.reason, bool(answer.head.one("retry-after"))) == (
        503,
        "backend_unavailable",
        True,
    )


# -- B1 ----------------------------------------------------------------------------------------


async def test_a_refused_connect_goes_to_the_other_backend_and_runs_once(tmp_path: Path) -> None:
    async with bench(tmp_path, CONFIG, backends=2) as rig, case(rig):
        dead, alive = rig.backends
        await dead.down()
        client = await rig.client()
        answers = [await client.ask(post(call(number))) for number in range(10)]

        assert [answer.status for answer in answers] == [200] * 10
        assert [one.body for one in alive.take()] == [call(number) for number in range(10)]
        dead.listen()


async def test_a_name_that_does_not_resolve_goes_to_the_other_backend(tmp_path: Path) -> None:
    nowhere = ["http://nowhere.invalid:8000/mcp"]
    async with bench(tmp_path, CONFIG, also=lambda urls: nowhere + urls) as rig, case(rig):
        client = await rig.client()
        answers = [await client.ask(post(call(number))) for number in range(10)]

        assert [answer.status for answer in answers] == [200] * 10
        assert [one.body for one in rig.taken()] == [call(number) for number in range(10)]


async def test_without_any_backend_it_is_a_503_and_the_next_one_works(rig: Rig) -> None:
    await rig.backend.down()
    client = await rig.client()
    answer = await client.ask(post(call(5)))
    assert unavailable(answer)
    assert answer.json["id"] == 5

    rig.backend.listen()
    assert (await client.ask(post(call(6)))).status == 200
    assert [one.body for one in rig.taken()] == [call(6)]


# -- B2 ----------------------------------------------------------------------------------------


async def owned(rig: Rig, client: Client) -> tuple[str, Backend, Backend]:
    """A session, the backend that owns it and the other one."""
    servers = {backend: McpServer(f"server{index}") for index, backend in enumerate(rig.backends)}
    for backend, server in servers.items():
        backend.handler = server
    session = await rig.session(client)
    owner, other = sorted(rig.backends, key=lambda backend: not servers[backend].sessions)
    return session, owner, other


async def test_a_session_waits_for_its_backend_and_never_moves(tmp_path: Path) -> None:
    async with bench(tmp_path, CONFIG, backends=2) as rig, case(rig):
        client = await rig.client()
        session, owner, other = await owned(rig, client)
        await owner.down()
        for raw, method in ((post(call(1), session), "POST"), (get(session), "GET")):
            assert unavailable(await client.ask(raw, method))

        owner.listen()
        assert (await client.ask(post(call(2), session))).status == 200
        assert [one.body for one in owner.take()] == [call(2)]
        assert other.take() == []


async def test_a_session_whose_backend_is_lost_is_404_for_good(tmp_path: Path) -> None:
    over = {"pools": {"tools": {"lost_after": "1s"}}}
    async with bench(tmp_path, over, backends=2) as rig, case(rig):
        client = await rig.client()
        session, owner, other = await owned(rig, client)
        await owner.down()
        while unavailable(answer := await client.ask(post(call(1), session))):
            pass

        assert (answer.status, answer.reason, answer.json["id"]) == (404, "session_not_found", 1)
        owner.listen()
        for raw, method in ((post(call(2), session), "POST"), (get(session), "GET")):
            assert (await client.ask(raw, method)).status == 404
        assert (owner.take(), other.take()) == ([], [])


async def test_a_session_of_a_lost_backend_can_be_deleted(tmp_path: Path) -> None:
    over = {"pools": {"tools": {"lost_after": "1s"}}}
    async with bench(tmp_path, over, backends=2) as rig, case(rig):
        client = await rig.client()
        session, owner, other = await owned(rig, client)
        await owner.down()
        while (deleted := await client.ask(get(session, method="DELETE"), "DELETE")).status == 503:
            assert unavailable(deleted)
        after = await client.ask(post(call(1), session))
        owner.listen()

        assert (deleted.status, after.status) == (204, 404)
        assert (owner.take(), other.take()) == ([], [])


# -- B3 ----------------------------------------------------------------------------------------


async def close_behind(request: Seen, conn: Conn) -> None:
    """Promises keep-alive and closes right behind the answer: the race of every pool."""
    await json_answer()(request, conn)
    conn.close()


async def test_a_connection_that_closes_behind_its_answer_runs_nothing_twice(rig: Rig) -> None:
    rig.script(close_behind)
    client = await rig.client()
    answers = [await client.ask(post(call(number))) for number in range(500)]
    bodies = [one.body for one in rig.taken() if one.is_complete]

    assert {answer.status for answer in answers} <= {200, 502}
    for number, answer in enumerate(answers):
        assert bodies.count(call(number)) == (1 if answer.status == 200 else 0)


async def test_a_reused_connection_that_dies_with_the_request_is_a_502_and_not_a_repetition(rig: Rig) -> None:
    used: set[Conn] = set()

    async def once(request: Seen, conn: Conn) -> None:
        await request.whole()
        if conn in used:
            conn.reset()
        else:
            used.add(conn)
            await conn.answer(200, [JSON], result({"id": 0}))

    rig.script(once)
    client = await rig.client()
    statuses = [(await client.ask(post(call(number)))).status for number in range(20)]

    assert statuses == [200, 502] * 10
    assert [one.body for one in rig.taken()] == [call(number) for number in range(20)]


async def test_a_connection_that_the_backend_closed_while_idle_is_not_used(rig: Rig) -> None:
    client = await rig.client()
    for number in range(50):
        assert (await client.ask(post(call(number)))).status == 200
        conn = rig.backend.take_one().conn
        conn.finish()
        assert await conn.gone()


# -- B4 ----------------------------------------------------------------------------------------


async def test_a_backend_that_never_answers_is_a_504_once(tmp_path: Path) -> None:
    async def hang(request: Seen, conn: Conn) -> None:
        await conn.gone()

    over = {"pools": {"tools": {"timeouts": {"response_head": "1s"}}}}
    async with bench(tmp_path, over, backends=2) as rig, case(rig):
        rig.script(hang)
        client = await rig.client()
        answer = await client.ask(post(call(3)))
        (request,) = rig.taken()

        assert (answer.status, answer.reason, answer.json["id"]) == (504, "upstream_timeout", 3)
        assert answer.json["error"]["data"]["maybeExecuted"] is True
        assert await request.conn.gone() in ("fin", "rst")


# -- B5 ----------------------------------------------------------------------------------------


async def test_a_thousand_cancelled_requests_leave_nothing_behind(rig: Rig) -> None:
    async def hang(request: Seen, conn: Conn) -> None:
        await conn.gone()

    rig.script(hang)

    async def cancelled(worker: int) -> None:
        for turn in range(100):
            client = await Client.connect(rig.proxy.port)
            if turn % 3:
                await client.send_apart([post(call(worker))])
            else:
                await client.send(post(call(worker)))
            client.reset()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for worker in range(10):
            group.create_task(cancelled(worker))
    rig.script(json_answer())
    async with await Client.connect(rig.backend.port) as last:
        await last.ask(post(call()))  # behind it, nothing waits to be accepted any more
    await rig.quiet()
    assert len(rig.taken()) <= 1001

    client = await rig.client()
    assert [(await client.ask(post(call(number)))).status for number in range(20)] == [200] * 20
    assert [one.body for one in rig.taken()] == [call(number) for number in range(20)]


# -- B6 ----------------------------------------------------------------------------------------

BIG = call(1, text="x" * (LIMIT - 1000))
VERDICT = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32600,"message":"too large"}}'


def early(then: str) -> object:
    """Answers 413 on the head alone and leaves the body in the kernel."""

    async def handle(request: Seen, conn: Conn) -> None:
        conn.reading.clear()
        await conn.answer(413, [JSON, ("Connection", "close")], VERDICT)
        if then == "drain":
            conn.finish()
            conn.reading.set()
            await conn.gone()
        elif then == "wait":
            await conn.consumed()
            conn.reset()
        else:
            conn.close()  # with unread bytes: the kernel sends RST

    return handle


@pytest.mark.parametrize("then", ["drain", "wait"])
async def test_an_answer_before_the_end_of_the_upload_is_the_answer(tmp_path: Path, then: str) -> None:
    async with bench(tmp_path, CONFIG, receive_buffer=4096) as rig, case(rig):
        rig.script(early(then))  # type: ignore[arg-type]
        client = await rig.client()
        for _ in range(5):
            answer = await client.ask(post(BIG))
            request = rig.backend.take_one()
            assert (answer.status, answer.body, answer.framing) == (413, VERDICT, "clean")
            assert not request.is_complete or then == "drain"


async def test_an_answer_overtaken_by_a_reset_is_the_answer_or_a_502(tmp_path: Path) -> None:
    """Closing with unread bytes resets the connection, and a write that meets the reset ends it before
    the answer in the receive queue is read. nginx 1.22 gives 502 for every one of these."""
    async with bench(tmp_path, CONFIG, receive_buffer=4096) as rig, case(rig):
        rig.script(early("close"))  # type: ignore[arg-type]
        client = await rig.client()
        for _ in range(5):
            answer = await client.ask(post(BIG))
            rig.backend.take_one()
            assert answer.framing == "clean"
            assert (answer.status, answer.reason) in ((413, ""), (502, "upstream_lost"))


async def test_an_upload_that_the_backend_takes_slowly_arrives_whole(tmp_path: Path) -> None:
    async with bench(tmp_path, CONFIG, receive_buffer=4096) as rig, case(rig):
        client = await rig.client()
        answer = await client.ask(post(BIG))

        assert answer.status == 200
        assert rig.backend.take_one().body == BIG
