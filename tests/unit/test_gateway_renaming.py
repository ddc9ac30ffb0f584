"""Sessions that client and backend call by different names: whose traffic is renamed, and what is not."""

from __future__ import annotations

import pytest

from mcp_proxy.headers import Facts
from mcp_proxy.sessions import SessionKey, SessionRecord, settled
from mcp_proxy.wire import Fields, Request
from tests.unit.actors import StrictReply
from tests.unit.fakes import settle
from tests.unit.gatehouse import EVENTS, JSON, SESSION, Client, initialize, legacy, modern, names
from tests.unit.revivals import TURNS, SharedHouse, fields

THEIRS = b"their-own"


async def sealed(session: bytes = THEIRS, **options: object) -> tuple[SharedHouse, bytes, str]:
    house = SharedHouse(2, sealed=True, **options)  # type: ignore[arg-type]
    ours, owner = await house.begin(session)
    assert ours != session
    return house, ours, owner


def seen(client: Client) -> list[bytes]:
    return [value for name, value in client.reply.headers if name == SESSION]


def anywhere(client: Client, secret: bytes) -> bool:
    """Whether the client could see it at all."""
    return any(secret in name + value for name, value in client.reply.headers) or secret in client.reply.body


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("status", [200, 201, 202])
async def test_the_answer_to_initialize_has_the_sealed_id(status: int, whole: bool) -> None:
    house = SharedHouse(2, sealed=True)
    client = house.ask(initialize())
    attempt = house.take()
    if whole:
        attempt.whole(status, [JSON, (SESSION, THEIRS), (b"x-a", b"1")], b"{}")
    else:
        attempt.answer(status, b"{}", (SESSION, THEIRS), (b"x-a", b"1"))
    (ours,) = seen(client)
    assert ours.startswith(b"v1.")
    assert not anywhere(client, THEIRS)
    assert (b"x-a", b"1") in client.reply.headers
    house.assert_quiet()


async def test_the_answer_to_initialize_may_be_a_stream() -> None:
    house = SharedHouse(2, sealed=True)
    client = house.ask(initialize())
    house.attempts[0].head(200, [EVENTS, (SESSION, THEIRS)])
    house.attempts[0].body(b"data: {}\n\n")
    house.attempts[0].end()
    assert seen(client)[0].startswith(b"v1.")
    assert client.reply.one(b"x-accel-buffering") == b"no"
    house.assert_quiet()


@pytest.mark.parametrize("method", [b"POST", b"GET", b"DELETE"])
@pytest.mark.parametrize("status", [200, 202, 400, 403, 405, 500, 503])
async def test_requests_and_answers_of_a_session_are_renamed(method: bytes, status: int) -> None:
    house, ours, owner = await sealed()
    body = legacy("tools/call") if method == b"POST" else b""
    client = house.ask(body, (b"x-before", b"1"), (SESSION, ours), (b"x-after", b"2"), method=method)
    attempt = house.take()
    assert attempt.backend == owner
    assert [value for name, value in attempt.outgoing.headers if name == SESSION] == [THEIRS]
    assert names(attempt.outgoing.headers).index(b"x-before") < names(attempt.outgoing.headers).index(
        b"x-after"
    )
    assert ours not in b"".join(value for _, value in attempt.outgoing.headers)
    assert attempt.outgoing.body == body
    attempt.answer(status, b'{"x":1}', (SESSION, THEIRS), (b"x-a", b"1"))
    await settle(TURNS)
    assert (client.reply.status, client.reply.body) == (status, b'{"x":1}')
    assert seen(client) == [ours]
    assert (b"x-a", b"1") in client.reply.headers
    assert not anywhere(client, THEIRS)
    house.assert_quiet()


@pytest.mark.parametrize("method", [b"POST", b"GET"])
async def test_streams_are_renamed(method: bytes) -> None:
    house, ours, _ = await sealed()
    client = house.ask(legacy("tools/call") if method == b"POST" else b"", (SESSION, ours), method=method)
    attempt = house.take()
    attempt.head(200, [EVENTS, (SESSION, THEIRS)])
    attempt.body(b"data: their-own\n\n")
    assert seen(client) == [ours]
    assert client.reply.one(b"x-accel-buffering") == b"no"
    assert client.reply.body == b"data: their-own\n\n", "bodies are not touched"
    attempt.end()
    house.assert_quiet()


@pytest.mark.parametrize("status", [200, 202, 400, 404, 500])
@pytest.mark.parametrize("id_", [b"throw-away", b"", b"v1.x", b"THEIR-OWN"])
async def test_an_id_that_is_not_the_sessions_is_not_shown(status: int, id_: bytes) -> None:
    house, ours, _ = await sealed()
    client = house.call(ours)
    house.take().answer(status, b"{}", (SESSION, id_))
    await settle(TURNS)
    assert client.reply.status == status
    assert seen(client) == []
    house.assert_quiet()


async def test_a_backend_that_says_the_sealed_id_is_not_believed() -> None:
    """It cannot know it, unless somebody tells it."""
    house, ours, _ = await sealed()
    client = house.call(ours)
    house.take().answer(200, b"{}", (SESSION, ours))
    assert seen(client) == []


async def test_a_backend_that_repeats_no_id_adds_none() -> None:
    house, ours, _ = await sealed()
    client = house.call(ours)
    house.take().answer(200, b"{}")
    assert seen(client) == []
    assert client.reply.status == 200


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_a_failed_initialize_shows_no_id_at_all(status: int) -> None:
    house = SharedHouse(2, sealed=True)
    client = house.ask(initialize())
    house.take().answer(status, b"{}", (SESSION, THEIRS))
    assert (client.reply.status, seen(client)) == (status, [])


async def test_what_names_no_session_is_not_renamed() -> None:
    house, ours, _ = await sealed()
    for request in ((legacy("ping"),), modern("tools/call"), (*modern("tools/list"), (SESSION, ours))):
        client = house.ask(*request)
        attempt = house.take()
        assert SESSION not in names(attempt.outgoing.headers)
        attempt.answer(200, b"{}", (SESSION, THEIRS))
        assert seen(client) == []


async def test_the_backends_own_id_is_no_name_for_clients() -> None:
    house, _, _ = await sealed()
    assert house.call(THEIRS).verdict == (404, "session_not_found")
    assert house.attempts == []


async def test_an_id_that_cannot_be_sealed_is_a_bad_answer_and_its_session_is_ended() -> None:
    house = SharedHouse(2, sealed=True)
    client = house.ask(initialize())
    attempt = house.take()
    attempt.answer(200, b"{}", (SESSION, b"x" * 400))
    await settle(TURNS)
    assert client.verdict == (502, "upstream_invalid")
    assert seen(client) == []
    assert "400 bytes" in client.error["message"] + str(client.error)
    goodbyes = list(house.attempts)
    for goodbye in goodbyes:
        goodbye.answer(200, b"")
    await settle(TURNS)
    assert [goodbye.outgoing.method for goodbye in goodbyes] == [b"DELETE"], "no client knows it"
    house.assert_quiet()


# --- what is remembered of heads ------------------------------------------------------------------


async def test_two_sessions_whose_backends_answer_alike_keep_their_names() -> None:
    """Backends count from one: two sessions have the same id, and the transport hands the same
    block of headers over, with what was read from it."""
    house = SharedHouse(2, sealed=True)
    first, owner = await house.begin(b"1")
    second, other = await house.begin(b"1")
    assert first != second
    assert owner != other
    repeated = Fields([JSON, (SESSION, b"1"), (b"x-a", b"1")])
    for _ in range(3):
        for ours in (first, second):
            client = house.call(ours)
            attempt = house.take()
            attempt.whole(200, repeated, b"{}")
            assert seen(client) == [ours]
            assert client.reply.one(b"x-a") == b"1"
    assert isinstance(repeated.note, Facts)
    assert repeated == [JSON, (SESSION, b"1"), (b"x-a", b"1")], "the block itself is as it was"
    house.assert_quiet()


async def test_a_repeated_request_head_follows_a_session_that_has_moved() -> None:
    """A door hands the same admission over again when the head is the same."""
    house = SharedHouse(3, sealed=True, reinitializes=True)
    ours, owner = await house.begin(THEIRS)
    request = Request(
        b"POST", b"/mcp", [(b"host", b"proxy.example"), JSON, (SESSION, ours)], "192.0.2.7", "http"
    )
    admission = house.gateway.admit(request)
    outcomes = []
    for theirs in (THEIRS, THEIRS, b"u2", b"u2"):
        if theirs == b"u2" and house.stored(ours).generation == 0:
            other = next(backend.id for backend in house.backends if backend.id != owner)
            old = house.stored(ours)
            new = SessionRecord(other, "", b"u2", 1, old.initialize, old.created_s)
            assert await settled(house.store.move(SessionKey("/mcp", ours), old, new))
            await settle(TURNS)
        reply = StrictReply()
        house.gateway.handle(admission, legacy("ping"), reply)  # type: ignore[arg-type]
        await settle(TURNS)
        attempt = house.take()
        outcomes.append((attempt.backend == owner, fields(attempt)[SESSION]))
        attempt.answer(200, b"{}", (SESSION, theirs))
        assert reply.one(SESSION) == ours
    assert outcomes == [(True, THEIRS), (True, THEIRS), (False, b"u2"), (False, b"u2")]
    house.assert_quiet()


async def test_pages_may_read_the_renamed_id() -> None:
    house, ours, _ = await sealed(external_url="http://localhost:5173")
    client = house.ask(legacy("ping"), (SESSION, ours), (b"origin", b"http://localhost:5173"))
    house.take().answer(200, b"{}", (SESSION, THEIRS))
    assert seen(client) == [ours]
    assert client.reply.one(b"access-control-allow-origin") == b"http://localhost:5173"
