"""Sessions of lost backends in pools that make them anew: what backends receive, what clients see."""

from __future__ import annotations

import pytest

from mcp_proxy.sessions import ENDED, INITIALIZE_LIMIT, SessionKey, SessionRecord
from tests.unit.fakes import settle
from tests.unit.gatehouse import SESSION, USER, by_header, legacy, message
from tests.unit.registries import ROUTE
from tests.unit.revivals import (
    INITIALIZED,
    TURNS,
    SharedHouse,
    fields,
    house_of,
    is_initialize,
    revived,
)

# --- the story ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [False, True], ids=["redis", "signed"])
async def test_a_session_goes_on_at_another_backend_under_the_same_id(sealed: bool) -> None:
    house = house_of(sealed=sealed)
    ours, owner = await house.begin(b"theirs")
    client = await house.ask_lost(ours, owner)

    first = await house.one()
    assert is_initialize(first)
    assert first.backend != owner
    assert SESSION not in fields(first)
    assert first.outgoing.target == b"/mcp"
    assert client.reply.outcome == ""
    first.answer(200, b'{"result":{}}', (SESSION, b"u2"))

    second = await house.one()
    assert (second.backend, second.outgoing.body) == (first.backend, INITIALIZED)
    assert [value for name, value in second.outgoing.headers if name == SESSION] == [b"u2"]
    second.answer(202, b"")

    third = await house.one()
    assert third.backend == first.backend
    assert third.outgoing.body == legacy("tools/call")
    assert [value for name, value in third.outgoing.headers if name == SESSION] == [b"u2"]
    third.answer(200, b'{"ok":1}', (SESSION, b"u2"))

    assert (client.reply.status, client.reply.body) == (200, b'{"ok":1}')
    assert client.reply.one(SESSION) == ours
    record = house.stored(ours)
    assert (record.backend, record.upstream_id, record.generation) == (first.backend, b"u2", 1)
    assert ("reinitialized", "pool", "done") in house.journal.events
    assert [backend.sessions for backend in house.backends if backend.id != first.backend] == [0, 0]
    assert house.find(first.backend).sessions == 1
    await settle(TURNS)
    assert house.shelf.claims == {}
    house.assert_quiet()


async def test_what_belongs_to_one_request_does_not_go_with_an_initialize() -> None:
    house = house_of()
    ours, owner = await house.begin()
    house.lose(owner)
    house.ask(
        legacy("tools/call"), (SESSION, ours), (USER, b"Bearer t"), (b"mcp-method", b"tools/call"),
        (b"mcp-protocol-version", b"2025-06-18"), (b"mcp-name", b"x"), (b"mcp-param-a", b"1"),
        (b"last-event-id", b"7"), (b"traceparent", b"00-1"), (b"accept", b"text/html"),
        (b"accept-encoding", b"br"), (b"x-tenant", b"a"),
    )  # fmt: skip
    (await house.one()).fail("refused")
    first = await house.one()
    headers = fields(first)
    assert headers[USER] == b"Bearer t"
    assert headers[b"x-tenant"] == b"a"
    assert headers[b"accept"] == b"application/json, text/event-stream"
    assert headers[b"content-type"] == b"application/json"
    for name in (
        b"mcp-protocol-version", b"mcp-method", b"mcp-name", b"mcp-param-a", b"last-event-id", b"traceparent",
        b"accept-encoding", SESSION,
    ):  # fmt: skip
        assert name not in headers
    assert len(headers) == len(first.outgoing.headers)
    first.answer(200, b"{}", (SESSION, b"u2"))
    second = await house.one()
    assert fields(second)[b"mcp-protocol-version"] == b"2025-06-18"
    assert b"mcp-name" not in fields(second)
    second.answer(202, b"")
    (await house.one()).answer(200, b"{}")
    house.assert_quiet()


async def test_credentials_of_the_pool_go_with_it() -> None:
    house = house_of(authorization=b"Bearer ours")
    ours, owner = await house.begin()
    house.lose(owner)
    house.ask(legacy("tools/call"), (SESSION, ours), (USER, b"Bearer theirs"))
    (await house.one()).fail("refused")
    first = await house.one()
    assert [value for name, value in first.outgoing.headers if name == USER] == [b"Bearer ours"]
    first.answer(200, b"{}", (SESSION, b"u2"))
    second = await house.one()
    assert [value for name, value in second.outgoing.headers if name == USER] == [b"Bearer ours"]


async def test_many_requests_of_a_lost_session_make_it_anew_once() -> None:
    house = house_of()
    ours, owner = await house.begin()
    house.lose(owner)
    clients = [house.call(ours) for _ in range(5)]
    for attempt in list(house.attempts):
        attempt.fail("refused")
    house.attempts.clear()
    where = await revived(house)
    assert [attempt.outgoing.body for attempt in house.attempts] == [legacy("tools/call")] * 5
    assert {attempt.backend for attempt in house.attempts} == {where}
    late = house.call(ours)
    for attempt in house.attempts:
        attempt.answer(200, b"{}", (SESSION, b"u2"))
    assert [client.reply.status for client in [*clients, late]] == [200] * 6
    assert house.journal.events.count(("reinitialized", "pool", "done")) == 1
    await settle(TURNS)
    house.assert_quiet()


async def test_it_may_be_lost_again() -> None:
    house = house_of()
    ours, owner = await house.begin()
    await house.ask_lost(ours, owner)
    second = await revived(house, b"u2")
    (await house.one()).answer(200, b"{}")
    client = await house.ask_lost(ours, second)
    third = await revived(house, b"u3")
    assert third not in (owner, second)
    (await house.one()).answer(200, b"{}", (SESSION, b"u3"))
    assert (client.reply.status, client.reply.one(SESSION)) == (200, ours)
    assert house.stored(ours).generation == 2
    await settle(TURNS)
    house.assert_quiet()


async def test_the_session_stays_that_of_its_principal() -> None:
    house = house_of(identify=by_header)
    ours, owner = await house.begin(b"s1", (USER, b"alice"))
    house.lose(owner)
    stranger = house.ask(legacy("ping"), (SESSION, ours), (USER, b"bob"))
    await settle(TURNS)
    assert stranger.verdict == (404, "session_not_found")
    assert house.attempts == []
    client = house.ask(legacy("ping"), (SESSION, ours), (USER, b"alice"))
    (await house.one()).fail("refused")
    await revived(house)
    (await house.one()).answer(200, b"{}")
    assert client.reply.status == 200
    stranger = house.ask(legacy("ping"), (SESSION, ours), (USER, b"bob"))
    await settle(TURNS)
    assert stranger.verdict == (404, "session_not_found")
    assert house.stored(ours).principal == house.stored(ours).principal != ""
    await settle(TURNS)
    house.assert_quiet()


# --- when it is not done --------------------------------------------------------------------------


async def test_until_the_backend_counts_as_lost_nothing_is_made_anew() -> None:
    house = house_of()
    ours, owner = await house.begin()
    client = house.call(ours)
    (await house.one()).fail("refused")
    await settle(TURNS)
    assert house.attempts == []
    client.leave()
    assert house.stored(ours).backend == owner
    house.assert_quiet()


@pytest.mark.parametrize("kind", ["lost", "timeout", "invalid"])
async def test_a_request_that_may_have_run_is_not_sent_again(kind: str) -> None:
    house = house_of()
    ours, owner = await house.begin()
    house.lose(owner)
    client = house.call(ours)
    (await house.one()).fail(kind)
    await settle(TURNS)
    assert house.attempts == []
    assert client.error["data"]["maybeExecuted"] is True
    house.assert_quiet()


async def test_the_delete_of_a_lost_session_is_done_without_making_it_anew() -> None:
    house = house_of()
    ours, owner = await house.begin()
    house.lose(owner)
    client = house.ask(b"", (SESSION, ours), method=b"DELETE")
    (await house.one()).fail("refused")
    await settle(TURNS)
    assert (client.reply.status, house.attempts) == (204, [])
    assert house.shelf.read(SessionKey(ROUTE, ours).name) is ENDED
    house.assert_quiet()


async def test_pools_that_end_sessions_do_just_that() -> None:
    house = SharedHouse(3)
    ours, owner = await house.begin()
    assert house.stored(ours).initialize == b""
    client = await house.ask_lost(ours, owner)
    assert client.verdict == (404, "session_not_found")
    assert house.attempts == []
    assert house.shelf.read(SessionKey(ROUTE, ours).name) is ENDED
    house.assert_quiet()


async def test_an_initialize_that_is_too_long_is_not_kept_and_its_session_ends_with_its_backend(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = house_of()
    long = message("initialize", {"protocolVersion": "2025-11-25", "x": "y" * INITIALIZE_LIMIT})
    house.ask(long)
    attempt = house.take()
    attempt.answer(200, b"{}", (SESSION, b"s1"))
    await settle(TURNS)
    assert house.stored(b"s1").initialize == b""
    assert "too long to be kept" in caplog.text
    client = await house.ask_lost(b"s1", attempt.backend)
    assert client.verdict == (404, "session_not_found")
    assert house.attempts == []
    house.assert_quiet()


async def test_a_session_that_was_ended_meanwhile_is_not_made_anew() -> None:
    """Elsewhere, and nobody here has heard of it."""
    house = house_of()
    ours, owner = await house.begin()
    house.registry.is_deaf = True
    house.shelf.write(SessionKey(ROUTE, ours).name, ENDED)
    client = await house.ask_lost(ours, owner)
    await settle(TURNS)
    assert client.verdict == (404, "session_not_found")
    assert house.attempts == []
    house.assert_quiet()


async def test_a_session_that_has_moved_meanwhile_is_found_where_it_is() -> None:
    house = house_of()
    ours, owner = await house.begin()
    other = next(backend.id for backend in house.backends if backend.id != owner)
    house.registry.is_deaf = True
    moved = SessionRecord(other, "", b"u9", 1, house.stored(ours).initialize, house.stored(ours).created_s)
    house.shelf.write(SessionKey(ROUTE, ours).name, moved)
    client = await house.ask_lost(ours, owner)
    await settle(TURNS)
    attempt = await house.one()
    assert (attempt.backend, attempt.outgoing.body) == (other, legacy("tools/call"))
    assert fields(attempt)[SESSION] == b"u9"
    attempt.answer(200, b"{}", (SESSION, b"u9"))
    assert client.reply.one(SESSION) == ours
    await settle(TURNS)
    house.assert_quiet()
