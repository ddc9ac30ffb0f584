"""A session's request goes to its owner or nowhere: while it is away, and when it is lost."""

from __future__ import annotations

import asyncio

import pytest

from mcp_proxy import clock
from mcp_proxy.backends.absence import LOOK_S
from mcp_proxy.errors import Fault, Phase
from mcp_proxy.sticky import PIN_RETRY_S
from tests.unit.fakes import settle, until
from tests.unit.gatehouse import ROUTE, Client, Gatehouse, legacy, modern
from tests.unit.poolside import unreachable

# -- sessions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tools/call", "tools/list", "ping"])
async def test_a_request_of_a_session_is_sent_once_and_to_its_owner_only(method: str) -> None:
    house = Gatehouse(3)
    owner = house.open_session()
    for _ in range(4):
        client = house.call(method=method)
        attempt = house.take()
        assert attempt.backend == owner
        attempt.fail(stale=True)
        assert house.attempts == []
        assert client.verdict == (502, "upstream_lost")
    house.assert_quiet()


async def test_the_stream_of_a_session_is_opened_again_on_a_fresh_connection() -> None:
    house = Gatehouse(3)
    owner = house.open_session()
    client = house.listen()
    house.attempts[0].fail(stale=True)
    assert [(attempt.backend, attempt.fresh) for attempt in house.attempts] == [(owner, False), (owner, True)]
    house.attempts[1].fail()
    assert (client.reply.status, len(house.attempts)) == (502, 2)
    house.assert_quiet()


async def test_a_delete_is_not_repeated() -> None:
    house = Gatehouse(2)
    house.open_session()
    client = house.ask(b"", (b"mcp-session-id", b"s1"), method=b"DELETE")
    house.attempts[0].fail(stale=True)
    assert (client.verdict, len(house.attempts)) == ((502, "upstream_lost"), 1)


async def _all_refused(house: Gatehouse, count: int) -> None:
    for number in range(1, count + 1):
        await until(lambda number=number: len(house.attempts) == number, 0.01)  # type: ignore[misc]
        house.attempts[-1].fail("refused")


async def test_the_owner_of_a_session_gets_a_moment_and_then_it_is_a_503() -> None:
    house = Gatehouse(3)
    owner = house.open_session()
    client = house.call()
    await _all_refused(house, 1 + len(PIN_RETRY_S))
    assert client.verdict == (503, "backend_unavailable")
    assert client.reply.one(b"retry-after") == b"1"
    assert set(house.tried) == {owner}
    assert len(house.tried) == 1 + len(PIN_RETRY_S)
    assert house.store.count(ROUTE) == 1, "it may come back"
    house.assert_quiet()


async def test_the_owner_of_a_session_that_comes_back_in_time_answers() -> None:
    house = Gatehouse(3)
    house.open_session()
    client = house.call()
    await _all_refused(house, 1)
    await until(lambda: len(house.attempts) == 2, 0.01)
    house.attempts[1].answer(200, b"{}")
    assert client.reply.status == 200
    assert all(backend.unreachable_since_s is None for backend in house.backends)
    house.assert_quiet()


async def test_a_client_that_leaves_during_that_moment_ends_it() -> None:
    house = Gatehouse(2)
    house.open_session()
    client = house.call()
    house.attempts[0].fail("refused")
    assert client.exchange is not None
    timer = client.exchange.pending
    client.leave()
    house.assert_quiet()
    assert timer is not None
    assert timer.cancelled()
    assert (house.record.ended_by, house.record.phase) == (Fault.CLIENT, Phase.ROUTE)


async def lost(house: Gatehouse, method: bytes) -> Client:
    owner = house.find(house.open_session())
    for ago_s in (10.1, 5.0, 0.5):
        unreachable(house.pool, owner, ago_s)
    client = house.ask(
        legacy("ping") if method == b"POST" else b"", (b"mcp-session-id", b"s1"), method=method
    )
    house.take().fail("refused")
    return client


@pytest.mark.parametrize("method", [b"POST", b"GET"])
async def test_a_session_whose_owner_was_unreachable_for_long_is_unknown_for_good(method: bytes) -> None:
    house = Gatehouse(2)
    client = await lost(house, method)
    assert client.verdict == (404, "session_not_found")
    assert (house.store.count(ROUTE), sum(backend.sessions for backend in house.backends)) == (0, 0)
    again = house.call()
    assert again.verdict == (404, "session_not_found")
    assert again.reply.body == house.call(b"never-known").reply.body, "nothing can be learnt from it"
    assert house.attempts == []
    house.assert_quiet()


async def test_the_delete_of_a_lost_session_is_done() -> None:
    house = Gatehouse(2)
    client = await lost(house, b"DELETE")
    assert (client.reply.status, client.reply.body, house.store.count(ROUTE)) == (204, b"", 0)
    house.assert_quiet()


async def test_two_failures_long_apart_are_not_a_long_failure() -> None:
    """A backend that has failed is looked for until it is back, also without any traffic; so its
    next failure is the first one again, and nobody loses a session for it."""
    house = Gatehouse(2)
    owner = house.find(house.open_session())
    unreachable(house.pool, owner, 3600.0)
    house.pool.sweep(clock.now() + LOOK_S + 0.1)
    await settle()
    assert [transport.probes for transport in house.transports.values() if transport.probes] == [1]
    client = house.call()
    house.attempts[0].fail("refused")
    assert client.verdict != (404, "session_not_found")
    client.leave()
    house.assert_quiet()


async def test_a_backend_that_stays_away_is_looked_for_now_and_then() -> None:
    house = Gatehouse(1)
    backend = house.backends[0]
    transport = house.transports[backend.id]
    transport.is_up = False
    unreachable(house.pool, backend)
    since_s = backend.unreachable_since_s
    for seconds in (0.0, 0.5, 1.0):
        house.pool.sweep(clock.now() + seconds)
    await settle()
    assert transport.probes == 0, "not at once"
    for number in range(3):
        house.pool.sweep(clock.now() + LOOK_S + 0.1)
        house.pool.sweep(clock.now() + LOOK_S + 0.1)
        await settle()
        assert transport.probes == number + 1, "one at a time"
    assert backend.unreachable_since_s == since_s
    transport.is_up = True
    house.pool.sweep(clock.now() + LOOK_S + 0.1)
    await settle()
    assert backend.unreachable_since_s is None
    house.assert_quiet()


@pytest.mark.parametrize("kind", ["unresolved", "exhausted", "lost", "invalid", "timeout"])
async def test_only_a_failed_connect_says_that_a_backend_is_away(kind: str) -> None:
    """Not a resolver that fails, not a lack of descriptors, not a broken answer."""
    house = Gatehouse(2)
    house.ask(*modern("tools/call"))
    house.attempts[0].fail(kind)
    assert all(backend.unreachable_since_s is None for backend in house.backends)


async def test_a_probe_that_hangs_is_the_only_one() -> None:
    house = Gatehouse(1)
    transport = house.transports[house.backends[0].id]
    transport.gate = asyncio.Event()
    unreachable(house.pool, house.backends[0], 10.0)
    for number in range(5):
        house.pool.sweep(clock.now() + number * (LOOK_S + 0.1))
        await settle()
    assert transport.probes == 1
    transport.gate.set()
    await settle()
    assert house.backends[0].unreachable_since_s is None
    house.assert_quiet()


async def test_a_probe_that_could_not_find_out_says_nothing() -> None:
    """A lack of descriptors or a resolver that is down must not cost a backend its sessions."""
    house = Gatehouse(1)
    backend = house.backends[0]
    transport = house.transports[backend.id]
    transport.is_up = None
    unreachable(house.pool, backend, 10.0)
    before = backend.unreachable_since_s
    house.pool.sweep(clock.now() + LOOK_S + 0.1)
    await settle()
    assert (transport.probes, backend.unreachable_since_s) == (1, before)
    house.assert_quiet()
