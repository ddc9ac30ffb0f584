"""Whom a request that no session binds is tried at: nobody, the only one, many, and one on trial."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from mcp_proxy.backends import Backend, Ejection, Endpoint
from mcp_proxy.backends.ejection import Rule
from mcp_proxy.gateway import DISCOVER_HEAD_S, TRIES_LIMIT
from mcp_proxy.pools import Pool
from mcp_proxy.sessions import SessionRecord
from tests.unit.departing import Site, openings, pass_time
from tests.unit.fakes import until
from tests.unit.gatehouse import (
    KEY,
    ROUTE,
    SESSION,
    USER,
    Client,
    Gatehouse,
    by_header,
    initialize,
    modern,
)  # fmt: skip

# --- nobody is there ---------------------------------------------------------------------------------


class Untold(Pool):
    def update(self, endpoints: Iterable[Endpoint], by: str) -> None:
        """Discovery has not answered yet."""


async def empty(kind: str, house: Gatehouse) -> Client:
    if kind == "initialize":
        client = house.ask(initialize())
    elif kind in ("discover", "listen", "call"):
        method = {"discover": "server/discover", "listen": "subscriptions/listen", "call": "tools/call"}[kind]
        client = house.ask(*modern(method))
    elif kind == "session":
        client = house.call()
    else:
        client = house.ask(b"", (SESSION, b"s1"), method=kind.encode())
    await until(lambda: client.reply.outcome, 0.01)
    return client


@pytest.mark.parametrize("kind", ["initialize", "discover", "listen", "call", "session", "GET", "DELETE"])
async def test_a_pool_that_nobody_has_named_backends_of_yet_says_503(kind: str) -> None:
    """However long it takes: whether a session's backend is there cannot be told."""
    house = Site(0, lost_after_s=0.0, pool=Untold)
    house.store.create(KEY, SessionRecord("http://backend0.example:8000/mcp"))

    client = await empty(kind, house)

    assert client.verdict == (503, "backend_unavailable")
    assert client.reply.one(b"retry-after") == b"1"
    assert house.store.count(ROUTE) == 1
    house.assert_quiet()


# --- tries ------------------------------------------------------------------------------------------


def mixed(**options: Any) -> tuple[Site, Backend, Backend]:
    """One backend speaks 2026-07-28, the other does not."""
    house = Site(2, **options)
    speaks, other = house.backends
    house.pool.learn_era(speaks, True)
    house.pool.learn_era(other, False)
    return house, speaks, other


async def test_the_only_backend_that_speaks_it_may_be_slow_with_discover() -> None:
    """To ask the others would make clients fall back to sessions for good."""
    house, speaks, _ = mixed()
    client = house.ask(*modern("server/discover"))
    attempt = house.take()
    assert attempt.backend == speaks.id

    await pass_time(house, DISCOVER_HEAD_S + 1)

    attempt.answer(200, b"{}")
    assert client.reply.status == 200
    house.assert_quiet()


async def test_what_the_only_backend_that_speaks_it_says_is_passed_on() -> None:
    house, _, _ = mixed()
    failed = house.ask(*modern("server/discover"))
    house.take().answer(500, b'{"theirs":1}')
    assert (failed.reply.status, failed.reply.body) == (500, b'{"theirs":1}')

    lost = house.ask(*modern("tools/list"))
    house.take().fail("lost")
    assert lost.verdict == (502, "upstream_lost")
    house.assert_quiet()


@pytest.mark.parametrize("kind", ["initialize", "server/discover"])
async def test_a_request_that_everybody_answers_badly_does_not_visit_all(kind: str) -> None:
    house = Site(TRIES_LIMIT + 4)
    client = house.ask(initialize()) if kind == "initialize" else house.ask(*modern(kind))
    seen: list[str] = []
    while house.attempts:
        attempt = house.take()
        seen.append(attempt.backend)
        attempt.answer(503, b"{}")

    assert len(seen) == len(set(seen)) == TRIES_LIMIT
    assert client.reply.status == 503
    assert openings(house) == [0] * (TRIES_LIMIT + 4)
    house.assert_quiet()


async def test_the_last_backend_that_is_tried_may_be_slow_with_discover() -> None:
    house = Site(TRIES_LIMIT + 1)
    client = house.ask(*modern("server/discover"))
    for _ in range(TRIES_LIMIT - 1):
        house.take().fail("refused")
    attempt = house.take()

    await pass_time(house, DISCOVER_HEAD_S + 1)

    attempt.answer(200, b"{}")
    assert client.reply.status == 200
    house.assert_quiet()


async def test_a_trial_whose_client_leaves_is_made_again() -> None:
    house = Site(2, eject=Rule(1, 0.0, 0.5))
    a, _ = house.backends
    house.pool.answered(a, 500)
    await pass_time(house, 1.0)
    client = house.ask(*modern("tools/call"))
    assert house.take().backend == a.id
    client.leave()
    assert a.ejection is Ejection.PROBED

    await pass_time(house, 3600.0)

    assert a.standing.value == "trial"
    house.ask(*modern("tools/call"))
    attempt = house.take()
    assert attempt.backend == a.id
    attempt.answer(200, b"{}")
    assert a.standing.value == "good"
    house.assert_quiet()


async def test_a_trial_comes_before_affinity() -> None:
    house = Site(2, balance="hash", eject=Rule(1, 0.0, 0.5), identify=by_header)
    client = house.ask(*modern("tools/call"), (USER, b"ann"))
    home = house.find(house.take().backend)
    other = next(backend for backend in house.backends if backend is not home)
    client.leave()
    house.pool.answered(other, 500)
    await pass_time(house, 1.0)

    chosen = []
    for _ in range(2):
        house.ask(*modern("tools/call"), (USER, b"ann"))
        attempt = house.take()
        attempt.answer(200, b"{}")
        chosen.append(attempt.backend)

    assert chosen == [other.id, home.id]
    house.assert_quiet()
