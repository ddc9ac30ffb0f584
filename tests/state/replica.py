"""One replica of the proxy as ``app.Service`` wires it, but for its ends: both are in the test's hands.

Rules of this file: the engine, the stores and the way to Redis are the real ones.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from functools import cache
from typing import Final, NamedTuple, Protocol

from mcp_proxy.admission import Porter
from mcp_proxy.backends import Backend
from mcp_proxy.exchange import Exchange
from mcp_proxy.forwarding import Forwarder
from mcp_proxy.gateway import Gateway
from mcp_proxy.keeper import SessionKeeper
from mcp_proxy.policy.origin import OriginGuard
from mcp_proxy.pools import Pool
from mcp_proxy.quotas import Quotas
from mcp_proxy.recorder import Recorder
from mcp_proxy.sessions import SessionStore
from mcp_proxy.sessions.memory import MemoryStore
from mcp_proxy.sessions.redis import RedisRegistry
from mcp_proxy.sessions.shared import SharedStore
from mcp_proxy.sessions.signed import Derived, Seal
from mcp_proxy.tasks import Tasks
from mcp_proxy.watch import SessionWatch
from tests.state.backends import FakeBackend, FakeWire
from tests.state.registry import PREFIX, AgeingRedis
from tests.unit.actors import StrictReply
from tests.unit.gatehouse import Journal, by_header
from tests.unit.poolside import pool_of


class Surroundings(Protocol):
    """The world, as a replica needs it."""

    shape: Shape
    redis: AgeingRedis
    backends: dict[str, FakeBackend]
    """By letter."""

    def clock(self) -> float: ...


TTL_S: Final = 1000.0
CACHE_TTL_S: Final = 100.0
LOST_AFTER_S: Final = 10.0
BUDGET_S: Final = 0.25
PATIENCE_S: Final = 60.0
"""Of the loop's own time, which costs nothing."""

ROUTES: Final = {"/end": "ab", "/again": "cd"}
"""The backends of each. ``/again`` makes sessions of lost backends anew."""


class Shape(NamedTuple):
    name: str
    replicas: int
    has_registry: bool
    has_seal: bool

    @property
    def routes(self) -> list[str]:
        """A seal alone cannot remember how to make a session anew."""
        return list(ROUTES) if self.has_registry or not self.has_seal else ["/end"]


SHAPES: Final = {
    "memory": Shape("memory", 1, False, False),
    "redis": Shape("redis", 3, True, False),
    "signed": Shape("signed", 2, False, True),
    "signed_redis": Shape("signed_redis", 2, True, True),
}


@cache
def _seal() -> Seal:
    def derive(secret: str) -> Derived:
        digest = hashlib.sha256(secret.encode())
        return Derived(digest.digest(), digest.hexdigest()[:8].encode())

    seal = Seal(["a secret of the test"], derive)
    for route, letters in ROUTES.items():
        seal.know(route, [FakeBackend(letter, []).id for letter in letters])
    return seal


class Client:
    """One request, and what came of it."""

    def __init__(self, replica: Replica, reply: StrictReply, exchange: Exchange | None) -> None:
        self.replica = replica
        self.reply = reply
        self.exchange = exchange
        self.took_s = 0.0
        """Until the head came, by the loop's own time."""

    @property
    def is_open(self) -> bool:
        return not self.reply.outcome and not self.reply.is_gone

    def leave(self) -> None:
        assert self.exchange is not None
        self.reply.leave(self.exchange)


class Replica:
    """As ``app.Service`` wires it, but for the ends."""

    def __init__(self, name: str, world: Surroundings) -> None:
        self.name = name
        self.requests = 0
        self.tasks = Tasks()
        self.journal = Journal()
        self.pools: dict[str, Pool] = {}
        self.wires: list[FakeWire] = []
        self._marker = ""
        self._heard = asyncio.Event()
        for route in world.shape.routes:
            self.pools[route] = self._pool(route, world)
        watch = SessionWatch(self.pools)
        self.registry: RedisRegistry | None = None
        self.store = self._store(world, watch)
        forwarder = Forwarder(())
        porter = Porter(
            {route.encode(): route for route in self.pools},
            OriginGuard("0.0.0.0", None),
            forwarder,
            by_header,
        )
        self.recorder = Recorder({"journal": self.journal})
        self.gateway = Gateway(
            porter=porter,
            forwarder=forwarder,
            pools=self.pools,
            keeper=SessionKeeper(self.store, self.tasks, self.journal, ttl_s=TTL_S),
            watch=watch,
            tasks=self.tasks,
            recorder=self.recorder,
            meters=self.journal,
            body_limit=100_000,
            json_hold=1000,
            quotas=Quotas(streams=1000, requests=1000),
        )

    def _pool(self, route: str, world: Surroundings) -> Pool:
        wires = {f"{letter}.example": FakeWire(self.name, world.backends[letter]) for letter in ROUTES[route]}
        self.wires += wires.values()
        return pool_of(wires, *wires, name=route, lost_after_s=LOST_AFTER_S, reinitializes=route == "/again")

    def _store(self, world: Surroundings, watch: SessionWatch) -> SessionStore:
        shape = world.shape
        ttl_s = TTL_S + CACHE_TTL_S  # as app.py has it
        if not shape.has_registry and not shape.has_seal:
            return MemoryStore(ttl_s, watch, clock=world.clock)
        if shape.has_registry:
            self.registry = RedisRegistry(
                world.redis.url, ttl_s=ttl_s, tasks=self.tasks, budget_s=BUDGET_S, prefix=PREFIX
            )
        store = SharedStore(
            shape.name,
            ttl_s=ttl_s,
            cache_ttl_s=CACHE_TTL_S,
            tasks=self.tasks,
            watcher=watch,
            registry=self.registry,
            seal=_seal() if shape.has_seal else None,
            clock=world.clock,
        )
        if self.registry is not None:
            self._listen_in(self.registry)
        return store

    def _listen_in(self, registry: RedisRegistry) -> None:
        tell = registry.on_change

        def heard(name: str) -> None:
            self._marker = name
            self._heard.set()
            tell(name)

        registry.on_change = heard

    async def heard(self, marker: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self._marker != marker:
                self._heard.clear()
                await self._heard.wait()

    def backends(self) -> Iterator[Backend]:
        for pool in self.pools.values():
            yield from pool.backends

    @property
    def link(self) -> str:
        """``well``, ``deaf`` (changes are not heard) or ``down``."""
        if self.registry is None:
            return "well"
        is_ok, sentence = self.registry.health()
        return "down" if not is_ok else "deaf" if "not subscribed" in sentence else "well"

    def hurry(self) -> None:
        """The next look at whether Redis is back is due."""
        if self.registry is not None:
            self.registry._link_to._lane.breaker.probe_at_s = 0.0  # type: ignore[union-attr]

    # --- its end ---------------------------------------------------------------------

    async def die(self) -> None:
        """Without a farewell to anybody: nothing that is cancelled gets to say anything."""
        for wire in self.wires:
            wire.cut()
        await self.tasks.aclose()
        if self.registry is not None:
            await self.registry.aclose()

    async def close(self) -> None:
        await self.gateway.aclose()
        for pool in self.pools.values():
            await pool.aclose()
        await self.store.aclose()
