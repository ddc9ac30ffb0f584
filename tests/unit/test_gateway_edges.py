"""What every exchange has in common: browsers, records, bugs of our own, the end, and references.

The last test lets clients, backends and a registry act in any order.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.backends import Backend
from mcp_proxy.errors import Fault, Phase, StoreError
from mcp_proxy.exchange import Exchange, State
from mcp_proxy.pools import Pool
from mcp_proxy.sessions import SessionRecord
from tests.unit.fakes import settle
from tests.unit.gatehouse import (
    EVENTS, JSON, SESSION, Client, Gatehouse, SlowStore, initialize, legacy, message, modern, names,
)  # fmt: skip

PAGE = (b"origin", b"https://app.example")
ALLOWED = b"access-control-allow-origin"
REQUESTED = (b"access-control-request-headers", b"content-type, Mcp-Param-Region, x-evil")


def public(**options: Any) -> Gatehouse:
    return Gatehouse(2, external_url="https://app.example", **options)


# -- browsers ----------------------------------------------------------------------------------


async def test_a_preflight_is_answered_here() -> None:
    house = public()
    client = house.ask(
        b"", PAGE, (b"access-control-request-method", b"POST"), REQUESTED, method=b"OPTIONS"
    )
    assert (client.reply.status, client.reply.outcome, client.reply.one(ALLOWED)) == (204, "answer", PAGE[1])
    granted = client.reply.one(b"access-control-allow-headers") or b""
    assert b"mcp-param-region" in granted
    assert b"x-evil" not in granted
    assert house.attempts == []
    assert house.record.ended_by is Fault.NONE
    house.assert_quiet()


@pytest.mark.parametrize("origin", [b"null", b"https://evil.example", b"http://app.example", b"https://app.example:444"])
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
    assert (record.era, record.http_method, record.method, record.name) == ("legacy", "POST", "tools/call", "x")
    assert (record.kind, record.attempts, record.bytes_in, record.bytes_out) == ("request", 1, len(legacy("tools/call")), 5)
    assert len(record.session) == 8
    assert "secret" not in repr(record)


async def test_the_time_of_the_backend_is_that_of_the_last_attempt_and_never_negative() -> None:
    house = Gatehouse(2)
    house.ask(*modern("server/discover"))
    house.attempts[0].head(500, [JSON])
    house.attempts[1].fail()
    assert house.record.upstream_s == 0.0
    assert house.record.status == 502


async def test_nothing_was_sent_so_the_backend_took_no_time() -> None:
    house = Gatehouse(1)
    house.ask(*modern("tools/call"))
    house.attempts[0].fail("refused")
    assert house.record.upstream_s == 0.0


# -- bugs of our own ---------------------------------------------------------------------------


class BrokenPool(Pool):
    def next(self, tried: Sequence[str] = ()) -> Backend | None:
        raise ZeroDivisionError


class BrokenLater(Pool):
    is_broken = False

    def has_other(self, tried: Sequence[str]) -> bool:
        if self.is_broken:
            raise ZeroDivisionError
        return super().has_other(tried)


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
    attempts = {client: attempt for client, attempt in zip(
        (waiting, holding, streaming, listening, storing), house.attempts, strict=True
    )}  # fmt: skip
    attempts[holding].head(200, [JSON])
    attempts[holding].body(b"{")
    attempts[streaming].head(200, [EVENTS])
    attempts[listening].head(200, [EVENTS])
    attempts[storing].head(200, [JSON, (SESSION, b"s1")])
    await settle()
    assert len(store.asked) == 2
    await house.gateway.aclose()
    await house.gateway.aclose()
    for client in (routing, waiting, holding, storing):
        assert client.verdict == (503, "draining")
        assert client.reply.one(b"retry-after") == b"1"
    assert (streaming.reply.outcome, listening.reply.outcome) == ("abort", "end")
    assert {record.ended_by for record in house.journal.records} == {Fault.DRAIN}
    assert len(house.journal.records) == 6
    assert all(transport.is_closed for transport in house.transports.values())
    house.assert_quiet()


# -- references --------------------------------------------------------------------------------


def exchanges() -> int:
    return sum(type(thing) is Exchange for thing in gc.get_objects())


@pytest.mark.parametrize("ending", ["answer", "fail", "refused", "leave", "stream", "retry", "store"])
async def test_nothing_keeps_an_exchange_that_is_over(ending: str) -> None:
    """Without the garbage collector's help: with it, a burst would keep its bodies for seconds."""
    house = Gatehouse(2, store=(lambda house: SlowStore()) if ending == "store" else None)
    gc.collect()
    before = exchanges()
    gc.disable()
    try:
        client: Client | None = house.ask(*(modern("server/discover") if ending != "store" else (initialize(),)))
        assert client is not None
        if ending == "answer":
            house.attempts[0].answer(200, b"{}")
        elif ending in ("fail", "refused"):
            house.attempts[0].fail("lost" if ending == "fail" else "refused")
            house.attempts[1].fail("lost" if ending == "fail" else "refused")
        elif ending == "leave":
            client.leave()
        elif ending == "stream":
            house.attempts[0].head(200, [EVENTS])
            house.attempts[0].body(b"x")
            client.leave()
        elif ending == "retry":
            house.attempts[0].head(503)
            house.attempts[1].answer(200, b"{}")
        else:
            house.attempts[0].answer(200, b"{}", (SESSION, b"s"))
            await settle()
            await house.store.answer(True)
        client = None
        house.attempts.clear()
        await settle()
        assert exchanges() == before
    finally:
        gc.enable()


# -- any order ---------------------------------------------------------------------------------

REQUESTS: list[Callable[[Gatehouse], Client]] = [
    lambda house: house.ask(initialize()),
    lambda house: house.ask(*modern("tools/call")),
    lambda house: house.ask(*modern("tools/list")),
    lambda house: house.ask(*modern("server/discover")),
    lambda house: house.ask(*modern("subscriptions/listen")),
    lambda house: house.call(),
    lambda house: house.listen(),
    lambda house: house.ask(b"", (SESSION, b"s1"), method=b"DELETE"),
    lambda house: house.ask(b"nonsense"),
]
ACTIONS = [
    "ask", "ask", "head", "stream", "whole", "body", "end", "fail", "refuse", "stale", "leave", "pause", "resume", "drain",
    "expire", "store", "store", "store fails", "sweep",
]  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(data=st.data(), steps=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 50)), max_size=60))
async def test_whatever_happens_everything_is_given_back(data: st.DataObject, steps: list[tuple[str, int]]) -> None:
    """The reply and the call of each exchange check the order of what they are told."""
    house = Gatehouse(3, store=lambda house: SlowStore())
    store: SlowStore = house.store
    clients: list[Client] = []
    for action, number in steps:
        await _act(house, store, clients, action, number)
        inflight = sum(backend.inflight for backend in house.backends)
        busy = [
            client.exchange
            for client in clients
            if client.exchange is not None and client.exchange.state not in (State.DONE, State.ROUTING)
        ]
        assert inflight == len(busy)
        assert house.gateway.streams <= house.gateway.streams_limit
    for client in clients:
        if client.exchange is not None and not client.reply.outcome and not client.reply.is_gone:
            client.leave()
    await settle()
    while store.asked:
        await store.answer(None)
    goodbyes = [attempt for attempt in house.attempts if not attempt.is_over]
    assert {attempt.outgoing.method for attempt in goodbyes} <= {b"DELETE"}
    for attempt in goodbyes:
        attempt.answer(200, b"")
    await house.gateway.aclose()
    assert len(house.journal.records) == len(clients)
    assert not any(store.held.values())
    house.gateway.sweep(1e12)
    await settle()
    house.assert_quiet()
    for client in clients:
        if client.reply.outcome == "answer" and client.reply.reason and client.reply.body:
            json.loads(client.reply.body)


async def _act(house: Gatehouse, store: SlowStore, clients: list[Client], action: str, number: int) -> None:
    if action == "ask":
        clients.append(REQUESTS[number % len(REQUESTS)](house))
        await settle(2)
    elif action in ("store", "store fails"):
        if store.asked:
            operation = store.asked[0][0]
            value: Any = {"get": SessionRecord(house.backends[number % 3].id), "create": number % 2 == 0}.get(operation)
            if action == "store":
                await store.answer(value)
            else:
                await store.fail(StoreError("down"))
    elif action == "sweep":
        house.gateway.sweep(1e12)
    elif action in ("leave", "pause", "resume", "drain", "expire"):
        open_ = [one for one in clients if one.exchange is not None and not one.reply.outcome and not one.reply.is_gone]
        if open_:
            client = open_[number % len(open_)]
            client.leave() if action == "leave" else getattr(client.exchange, action)()
    else:
        _act_as_backend(house, action, number)


def _act_as_backend(house: Gatehouse, action: str, number: int) -> None:
    waiting = [attempt for attempt in house.attempts if not attempt.is_over]
    if not waiting:
        return
    attempt = waiting[number % len(waiting)]
    if action in ("head", "stream", "whole") and not attempt.has_head:
        status = (200, 200, 200, 404, 500, 503)[number % 6]
        issued = [(SESSION, b"s%d" % number)] if number % 2 else []
        headers = [EVENTS if action == "stream" else JSON, *issued]
        attempt.whole(status, headers) if action == "whole" else attempt.head(status, headers)
    elif action == "body" and attempt.has_head:
        attempt.body(b"x" * (1 + 40 * number))
    elif action == "end" and attempt.has_head:
        attempt.end()
    elif action in ("fail", "stale", "refuse"):
        if action == "refuse" and not attempt.has_head:
            attempt.fail("refused")
        else:
            attempt.fail(stale=action == "stale" and not attempt.has_head)


async def test_no_task_is_left_by_any_of_this() -> None:
    assert len(asyncio.all_tasks()) <= 2
