"""What follows from what this process knows of sessions: counts of backends, and streams that end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy.sessions import SessionKey, SessionRecord
from tests.unit.fakes import settle
from tests.unit.gatehouse import EVENTS, KEY, ROUTE, SESSION, Gatehouse, legacy

ELSEWHERE = SessionRecord("http://elsewhere.example:1/mcp")


def counts(house: Gatehouse) -> list[int]:
    return [backend.sessions for backend in house.backends]


async def test_backends_have_the_sessions_that_are_known_of_them() -> None:
    house = Gatehouse(2)
    zero, one = (SessionRecord(backend.id) for backend in house.backends)
    house.watch.learnt(KEY, zero)
    house.watch.learnt(SessionKey(ROUTE, b"s2"), one)
    assert counts(house) == [1, 1]
    house.watch.forgot(KEY, zero, is_over=True)
    house.watch.learnt(KEY, one)
    assert counts(house) == [0, 2]
    house.watch.forgot(KEY, one, is_over=False)
    assert counts(house) == [0, 1]


async def test_sessions_of_nobody_here_count_for_nobody() -> None:
    house = Gatehouse(1)
    for key, record in ((KEY, ELSEWHERE), (SessionKey("/gone", b"s"), SessionRecord(house.backends[0].id))):
        house.watch.learnt(key, record)
        house.watch.forgot(key, record, is_over=True)
    assert counts(house) == [0]


@pytest.mark.parametrize("is_over", [True, False])
async def test_only_what_is_over_ends_streams(is_over: bool) -> None:
    """Pushed out of memory, or expired here: the session may live, and so does its stream."""
    house = Gatehouse(1)
    house.open_session()
    stream = house.listen()
    house.take().head(200, [EVENTS])
    house.watch.forgot(KEY, SessionRecord(house.backends[0].id), is_over=is_over)
    assert stream.reply.outcome == "", "not in the middle of what said so"
    await settle()
    assert stream.reply.outcome == ("end" if is_over else "")


async def test_a_call_in_progress_is_not_broken_off() -> None:
    """The answer may be on its way, and cannot be had a second time."""
    house = Gatehouse(1)
    house.open_session()
    stream = house.call()
    attempt = house.take()
    attempt.head(200, [EVENTS])
    house.watch.forgot(KEY, SessionRecord(house.backends[0].id), is_over=True)
    await settle()
    assert stream.reply.outcome == ""
    attempt.body(b"data: 1\n\n")
    attempt.end()
    assert (stream.reply.outcome, stream.reply.body) == ("end", b"data: 1\n\n")


async def test_two_streams_of_one_session_end_together() -> None:
    """A client that reconnects has two for a moment."""
    house = Gatehouse(1)
    house.open_session()
    streams = [house.listen() for _ in range(2)]
    for attempt in house.attempts:
        attempt.head(200, [EVENTS])
    house.ask(b"", (SESSION, b"s1"), method=b"DELETE")
    house.attempts.pop().answer(204, b"")
    await settle()
    assert [stream.reply.outcome for stream in streams] == ["end", "end"]
    assert [record.status for record in house.journal.records] == [204, 200, 200]
    house.assert_quiet()


async def test_a_session_that_is_disowned_takes_its_stream_along() -> None:
    house = Gatehouse(1)
    house.open_session()
    stream = house.listen()
    house.take().head(200, [EVENTS])
    client = house.ask(legacy("ping"), (SESSION, b"s1"))
    house.attempts[-1].answer(404, b"gone")
    await settle()
    assert (client.reply.status, stream.reply.outcome) == (404, "end")
    house.attempts.clear()
    house.assert_quiet()


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["open", "leave", "over", "turn"])), max_size=30)
)
async def test_streams_end_once_however_they_end(steps: list[tuple[int, str]]) -> None:
    house = Gatehouse(1)
    keys = [SessionKey(ROUTE, b"s%d" % number) for number in range(2)]
    for key in keys:
        house.open_session(key.session_id)
    streams = []
    for number, word in steps:
        key = keys[number % 2]
        if word == "open" and house.gateway.quotas.streams < 3:
            streams.append(house.listen(key.session_id))
            if house.attempts:
                house.take().head(200, [EVENTS])
        elif word == "leave" and streams:
            streams[number % len(streams)].leave()
        elif word == "over":
            house.store.delete(key)
        elif word == "turn":
            await settle()
    for key in keys:
        house.store.delete(key)
    await settle()
    assert all(stream.reply.outcome or stream.reply.is_gone for stream in streams)
    assert len(house.journal.records) == len(streams)
    assert counts(house) == [0]
    house.assert_quiet()
