"""What a request counts for while it is in progress: given back once, however it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mcp_proxy.backends import Backend
from mcp_proxy.envelope import Envelope
from mcp_proxy.exchange import State
from mcp_proxy.pools import Pool
from mcp_proxy.quotas import Bounds, Quotas
from mcp_proxy.routing import Plan
from mcp_proxy.wire import Rejection
from tests.unit.actors import Attempt
from tests.unit.departing import Site, openings
from tests.unit.fakes import settle
from tests.unit.gatehouse import (
    EVENTS,
    JSON,
    SESSION,
    STREAMS,
    Client,
    Gatehouse,
    by_header,
    initialize,
    modern,
    slow_house,
)  # fmt: skip

# --- what is counted ---------------------------------------------------------------------------------


def advance(attempt: Attempt, state: State) -> None:
    if state is State.HOLDING:
        attempt.head(200, [JSON])
        attempt.body(b"{")
    elif state is State.RELAYING:
        attempt.head(200, [EVENTS])
        attempt.body(b"data: 1\n\n")
    elif state is State.STORING:
        attempt.head(200, [JSON, (SESSION, b"s1")])


@pytest.mark.parametrize("end", ["leave", "fail", "expire"])
@pytest.mark.parametrize("state", [State.WAITING, State.STORING, State.HOLDING, State.RELAYING])
async def test_a_session_that_is_being_opened_counts_until_its_request_is_over(
    state: State, end: str
) -> None:
    house, _ = slow_house()
    client = house.ask(initialize())
    attempt = house.take()
    assert sum(openings(house)) == 1
    advance(attempt, state)
    await settle()
    assert client.exchange is not None
    assert client.exchange.state is state
    assert sum(openings(house)) == 1

    if end == "leave":
        client.leave()
    elif end == "expire":
        client.exchange.expire()
    else:
        attempt.fail()
        if state is State.WAITING:  # whoever is next fails as well
            house.take().fail()

    assert openings(house) == [0, 0]
    assert house.gateway.quotas.requests == 0


# --- quotas --------------------------------------------------------------------------------------------


class Doorman(Quotas):
    """Writes down who came in and who left."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits)
        self.inside: list[tuple[object, ...]] = []
        self.entered = 0

    def enter(self, plan: Plan, envelope: Envelope | None, client: str, principal: str) -> Rejection | None:
        refusal = super().enter(plan, envelope, client, principal)
        if refusal is None:
            self.entered += 1
            self.inside.append((plan.listens, envelope, client, principal))
        return refusal

    def leave(self, plan: Plan, envelope: Envelope | None, client: str, principal: str) -> None:
        self.inside.remove((plan.listens, envelope, client, principal))
        super().leave(plan, envelope, client, principal)


def guarded(**options: Any) -> tuple[Site, Doorman]:
    house = Site(2, identify=by_header, **options)
    house.gateway.quotas = doorman = Doorman(
        streams=STREAMS, requests=2, per_client=Bounds(2, 2), per_principal=Bounds(2, 2)
    )
    return house, doorman


class BrokenPool(Pool):
    def next(self, *_: Any, **__: Any) -> Backend | None:
        raise ZeroDivisionError


WAYS: dict[str, tuple[Callable[[Gatehouse], Client], int]] = {
    "no plan": (lambda house: house.ask(b"nonsense"), 0),
    "preflight": (lambda house: house.ask(b"", method=b"OPTIONS"), 0),
    "unknown session": (lambda house: house.call(b"unknown"), 1),
    "unknown stream": (lambda house: house.listen(b"unknown"), 1),
    "impossible session": (lambda house: house.call(b"\x7f"), 1),
    "answered": (lambda house: house.ask(initialize()), 1),
    "stream": (lambda house: house.ask(*modern("subscriptions/listen")), 1),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ["whole", "stream", "fail", "leave"])
async def test_whoever_comes_in_leaves_once(way: str, end: str) -> None:
    house, doorman = guarded()
    ask, entered = WAYS[way]
    client = ask(house)
    for attempt in house.attempts:
        if end == "whole":
            attempt.whole(200, [JSON], b"{}")
        elif end == "stream":
            attempt.head(200, [EVENTS])
    while waiting := [attempt for attempt in house.attempts if not attempt.is_over]:
        client.leave() if end == "leave" else waiting[0].fail()
    assert (doorman.entered, doorman.inside) == (entered, [])
    assert (doorman.streams, doorman.requests) == (0, 0)
    assert repr(doorman) == "<Quotas streams=0 requests=0 clients=0 principals=0 none>"


async def test_a_bug_after_the_quotas_gives_back_what_they_gave() -> None:
    house, doorman = guarded(pool=BrokenPool)
    assert house.ask(initialize()).verdict == (500, "internal_error")
    assert (doorman.entered, doorman.inside) == (1, [])
    house.assert_quiet()


async def test_a_request_whose_session_means_nothing_leaves_as_it_came() -> None:
    """Its plan is another one by then."""
    house, doorman = guarded()
    house.pool.learn_sessions(False)
    client = house.call(b"made-up")
    house.take().answer(200, b"{}")
    assert client.reply.status == 200
    stream = house.listen(b"made-up")
    assert stream.verdict == (405, "method_not_allowed")
    assert (doorman.entered, doorman.inside) == (2, [])
    house.assert_quiet()


async def test_whoever_was_not_let_in_does_not_leave() -> None:
    house, doorman = guarded()
    first, second = house.ask(initialize()), house.ask(initialize())
    third = house.ask(initialize())
    assert third.reply.status in (429, 503)
    assert doorman.requests == 2
    first.leave()
    second.leave()
    assert (doorman.entered, doorman.inside) == (2, [])
    assert openings(house) == [0, 0]
    house.assert_quiet()
