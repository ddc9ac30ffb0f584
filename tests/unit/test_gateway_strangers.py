"""A session whose backend another replica has heard of first: it gets a moment to be found, and then the
client is told to come again."""

from __future__ import annotations

import pytest

from mcp_proxy.backends import Endpoint
from mcp_proxy.sessions import SessionRecord
from tests.unit.fakes import until
from tests.unit.gatehouse import KEY, ROUTE, Gatehouse
from tests.unit.poolside import endpoint

HOSTS = ["backend0.example", "backend1.example"]


def strange_session(house: Gatehouse) -> None:
    """Session ``s1``, whose backend this process does not know."""
    backend = endpoint("new.example").backend()
    assert house.store.create(KEY, SessionRecord(backend.id)) is True


def found(*hosts: str) -> list[Endpoint]:
    return [endpoint(host) for host in (*HOSTS, *hosts)]


async def test_a_backend_that_is_found_in_time_gets_the_request_once() -> None:
    house = Gatehouse(2)
    strange_session(house)
    client = house.call()
    assert house.attempts == [], "nobody else gets it"
    house.pool.update(found("new.example"), "discovery")
    await until(lambda: len(house.attempts) == 1, 0.01)
    house.attempts[0].answer(200, b"{}")
    assert client.reply.status == 200
    assert house.tried == ["http://new.example:8000/mcp"]
    house.assert_quiet()


async def test_one_that_is_not_found_in_time_is_a_503_that_keeps_the_session() -> None:
    house = Gatehouse(2)
    strange_session(house)
    client = house.call()
    await until(lambda: client.reply.status, 0.01)
    assert client.verdict == (503, "backend_unavailable")
    assert client.reply.one(b"retry-after") == b"1"
    assert house.attempts == []
    assert house.store.count(ROUTE) == 1
    house.assert_quiet()


@pytest.mark.parametrize("method", [b"POST", b"GET", b"DELETE"])
async def test_a_client_that_leaves_meanwhile_is_not_waited_for(method: bytes) -> None:
    house = Gatehouse(2)
    strange_session(house)
    client = house.call() if method == b"POST" else house.ask(b"", (b"mcp-session-id", b"s1"), method=method)
    assert client.exchange is not None
    timer = client.exchange.pending
    assert timer is not None
    client.leave()
    assert timer.cancelled()
    assert house.attempts == []
    house.assert_quiet()
