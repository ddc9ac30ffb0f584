"""What becomes of open streams when their session ends or moves, and of sessions that a backend disowns."""

from __future__ import annotations

import pytest

from mcp_proxy.sessions import ENDED, SessionKey, SessionRecord
from tests.unit.fakes import settle
from tests.unit.gatehouse import EVENTS, JSON, SESSION, legacy
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

# --- streams --------------------------------------------------------------------------------------


async def test_the_open_stream_of_a_session_that_moves_ends_cleanly() -> None:
    house = house_of()
    ours, owner = await house.begin()
    stream = house.listen(ours)
    old = house.take()
    old.head(200, [EVENTS, (SESSION, ours)])
    old.body(b"data: 1\n\n")
    await house.ask_lost(ours, owner)
    where = await revived(house)
    await settle(TURNS)
    assert stream.reply.outcome == "end", "so that the client comes back"
    assert old.is_cancelled
    house.take().answer(200, b"{}")
    again = house.listen(ours)
    attempt = house.take()
    assert (attempt.backend, fields(attempt)[SESSION]) == (where, b"u2")
    attempt.head(200, [EVENTS, (SESSION, b"u2")])
    assert again.reply.one(SESSION) == ours
    attempt.body(b"data: 2\n\n")
    await settle(TURNS)
    assert again.reply.outcome == ""
    again.leave()
    await settle(TURNS)
    house.assert_quiet()


@pytest.mark.parametrize("how", ["ended", "moved"])
async def test_a_stream_ends_cleanly_when_its_session_ends_or_moves_elsewhere(how: str) -> None:
    house = house_of()
    ours, _ = await house.begin()
    stream = house.listen(ours)
    attempt = house.take()
    attempt.head(200, [EVENTS])
    name = SessionKey(ROUTE, ours).name
    old = house.stored(ours)
    moved = SessionRecord("http://elsewhere:1/mcp", "", b"u9", 1, old.initialize, old.created_s)
    house.shelf.write(name, ENDED if how == "ended" else moved)
    assert stream.reply.outcome == ""
    house.shelf.announce(name)
    await settle(TURNS)
    assert (stream.reply.outcome, attempt.is_cancelled) == ("end", True)
    assert (house.pool.streams, house.gateway.quotas.streams) == (0, 0)
    house.assert_quiet()


async def test_the_stream_of_another_session_stays() -> None:
    house = house_of()
    first, _ = await house.begin(b"s1")
    second, _ = await house.begin(b"s2")
    streams = [house.listen(session) for session in (first, second)]
    for attempt in house.attempts:
        attempt.head(200, [EVENTS])
    name = SessionKey(ROUTE, first).name
    house.shelf.write(name, ENDED)
    house.shelf.announce(name)
    await settle(TURNS)
    assert [stream.reply.outcome for stream in streams] == ["end", ""]
    streams[1].leave()
    house.assert_quiet()


@pytest.mark.parametrize("ending", ["leave", "end", "fail"])
async def test_a_stream_that_ends_at_that_very_moment_ends_once(ending: str) -> None:
    house = house_of()
    ours, _ = await house.begin()
    stream = house.listen(ours)
    attempt = house.take()
    attempt.head(200, [EVENTS])
    assert stream.exchange is not None
    stream.exchange.end_listening_soon()
    if ending == "leave":
        stream.leave()
    elif ending == "end":
        attempt.end()
    else:
        attempt.fail()
    await settle(TURNS)
    assert len(house.journal.records) == 1
    house.assert_quiet()


async def test_a_stream_whose_head_comes_behind_the_end_of_its_session_does_not_stay() -> None:
    house = house_of()
    ours, _ = await house.begin()
    stream = house.listen(ours)
    attempt = house.take()
    name = SessionKey(ROUTE, ours).name
    house.shelf.write(name, ENDED)
    house.shelf.announce(name)
    await settle(TURNS)
    attempt.head(200, [EVENTS])
    await settle(TURNS)
    assert stream.reply.outcome in ("end", "answer")
    house.assert_quiet()


# --- backends that disown -------------------------------------------------------------------------


async def test_a_backend_that_forgot_the_session_may_make_it_anew_itself() -> None:
    """It was restarted: it is there, and knows nothing any more."""
    house = SharedHouse(1, reinitializes=True)
    ours, owner = await house.begin()
    client = house.call(ours)
    house.take().answer(404, b"who?", (SESSION, b"throw-away"))
    where = await revived(house)
    assert where == owner
    attempt = await house.one()
    assert (attempt.outgoing.body, fields(attempt)[SESSION]) == (legacy("tools/call"), b"u2")
    attempt.answer(200, b"{}", (SESSION, b"u2"))
    assert (client.reply.status, client.reply.body, client.reply.one(SESSION)) == (200, b"{}", ours)
    assert len(house.journal.records) == 1
    await settle(TURNS)
    house.assert_quiet()


async def test_a_backend_that_disowns_what_it_has_just_made_is_believed_in_the_end() -> None:
    house = SharedHouse(1, reinitializes=True)
    ours, _ = await house.begin()
    client = house.call(ours)
    for number in range(10):
        await settle(TURNS)
        if client.reply.outcome:
            break
        attempt = house.take()
        if is_initialize(attempt):
            attempt.answer(200, b"{}", (SESSION, b"u%d" % number))
        elif attempt.outgoing.body == INITIALIZED:
            attempt.answer(202, b"")
        else:
            attempt.answer(404, b"who?")
    assert client.reply.status == 404
    await settle(TURNS)
    assert [attempt.is_over for attempt in house.attempts] == [True] * len(house.attempts)


@pytest.mark.parametrize("method", [b"POST", b"GET"])
async def test_a_404_in_a_pool_that_ends_sessions_is_passed_on_after_one_more_look(method: bytes) -> None:
    house = SharedHouse(2)
    ours, _ = await house.begin()
    client = house.ask(legacy("ping") if method == b"POST" else b"", (SESSION, ours), method=method)
    attempt = house.take()
    attempt.answer(404, b"who?")
    assert client.reply.outcome == "", "it may have moved"
    await settle(TURNS)
    assert (client.reply.status, client.reply.body) == (404, b"who?")
    assert [operation for operation, _ in house.registry.asked] == ["fetch", "end"]
    assert house.attempts == []
    assert house.shelf.read(SessionKey(ROUTE, ours).name) is ENDED
    house.assert_quiet()


@pytest.mark.parametrize("reinitializes", [False, True])
async def test_a_404_while_the_registry_is_away(reinitializes: bool) -> None:
    """Where sessions move nobody can tell; where they do not, the backend is right."""
    house = SharedHouse(2, reinitializes=reinitializes)
    ours, _ = await house.begin()
    house.registry.is_down = True
    client = house.call(ours)
    house.take().answer(404, b"who?")
    await settle(TURNS)
    assert client.verdict == ((503, "store_unavailable") if reinitializes else (404, ""))
    assert ("store_error", "get") in house.journal.events
    house.assert_quiet()


async def test_a_404_of_a_session_that_has_moved_leads_to_where_it_is() -> None:
    house = house_of()
    ours, owner = await house.begin()
    house.registry.is_deaf = True
    other = next(backend.id for backend in house.backends if backend.id != owner)
    old = house.stored(ours)
    moved = SessionRecord(other, "", b"u9", 1, old.initialize, old.created_s)
    house.shelf.write(SessionKey(ROUTE, ours).name, moved)
    client = house.call(ours)
    house.take().answer(404, b"who?")
    attempt = await house.one()
    assert (attempt.backend, fields(attempt)[SESSION]) == (other, b"u9")
    attempt.answer(200, b"{}", (SESSION, b"u9"))
    assert (client.reply.status, client.reply.one(SESSION)) == (200, ours)
    house.assert_quiet()


@pytest.mark.parametrize("whole", [True, False])
async def test_a_client_that_leaves_while_a_404_is_doubted_is_gone(whole: bool) -> None:
    house = house_of()
    ours, _ = await house.begin()
    house.registry.holds.add("fetch")
    client = house.call(ours)
    attempt = house.take()
    if whole:
        attempt.whole(404, [JSON], b"who?")
    else:
        attempt.head(404, [JSON], 4)
    await settle(TURNS)
    client.leave()
    await house.registry.take("fetch").let()
    await settle(TURNS)
    assert house.attempts == []
    assert house.stored(ours).generation == 0, "nothing was done about it"
    assert len(house.journal.records) == 1
    house.assert_quiet()
