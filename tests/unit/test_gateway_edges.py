"""What every exchange has in common: browsers, records, bugs of our own, and the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mcp_proxy.backends import Backend
from mcp_proxy.clock import now
from mcp_proxy.errors import Fault, Phase
from mcp_proxy.pools import Pool
from mcp_proxy.sessions import SessionRecord
from tests.unit.fakes import settle, until
from tests.unit.gatehouse import (
    EVENTS,
    JSON,
    KEY,
    ROUTE,
    SESSION,
    Client,
    Gatehouse,
    initialize,
    legacy,
    message,
    modern,
    names,
)  # fmt: skip
from tests.unit.poolside import endpoint
from tests.unit.slow_store import SlowStore

PAGE = (b"origin", b"https://app.example")
ALLOWED = b"access-control-allow-origin"
REQUESTED = (b"access-control-request-headers", b"content-type, Mcp-Param-Region, x-evil")


def public(**options: Any) -> Gatehouse:
    return Gatehouse(2, external_url="https://app.example", **options)


# -- browsers ----------------------------------------------------------------------------------


async def test_a_preflight_is_answered_here() -> None:
    house = public()
    client = house.ask(b"", PAGE, (b"access-control-request-method", b"POST"), REQUESTED, method=b"OPTIONS")
    assert (client.reply.status, client.reply.outcome, client.reply.one(ALLOWED)) == (204, "answer", PAGE[1])
    granted = client.reply.one(b"access-control-allow-headers") or b""
    assert b"mcp-param-region" in granted
    assert b"x-evil" not in granted
    assert house.attempts == []
    assert house.record.ended_by is Fault.NONE
    house.assert_quiet()


@pytest.mark.parametrize(
    "origin", [b"null", b"https://evil.example", b"http://app.example", b"https://app.example:444"]
)
@pytest.mark.parametrize("method", [b"POST", b"GET", b"DELETE", b"OPTIONS"])
async def test_another_origin_gets_nothing(origin: bytes, method: bytes) -> None:
    house = public()
    client = house.ask(legacy("ping"), (b"origin", origin), method=method)
    assert client.verdict == (403, "forbidden_origin")
    assert ALLOWED not in names(client.reply.headers)
    assert house.attempts == []
    assert house.record.reason == "forbidden_origin"


async def test_every_answer_to_an_allowed_origin_says_so() -> None:
    house = public()
    house.open_session()
    relayed = house.ask(*modern("tools/call"), PAGE)
    house.take().answer(200, b"{}")
    streamed = house.ask(*modern("tools/call"), PAGE)
    attempt = house.take()
    attempt.head(200, [EVENTS])
    unknown = house.ask(legacy("ping"), (SESSION, b"unknown"), PAGE)
    broken = house.ask(*modern("tools/call"), PAGE)
    house.take().fail()
    invalid = house.ask(b"not json", PAGE)
    refused = house.ask(legacy("ping"), PAGE, method=b"PUT")
    opened = house.ask(initialize(), PAGE)
    house.take().answer(200, b"{}", (SESSION, b"s2"))
    for client in (relayed, streamed, unknown, broken, invalid, refused, opened):
        assert client.reply.one(ALLOWED) == PAGE[1], client.verdict
        assert b"mcp-session-id" in (client.reply.one(b"access-control-expose-headers") or b"")
    attempt.end()


async def test_the_origin_of_one_client_is_not_told_to_another() -> None:
    """Answers with the same head share one block of headers."""
    house = public()
    replies = []
    for origin in (PAGE, None, PAGE, None):
        client = house.ask(*modern("tools/call"), *([origin] if origin else []))
        house.take().answer(200, b"{}", (b"x-same", b"1"))
        replies.append(client.reply.one(ALLOWED))
    assert replies == [PAGE[1], None, PAGE[1], None]


async def test_answers_that_share_their_headers_do_not_change_each_other() -> None:
    from mcp_proxy.wire import Fields

    house = public()
    house.open_session()
    shared = Fields([JSON, (SESSION, b"s1"), (b"location", b"/mcp?next")])
    before = list(shared)
    shown = []
    for status, request in [
        (200, (legacy("ping"), (SESSION, b"s1"))),
        (200, modern("tools/call")),
        (307, modern("tools/call")),
        (200, (legacy("ping"), (SESSION, b"s1"), PAGE)),
        (404, modern("tools/list")),
        (200, (legacy("ping"), (SESSION, b"s1"))),
    ]:
        client = house.ask(*request)
        attempt = house.take()
        attempt.has_head = True
        attempt._told().on_head(status, shared, 0)
        attempt.end()
        shown.append(client.reply.headers)
        assert list(shared) == before
    assert shown[0] == shown[-1]
    assert [SESSION in names(headers) for headers in shown] == [True, False, False, True, False, True]


# -- records -----------------------------------------------------------------------------------

ENDINGS: dict[str, tuple[Callable[[Gatehouse], Client], int, str, Fault, Phase]] = {
    "an answer": (lambda house: _answered(house), 200, "", Fault.NONE, Phase.NONE),
    "not JSON": (lambda house: house.ask(b"{"), 400, "parse_error", Fault.CLIENT, Phase.ADMIT),
    "not MCP": (lambda house: house.ask(b"[]"), 400, "invalid_request", Fault.CLIENT, Phase.ADMIT),
    "contradiction": (
        lambda house: house.ask(message("tools/call"), (b"mcp-protocol-version", b"2026-07-28")),
        400,
        "missing_meta",
        Fault.CLIENT,
        Phase.ADMIT,
    ),
    "unknown session": (lambda house: house.call(), 404, "session_not_found", Fault.CLIENT, Phase.ROUTE),
    "GET without a session": (
        lambda house: house.ask(method=b"GET"),
        405,
        "method_not_allowed",
        Fault.CLIENT,
        Phase.ADMIT,
    ),
    "lost": (lambda house: _failed(house, "lost"), 502, "upstream_lost", Fault.BACKEND, Phase.HEAD),
    "timeout": (lambda house: _failed(house, "timeout"), 504, "upstream_timeout", Fault.TIMEOUT, Phase.HEAD),
    "left": (lambda house: _left(house), 0, "", Fault.CLIENT, Phase.HEAD),
}


def _answered(house: Gatehouse) -> Client:
    client = house.ask(*modern("tools/call"))
    house.attempts[0].answer(200, b"{}")
    return client


def _failed(house: Gatehouse, kind: str) -> Client:
    client = house.ask(*modern("tools/call"))
    house.attempts[0].fail(kind)
    return client


def _left(house: Gatehouse) -> Client:
    client = house.ask(*modern("tools/call"))
    client.leave()
    return client


@pytest.mark.parametrize(("ask", "status", "reason", "fault", "phase"), ENDINGS.values(), ids=ENDINGS.keys())
async def test_each_ending_is_recorded_once(
    ask: Callable[[Gatehouse], Client], status: int, reason: str, fault: Fault, phase: Phase
) -> None:
    house = Gatehouse(1)
    client = ask(house)
    record = house.record
    assert (record.status, record.reason, record.ended_by, record.phase) == (status, reason, fault, phase)
    assert record.bytes_out == len(client.reply.body)
    assert record.duration_s >= 0
    assert record.peer == "192.0.2.7"
    house.assert_quiet()


async def test_a_record_tells_what_was_asked_and_of_whom_but_no_session_id() -> None:
    house = Gatehouse(1)
    house.open_session(b"secret-session")
    house.call(b"secret-session")
    house.take().answer(200, b"12345")
    record = house.record
    assert (record.route, record.pool, record.backend) == ("/mcp", "pool", house.backends[0].id)
    assert (record.era, record.http_method, record.method, record.name) == (
        "legacy",
        "POST",
        "tools/call",
        "x",
    )
    assert (record.kind, record.attempts, record.bytes_in, record.bytes_out) == (
        "request",
        1,
        len(legacy("tools/call")),
        5,
    )
    assert len(record.session) == 8
    assert "secret" not in repr(record)


async def test_the_time_of_the_backends_is_that_of_all_attempts_and_never_more_than_there_was() -> None:
    house = Gatehouse(2)
    house.ask(*modern("server/discover"))
    await settle()
    waits = [-now(), now()]
    house.attempts[0].head(500, [JSON])
    await settle()
    waits += [-now(), now()]
    house.attempts[1].fail()
    assert house.record.status == 502
    assert sum(waits) <= house.record.upstream_s <= house.record.duration_s


async def test_a_backend_that_is_slow_with_the_rest_of_its_answer_is_waited_for() -> None:
    house = Gatehouse(1)
    house.ask(*modern("tools/call"))
    house.attempts[0].head(200, [JSON])
    await settle()
    waits = [-now()]
    house.attempts[0].body(b"{}")
    waits += [now()]
    await settle()
    house.attempts[0].end()
    assert house.record.upstream_s >= sum(waits)


async def test_what_follows_the_last_byte_of_a_backend_is_our_own_time() -> None:
    house = Gatehouse(1)
    house.ask(*modern("tools/call"))
    await settle()
    house.attempts[0].answer(200, b"{}")
    assert house.record.duration_s > house.record.upstream_s > 0


# -- bugs of our own ---------------------------------------------------------------------------


class BrokenPool(Pool):
    def next(self, tried: Sequence[str] = (), affinity: bytes | None = None, **_: bool) -> Backend | None:
        raise ZeroDivisionError


class BrokenLater(Pool):
    is_broken = False

    def has_other(self, tried: Sequence[str], *, is_modern: bool = False) -> bool:
        if self.is_broken:
            raise ZeroDivisionError
        return super().has_other(tried, is_modern=is_modern)


async def test_a_bug_in_the_routing_is_a_500_and_not_a_lost_client() -> None:
    house = Gatehouse(1, pool=BrokenPool)
    client = house.ask(*modern("tools/call"))
    assert client.verdict == (500, "internal_error")
    assert client.error["data"]["reason"] == "internal_error"
    house.assert_quiet()


@pytest.mark.parametrize("where", ["head", "error"])
async def test_a_bug_while_a_backend_answers_does_not_leave_the_client_waiting(where: str) -> None:
    house = Gatehouse(2, pool=BrokenLater)
    client = house.ask(*modern("server/discover"))
    house.pool.is_broken = True  # type: ignore[attr-defined]
    with contextlib.suppress(ZeroDivisionError):
        if where == "head":
            house.attempts[0].head(500, [JSON])
        else:
            house.attempts[0].fail()
    assert client.verdict == (500, "internal_error")
    house.assert_quiet()


# -- the end -----------------------------------------------------------------------------------


async def test_closing_ends_everything_once_and_is_idempotent() -> None:
    house = Gatehouse(1, store=lambda house: SlowStore())
    store: SlowStore = house.store
    routing = house.call()
    waiting = house.ask(*modern("tools/call"))
    holding = house.ask(*modern("tools/call"))
    streaming = house.ask(*modern("tools/call"))
    listening = house.ask(*modern("subscriptions/listen"))
    storing = house.ask(initialize())
    clients = (waiting, holding, streaming, listening, storing)
    attempts = dict(zip(clients, house.attempts, strict=True))
    attempts[holding].head(200, [JSON])
    attempts[holding].body(b"{")
    attempts[streaming].head(200, [EVENTS])
    attempts[listening].head(200, [EVENTS])
    attempts[storing].head(200, [JSON, (SESSION, b"s1")])
    await settle()
    assert len(store.asked) == 2
    for _ in range(2):
        await house.gateway.aclose()
        await house.pool.aclose()
    for client in (routing, storing):
        assert client.verdict == (503, "draining")
        assert client.reply.one(b"retry-after") == b"1"
    for client in (waiting, holding):
        assert client.verdict == (504, "upstream_timeout"), "it may have run"
        assert client.reply.one(b"retry-after") is None
    assert (streaming.reply.outcome, listening.reply.outcome) == ("abort", "end")
    assert {record.ended_by for record in house.journal.records} == {Fault.DRAIN}
    assert len(house.journal.records) == 6
    assert all(transport.is_closed for transport in house.transports.values())
    house.assert_quiet()


# -- answers that must not pass ----------------------------------------------------------------


async def test_a_redirect_stays_within_the_route() -> None:
    house = Gatehouse(1)
    inside = house.ask(*modern("tools/call"))
    house.take().answer(307, b"", (b"location", b"http://backend0.example:8000/mcp?x=1"))
    assert (inside.reply.status, inside.reply.one(b"location")) == (307, b"/mcp?x=1")
    house.journal.records.clear()
    outside = house.ask(*modern("tools/call"))
    attempt = house.take()
    attempt.head(307, [(b"location", b"http://elsewhere.example/mcp")], 0)
    assert outside.verdict == (502, "upstream_invalid")
    assert outside.error["data"]["reason"] == "upstream_invalid"
    assert b"elsewhere" not in outside.reply.body
    assert attempt.is_cancelled
    assert house.record.ended_by is Fault.BACKEND
    house.assert_quiet()


async def test_a_challenge_for_the_pools_own_credentials_is_not_the_clients() -> None:
    """It would send the user through an OAuth flow for the wrong resource."""
    house = Gatehouse(1, authorization=b"Bearer secret")
    client = house.ask(*modern("tools/call"), (b"authorization", b"Bearer of-the-client"))
    assert [value for name, value in house.attempts[0].outgoing.headers if name == b"authorization"] == [
        b"Bearer secret"
    ]
    house.attempts[0].answer(401, b"{}", (b"www-authenticate", b"Bearer resource_metadata=x"))
    assert client.reply.status == 502
    assert client.reply.one(b"www-authenticate") is None
    house.assert_quiet()


async def test_a_session_of_a_backend_that_is_not_known_here_is_given_time_to_become_known() -> None:
    """Another replica may have heard of the backend first. To end the session would be for good."""
    house = Gatehouse(2)
    house.store.create(KEY, SessionRecord("http://backend2.example:8000/mcp"))
    early = house.call()
    await until(lambda: early.reply.outcome, 0.01)
    assert early.verdict == (503, "backend_unavailable")
    assert early.reply.one(b"retry-after") == b"1"
    assert house.store.count(ROUTE) == 1

    house.pool.update([endpoint(f"backend{number}.example") for number in range(3)], "discovery")
    house.call()
    assert house.take().backend == "http://backend2.example:8000/mcp"
    house.journal.records.clear()


async def test_a_session_of_a_backend_that_nobody_comes_to_know_is_lost() -> None:
    house = Gatehouse(2, unknown_after_s=0.0)
    house.store.create(KEY, SessionRecord("http://removed.example:80/mcp"))
    client = house.call()
    assert client.verdict == (404, "session_not_found")
    assert house.store.count(ROUTE) == 0
    assert house.attempts == []
    house.assert_quiet()
