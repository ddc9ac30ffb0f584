"""Requests of the proxy's own: bounded in time and size, whatever the backend does."""

from __future__ import annotations

import asyncio

import pytest

from mcp_proxy.errands import ANSWER_LIMIT, Answer, ask, own_headers, say_goodbye
from mcp_proxy.errors import Phase, UpstreamError
from mcp_proxy.upstream import Outgoing
from mcp_proxy.wire import Fields
from tests.tools import PATIENCE_S
from tests.unit.actors import Attempt, ScriptedTransport
from tests.unit.fakes import settle
from tests.unit.poolside import pool_of

JSON = (b"content-type", b"application/json")
SESSION = (b"mcp-session-id", b"s1")
REQUEST = Outgoing(b"POST", b"/mcp", Fields([JSON]), b"{}")


class Rig:
    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.transport = ScriptedTransport("backend", self.attempts)
        self.pool = pool_of(lambda _: self.transport, "backend.example")
        (self.backend,) = self.pool.backends

    async def asked(self, seconds: float = PATIENCE_S) -> tuple[asyncio.Task[Answer], Attempt]:
        asking = asyncio.ensure_future(ask(self.transport, REQUEST, seconds))
        await settle()
        (attempt,) = self.attempts
        assert attempt.outgoing is REQUEST
        return asking, attempt


@pytest.mark.parametrize("whole", [True, False])
async def test_the_whole_answer_is_collected(whole: bool) -> None:
    asking, attempt = await Rig().asked()
    if whole:
        attempt.whole(200, [JSON, SESSION], b"hello")
    else:
        attempt.head(200, [JSON, SESSION])
        attempt.body(b"he", b"llo")
        assert not asking.done()
        attempt.end()
    answer = await asking
    assert (answer.status, list(answer.headers), answer.body) == (200, [JSON, SESSION], b"hello")
    assert not attempt.is_cancelled


@pytest.mark.parametrize("kind", ["refused", "lost", "timeout", "invalid"])
@pytest.mark.parametrize("when", ["at once", "behind the head", "in the body"])
async def test_a_failure_is_raised_as_it_came(kind: str, when: str) -> None:
    asking, attempt = await Rig().asked()
    if when != "at once":
        attempt.head(200, [JSON])
    if when == "in the body":
        attempt.body(b"half")
    attempt.fail(kind)
    with pytest.raises(UpstreamError) as error:
        await asking
    assert (error.value.kind, error.value.sent) == (kind, kind != "refused")


@pytest.mark.parametrize("when", ["at once", "behind the head", "in the body"])
async def test_a_backend_that_hangs_is_left(when: str) -> None:
    asking, attempt = await Rig().asked(0.01)
    if when != "at once":
        attempt.head(200, [JSON])
    if when == "in the body":
        attempt.body(b"half")
    with pytest.raises(UpstreamError) as error:
        await asking
    assert (error.value.phase, error.value.kind, error.value.sent) == (Phase.HEAD, "timeout", True)
    assert attempt.is_cancelled


async def test_an_answer_up_to_the_limit_is_taken_and_a_longer_one_is_not() -> None:
    asking, attempt = await Rig().asked()
    attempt.head(200)
    attempt.body(b"x" * (ANSWER_LIMIT - 1), b"x")
    attempt.end()
    assert len((await asking).body) == ANSWER_LIMIT

    asking, attempt = await Rig().asked()
    attempt.head(200)
    attempt.body(b"x" * ANSWER_LIMIT)
    attempt.body(b"x")
    attempt.body(b"x")
    with pytest.raises(UpstreamError):
        await asking
    assert attempt.is_cancelled


@pytest.mark.parametrize("surplus", ["end", "fail", "body"])
async def test_what_comes_behind_an_answer_that_was_too_long_does_no_harm(surplus: str) -> None:
    asking, attempt = await Rig().asked()
    attempt.head(200)
    attempt.body(b"x" * ANSWER_LIMIT, b"x")
    if surplus == "end":
        attempt.end()
    elif surplus == "fail":
        attempt.fail()
    else:
        attempt.body(b"x" * ANSWER_LIMIT)
    with pytest.raises(UpstreamError) as error:
        await asking
    assert error.value.kind == "invalid"


async def test_whoever_does_not_want_the_answer_any_more_closes_the_call() -> None:
    asking, attempt = await Rig().asked()
    attempt.head(200)
    asking.cancel()
    await settle()
    assert asking.cancelled()
    assert attempt.is_cancelled


async def test_a_transport_that_fails_at_once_is_no_different() -> None:
    class Failing(ScriptedTransport):
        def send(self, *args: object, **options: object) -> Attempt:
            attempt = super().send(*args, **options)  # type: ignore[arg-type]
            attempt.fail("refused")
            return attempt

    with pytest.raises(UpstreamError) as error:
        await ask(Failing("b", []), REQUEST, PATIENCE_S)
    assert error.value.sent is False


# --- headers and goodbyes -------------------------------------------------------------------------


def test_what_belongs_to_one_request_is_left_out() -> None:
    given = [
        (b"authorization", b"t"), (b"accept", b"*/*"), JSON, SESSION, (b"x-a", b"1"), (b"x-a", b"2"),
        (b"mcp-param-region", b"eu"), (b"mcp-name", b"x"), (b"mcp-method", b"m"), (b"last-event-id", b"4"),
        (b"mcp-protocol-version", b"v"), (b"accept-encoding", b"gzip"),
        (b"tracestate", b"x"), (b"traceparent", b"x"),
    ]  # fmt: skip
    assert own_headers(given) == [
        (b"authorization", b"t"), (b"x-a", b"1"), (b"x-a", b"2"), JSON,
        (b"accept", b"application/json, text/event-stream"),
    ]  # fmt: skip
    assert len(given) == 14


async def test_a_goodbye_names_the_session_as_its_backend_does() -> None:
    rig = Rig()
    headers = [
        (b"authorization", b"t"),
        JSON,
        (b"accept", b"*/*"),
        (b"mcp-session-id", b"client's"),
        (b"x-a", b"1"),
    ]
    saying = asyncio.ensure_future(say_goodbye(rig.pool, rig.backend, b"theirs", headers))
    await settle()
    (attempt,) = rig.attempts
    outgoing = attempt.outgoing
    assert (outgoing.method, outgoing.target, outgoing.body) == (b"DELETE", b"/mcp", b"")
    assert list(outgoing.headers) == [
        (b"authorization", b"t"),
        (b"x-a", b"1"),
        (b"mcp-session-id", b"theirs"),
    ]
    attempt.answer(405, b"no")
    await saying


@pytest.mark.parametrize("kind", ["refused", "lost", "timeout"])
async def test_a_goodbye_that_fails_is_over(kind: str) -> None:
    rig = Rig()
    saying = asyncio.ensure_future(say_goodbye(rig.pool, rig.backend, b"theirs", []))
    await settle()
    rig.attempts[0].fail(kind)
    await saying
