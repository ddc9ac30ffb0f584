"""The stores that replicas share, for the contract of every session store: over a real Redis, with ids
that are sealed, and both.

Rules of this file: time passes for Redis as it does for the store, in steps shorter than those in which
the store asks about sessions in use.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final

import pytest

from mcp_proxy.sessions.redis import RedisRegistry
from mcp_proxy.sessions.shared import SharedStore
from mcp_proxy.sessions.signed import Derived, Seal
from mcp_proxy.tasks import Tasks
from tests.state.registry import AgeingRedis
from tests.tools.redis_server import RedisServer
from tests.unit.fakes import until
from tests.unit.storerig import MOVED, OTHER, OWNER, ROUTE, TTL_S, Clock, Rig, Seen

CACHE_TTL_S: Final = 100.0
STEP_S: Final = 20.0


def _quickly(secret: str) -> Derived:
    digest = hashlib.sha256(secret.encode())
    return Derived(digest.digest(), digest.hexdigest()[:8].encode())


def _seal() -> Seal:
    ids = {record.backend for record in (OWNER, OTHER, MOVED)}
    seal = Seal(["a secret of the tests"], _quickly)
    for route in (ROUTE, "/other"):
        seal.know(route, ids)
    return seal


@asynccontextmanager
async def _store(name: str, *, has_redis: bool, has_seal: bool) -> AsyncIterator[Rig]:
    tasks, seen, clock = Tasks(), Seen(), Clock()
    async with AsyncExitStack() as stack:
        ageing = registry = None
        if has_redis:
            ageing = AgeingRedis(stack.enter_context(RedisServer()))
            registry = RedisRegistry(ageing.url, ttl_s=TTL_S, tasks=tasks)
        store = SharedStore(
            name,
            ttl_s=TTL_S,
            cache_ttl_s=CACHE_TTL_S,
            tasks=tasks,
            watcher=seen,
            registry=registry,
            seal=_seal() if has_seal else None,
            clock=clock,
        )

        async def pass_time(seconds: float) -> None:
            while seconds > 0:
                step_s = min(seconds, STEP_S)
                seconds -= step_s
                clock.at_s += step_s
                if ageing is not None:
                    ageing.pass_time(step_s)
                store.sweep(clock.at_s)
                await until(lambda: len(tasks) <= int(has_redis), 0.001)  # the subscription stays

        stack.push_async_callback(tasks.aclose)
        stack.push_async_callback(store.aclose)
        store.start()
        if registry is not None:
            await until(lambda: registry.health() == (True, "redis: connected"), 0.001)
            await until(lambda: len(tasks) == 1, 0.001)
        yield Rig(store, seen, pass_time)


def redis() -> AbstractAsyncContextManager[Rig]:
    return _store("redis", has_redis=True, has_seal=False)


def signed() -> AbstractAsyncContextManager[Rig]:
    return _store("signed", has_redis=False, has_seal=True)


def signed_redis() -> AbstractAsyncContextManager[Rig]:
    return _store("signed", has_redis=True, has_seal=True)


NOT_SEALED: Final = frozenset(
    {
        "test_an_existing_session_is_never_overwritten",
        "test_use_begins_the_ttl_anew",
        "test_a_touch_begins_the_ttl_anew",
        "test_only_one_of_two_moves_happens",
        "test_what_ended_is_not_moved",
    }
)
"""Tests that ask again, later, for an id which was not sealed: to a store that seals ids it is nobody's.
What holds for sealed ids is tested by ``tests/state`` and ``test_shared_store_sealed.py``."""


@asynccontextmanager
async def opened_shared(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """The store that ``request.param`` makes, unless the test is not for it."""
    if request.param is not redis and request.function.__name__ in NOT_SEALED:
        pytest.skip("about ids that are not sealed")
    async with request.param() as made:
        yield made


SHARED: Final[list[Callable[[], AbstractAsyncContextManager[Rig]]]] = [redis, signed, signed_redis]
