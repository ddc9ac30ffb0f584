"""Clients, backends and a registry that act in any order: everything is given back."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.errors import StoreError
from mcp_proxy.exchange import Exchange, State
from mcp_proxy.sessions import SessionRecord
from tests.unit.fakes import settle
from tests.unit.gatehouse import EVENTS, JSON, SESSION, Client, Gatehouse, initialize, modern
from tests.unit.slow_store import SlowStore

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
        client: Client | None = house.ask(
            *(modern("server/discover") if ending != "store" else (initialize(),))
        )
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
    "ask", "ask", "head", "stream", "whole", "body", "end", "fail", "refuse", "stale", "leave", "pause",
    "resume", "drain", "expire", "store", "store", "store fails", "sweep",
]  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 50)), max_size=60))
async def test_whatever_happens_everything_is_given_back(steps: list[tuple[str, int]]) -> None:
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
        assert house.gateway.quotas.streams <= house.gateway.quotas.streams_limit
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
    store.touched.clear()
    house.gateway.sweep(1e12)
    assert store.touched == [], "nothing is in use any more"
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
            value: Any = {"get": SessionRecord(house.backends[number % 3].id), "create": number % 2 == 0}.get(
                operation
            )
            if action == "store":
                await store.answer(value)
            else:
                await store.fail(StoreError("down"))
    elif action == "sweep":
        house.gateway.sweep(1e12)
    elif action in ("leave", "pause", "resume", "drain", "expire"):
        open_ = [
            one
            for one in clients
            if one.exchange is not None and not one.reply.outcome and not one.reply.is_gone
        ]
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
