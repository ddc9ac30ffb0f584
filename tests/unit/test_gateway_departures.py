"""Backends that leave, come back or are drained while requests are on their way to them."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_proxy import clock
from mcp_proxy.exchange import EVENT_REST_S
from mcp_proxy.sessions import SessionRecord
from mcp_proxy.sessions.shared import SharedStore
from tests.unit.departing import Site, openings, pass_time, wire, within, without
from tests.unit.fakes import settle, until
from tests.unit.gatehouse import (
    EVENTS,
    JSON,
    KEY,
    ROUTE,
    SESSION,
    Gatehouse,
    initialize,
    modern,
    slow_house,
)  # fmt: skip
from tests.unit.poolside import endpoint, unreachable
from tests.unit.registries import FRESH_S, seal
from tests.unit.revivals import TURNS, SharedHouse, fields, house_of, revived

DELETE: Any = {"method": b"DELETE"}


# --- a request is on its way --------------------------------------------------------------------


@pytest.mark.parametrize("state", ["waiting", "holding", "relaying", "listening", "opening"])
async def test_what_is_in_progress_at_a_backend_keeps_it_until_it_is_over(state: str) -> None:
    """Even with no time to drain; only its streams are ended."""
    house = Site(1, drain_s=0.0)
    (backend,) = house.backends
    house.open_session()
    client = {"listening": house.listen, "opening": lambda: house.ask(initialize())}.get(state, house.call)()
    attempt = house.take()
    if state in ("holding", "opening"):
        attempt.head(200, [JSON])
        attempt.body(b"{")
    elif state in ("relaying", "listening"):
        attempt.head(200, [EVENTS])
        attempt.body(b"data: 1\n\n")

    without(house, backend)
    await pass_time(house)
    await pass_time(house)

    if state == "listening":
        assert client.reply.outcome == "end"
    else:
        assert house.pool.find(backend.id) is backend
        assert not house.transports[backend.id].is_closed
        if state == "waiting":
            attempt.answer(200, b"{}")
        elif state == "relaying":
            attempt.end()
        else:
            attempt.body(b"}")
            attempt.end()
        assert client.reply.outcome in ("answer", "end")
        assert client.reply.status == 200
        await pass_time(house)
    assert house.pool.find(backend.id) is None
    assert house.transports[backend.id].is_closed
    assert openings(house) == [0]
    house.assert_quiet()


async def test_a_stream_whose_head_never_comes_does_not_keep_a_drained_backend() -> None:
    house = Site(1, drain_s=0.0)
    (backend,) = house.backends
    house.open_session()
    client = house.listen()
    attempt = house.take()
    without(house, backend)

    await pass_time(house)
    assert not client.reply.outcome, "a head that is on its way comes at once"
    await pass_time(house, EVENT_REST_S + 1)
    await pass_time(house)

    assert client.reply.status == 503
    assert client.reply.one(b"retry-after") == b"1"
    assert attempt.is_cancelled
    assert house.pool.find(backend.id) is None
    house.assert_quiet()


async def test_a_stream_is_not_opened_again_at_a_backend_whose_time_is_over() -> None:
    """The connection on which the first attempt went had ended unnoticed."""
    house = Site(1, drain_s=0.0)
    (backend,) = house.backends
    house.open_session()
    client = house.listen()
    attempt = house.take()
    without(house, backend)
    await pass_time(house)

    attempt.fail(stale=True)

    assert house.attempts == []
    assert client.verdict == (404, "session_not_found")
    await pass_time(house)
    assert house.pool.find(backend.id) is None
    house.assert_quiet()


async def test_a_request_of_no_session_is_not_repeated_at_a_backend_that_is_drained_meanwhile() -> None:
    house = Site(2)
    house.ask(initialize())
    attempt = house.take()
    first = house.find(attempt.backend)
    house.pool.drain(first, "operator")

    attempt.fail(stale=True)

    again = house.take()
    assert again.backend != first.id
    again.answer(200, b"{}")
    assert openings(house) == [0, 0]
    house.assert_quiet()


async def test_a_stream_that_has_moved_on_does_not_end_with_the_backend_that_it_was_for() -> None:
    house = Site(2, drain_s=0.0)
    client = house.ask(*modern("subscriptions/listen"))
    attempt = house.take()
    gone = house.find(attempt.backend)
    without(house, gone)
    house.pool.sweep(clock.now())  # its streams are to end
    attempt.fail("refused")
    again = house.take()
    again.head(200, [EVENTS])

    await pass_time(house)

    assert again.backend != gone.id
    assert not client.reply.outcome
    client.leave()
    house.assert_quiet()


# --- a request waits ---------------------------------------------------------------------------


@pytest.mark.parametrize("reinitializes", [False, True])
async def test_an_owner_that_is_forgotten_while_its_request_waits_is_lost(reinitializes: bool) -> None:
    house = house_of() if reinitializes else SharedHouse(2)
    wire(house)
    session, owner = await house.begin()
    gone = house.find(owner)
    client = house.call(session)
    await settle(TURNS)
    house.take().fail("refused")
    without(house, gone)
    await pass_time(house)
    assert house.pool.find(owner) is None

    if reinitializes:
        await until(lambda: house.attempts, 0.01)
        new = await revived(house)
        call = await house.one()
        assert new != owner
        assert (call.backend, call.outgoing.method) == (new, b"POST")
        call.answer(200, b"{}")
        assert client.reply.status == 200
    else:
        await until(lambda: client.reply.outcome, 0.01)
        assert client.verdict == (404, "session_not_found")
        assert house.attempts == []
    await settle(TURNS)
    house.assert_quiet()


async def test_an_owner_that_left_and_came_back_while_its_request_waits_gets_it() -> None:
    """It is another Backend by then, with another transport."""
    house = Site(1, drain_s=0.0)
    (old,) = house.backends
    house.open_session()
    client = house.call()
    house.take().fail("refused")
    without(house, old)
    await pass_time(house)
    assert house.pool.find(old.id) is None
    within(house)
    new = house.find(old.id)
    assert new is not old
    assert new.sessions == 1, "its sessions were known before it was"

    await until(lambda: house.attempts, 0.01)
    house.take().answer(200, b"{}")

    assert client.reply.status == 200
    assert (old.inflight, new.inflight) == (0, 0)
    house.assert_quiet()


async def test_nobody_says_goodbye_to_a_backend_that_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    """The client left while its session was written down, and so did the backend."""
    house, store = slow_house(drain_s=0.0)
    client = house.ask(initialize())
    attempt = house.take()
    attempt.answer(200, b"{}", (SESSION, b"s1"))
    await settle()
    client.leave()
    without(house, house.find(attempt.backend))
    await pass_time(house)
    assert house.pool.find(attempt.backend) is None

    await store.answer(True)
    await settle()

    assert house.attempts == []
    assert [line.message for line in caplog.records if line.levelname == "ERROR"] == []
    assert openings(house) == [0, 0]


async def test_a_session_that_is_written_down_while_its_backend_is_drained_is_told_to_the_client() -> None:
    house, store = slow_house(drain_s=0.0)
    client = house.ask(initialize())
    attempt = house.take()
    attempt.answer(200, b"{}", (SESSION, b"s1"))
    await settle()
    without(house, house.find(attempt.backend))
    await pass_time(house)
    assert house.pool.find(attempt.backend) is not None, "the answer has not left"

    await store.answer(True)

    assert (client.reply.status, client.reply.one(SESSION)) == (200, b"s1")
    await pass_time(house)
    assert house.pool.find(attempt.backend) is None
    assert openings(house) == [0, 0]
    house.assert_quiet()


# --- sessions of drained backends ------------------------------------------------------------------


async def test_the_session_of_a_drained_backend_ends_there_while_there_is_time() -> None:
    house = Site(2)
    owner = house.find(house.open_session())
    house.pool.drain(owner, "operator")

    client = house.ask(b"", (SESSION, b"s1"), **DELETE)
    attempt = house.take()
    assert attempt.backend == owner.id
    attempt.answer(200, b"")

    assert client.reply.status == 200
    assert (owner.sessions, house.store.count(ROUTE)) == (0, 0)
    house.assert_quiet()


async def test_the_session_of_a_backend_whose_time_is_over_ends_without_it() -> None:
    house = Site(2)
    owner = house.find(house.open_session())
    house.pool.drain(owner, "operator", 0.0)

    client = house.ask(b"", (SESSION, b"s1"), **DELETE)

    assert client.reply.status == 204
    assert house.attempts == []
    assert (owner.sessions, house.store.count(ROUTE)) == (0, 0)
    house.assert_quiet()


async def test_a_backend_that_was_given_up_while_it_was_away_takes_no_streams_when_it_is_back() -> None:
    """They would be told to end by nobody."""
    house = Site(2, drain_s=3600.0)
    owner = house.find(house.open_session())
    call = house.call()
    attempt = house.take()
    without(house, owner)
    unreachable(house.pool, owner)
    await pass_time(house)
    assert house.pool.is_lost(owner)

    house.pool.reached(owner)
    stream = house.listen()

    assert stream.verdict == (404, "session_not_found")
    attempt.answer(200, b"{}")
    assert call.reply.status == 200
    await pass_time(house)
    assert house.pool.find(owner.id) is None
    house.assert_quiet()


# --- sealed ids ----------------------------------------------------------------------------------------


async def test_a_sealed_session_is_found_when_its_backend_becomes_known_meanwhile() -> None:
    """The id has only a hash of the backend, which says nothing before the backend is known."""
    sealing = seal("http://backend0.example:8000/mcp")
    new = endpoint("new.example").backend()
    elsewhere = seal(new.id)
    name = elsewhere.seal(KEY, SessionRecord(new.id))

    def shared(house: Gatehouse) -> SharedStore:
        return SharedStore(
            "signed", ttl_s=1000.0, cache_ttl_s=FRESH_S, tasks=house.tasks, watcher=house.watch, seal=sealing
        )

    house = Site(1, store=shared)
    client = house.call(name.session_id)
    assert not client.reply.outcome
    assert house.attempts == []

    house.pool.update([endpoint("backend0.example"), endpoint("new.example")], "discovery")
    sealing.know(ROUTE, [backend.id for backend in house.pool.backends])
    await until(lambda: house.attempts or client.reply.outcome, 0.01)

    assert not client.reply.outcome, client.verdict
    attempt = house.take()
    assert (attempt.backend, fields(attempt)[SESSION]) == (new.id, b"s1")
    attempt.answer(200, b"{}")
    assert client.reply.status == 200
    await settle()
    assert house.find(new.id).sessions == 1
    house.assert_quiet()
