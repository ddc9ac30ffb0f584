"""Replicas of the proxy in one process: real engines and stores, backends and clients in the test's hands.

Rules of this file: it knows what can happen, and nothing of what should. Every method returns when
nothing is left to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from mcp_proxy.backends import absence
from mcp_proxy.clock import now
from mcp_proxy.sessions import settled
from mcp_proxy.wire import Headers, Rejection, Request
from tests.state.backends import SESSION, FakeBackend, Seen
from tests.state.registry import PREFIX, AgeingRedis
from tests.state.replica import PATIENCE_S, ROUTES, Client, Replica, Shape
from tests.state.timeless import TimelessLoop
from tests.unit.actors import StrictReply
from tests.unit.gatehouse import JSON, USER

T = TypeVar("T")

STEP_S: Final = 20.0
"""Of passing time: below the share of CACHE_TTL_S after which sessions in use are asked about."""

LOOK_S: Final = 0.01

RESTING: Final = frozenset({"Subscription._follow", "Lane._probe"})
"""Tasks that a replica at rest may have: they wait for Redis to speak, or to come back."""


class World:
    def __init__(self, shape: Shape, redis: AgeingRedis) -> None:
        self.shape = shape
        self.redis = redis
        self.loop = TimelessLoop(redis.barrier if shape.has_registry else lambda: None)
        self.seen: list[Seen] = []
        """What reached backends, in order."""
        self.backends = {
            letter: FakeBackend(letter, self.seen) for route in shape.routes for letter in ROUTES[route]
        }
        self.at_s = now()
        self._born = 0
        self._marks = 0
        self.replicas: list[Replica] = []
        for _ in range(shape.replicas):
            self.replicas.append(self._new_replica())
        self.reconnect()

    def clock(self) -> float:
        return self.at_s

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run(work)

    def call(self, operation: Callable[..., T | Awaitable[T]], *args: Any) -> T:
        """An operation of a store, as the admin listener asks for it."""

        async def answer() -> T:
            try:
                return await settled(operation(*args))
            finally:
                await self._settle()

        result: T = self.run(answer())
        return result

    def settle(self) -> None:
        self.run(self._settle())

    async def _settle(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                busy = {task for task in asyncio.all_tasks() if task.get_coro().__qualname__ not in _AT_REST}  # type: ignore[union-attr]
                if busy:
                    await asyncio.wait(busy)
                elif any(backend.is_busy for backend in self.backends.values()):
                    await asyncio.sleep(0)
                elif not await self._hear():
                    return

    async def _hear(self) -> bool:
        """Everybody who listens has heard all that was published; True if that was news to somebody."""
        listening = [replica for replica in self.replicas if replica.link == "well"]
        if not self.shape.has_registry or not self.redis.answers or not listening:
            return False
        self._marks += 1
        marker = f"{self._marks:040x}"
        self.redis.server.command("PUBLISH", f"{PREFIX}changes", marker)
        for replica in listening:
            await replica.heard(marker)
        await asyncio.sleep(0)
        return any(task.get_coro().__qualname__ not in _AT_REST for task in asyncio.all_tasks())  # type: ignore[union-attr]

    # --- replicas --------------------------------------------------------------------

    def _new_replica(self) -> Replica:
        self._born += 1

        async def begin() -> Replica:
            replica = Replica(f"r{self._born}", self)
            replica.store.start()
            return replica

        made: Replica = self.run(begin())
        return made

    def replace(self, index: int) -> Replica:
        """A replica dies, another takes its place."""
        dead = self.replicas[index]
        self.run(dead.die())
        self.replicas[index] = self._new_replica()
        self.reconnect()
        return dead

    def reconnect(self) -> None:
        """Until every replica is connected and listens, if Redis is there."""
        if self.shape.has_registry and self.redis.answers:
            self.run(self._reconnect())
        self.settle()

    async def _reconnect(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while any(replica.link != "well" for replica in self.replicas):
                for replica in self.replicas:
                    replica.hurry()
                await asyncio.sleep(0.05)

    def deafen(self) -> None:
        """Nobody hears of changes, until they listen again."""
        self.redis.cut_subscriptions()

        async def noticed() -> None:
            for _ in range(100):
                if all(replica.link == "deaf" for replica in self.replicas):
                    return
                await asyncio.sleep(0)
            raise AssertionError("a subscription that was cut is believed in")

        self.run(noticed())

    # --- time ------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        while seconds > 0:
            step_s = min(seconds, STEP_S)
            seconds -= step_s
            self.at_s += step_s
            self.redis.pass_time(step_s)
            for replica in self.replicas:
                for backend in replica.backends():
                    if backend.unreachable_since_s is not None:
                        backend.unreachable_since_s -= step_s
            self.run(self._tick())

    async def _tick(self) -> None:
        for replica in self.replicas:
            replica.store.sweep(self.at_s)
            replica.gateway.sweep(self.at_s)
            for pool in replica.pools.values():
                pool.sweep(now() + absence.LOOK_S)  # a step is longer than that
        await self._settle()

    # --- clients ---------------------------------------------------------------------

    def ask(
        self, replica: Replica, method: str, route: str, session: bytes, user: str, body: bytes = b""
    ) -> Client:
        """Returns when it is answered, or an open stream."""
        client: Client = self.run(self._ask(replica, method, route, session, user, body))
        return client

    async def _ask(
        self, replica: Replica, method: str, route: str, session: bytes, user: str, body: bytes
    ) -> Client:
        headers: Headers = [(b"host", b"proxy.example"), JSON, (USER, user.encode())]
        if session:
            headers.append((SESSION, session))
        request = Request(method.encode(), route.encode(), headers, "192.0.2.7", "http")
        reply = StrictReply()
        replica.requests += 1
        began_s = self.loop.time()
        admission = replica.gateway.admit(request)
        assert not isinstance(admission, Rejection), admission
        client = Client(replica, reply, replica.gateway.handle(admission, body, reply))
        async with asyncio.timeout(PATIENCE_S):
            while client.is_open and not reply.has_started:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)
        client.took_s = self.loop.time() - began_s
        await self._settle()
        return client

    # --- the end ---------------------------------------------------------------------

    def close(self) -> None:
        for replica in self.replicas:
            self.run(replica.close())
        left = asyncio.all_tasks(self.loop)
        self.loop.close()
        assert not left, left
        assert not self.loop.complaints, self.loop.complaints


_AT_REST: Final = RESTING | {
    "World._settle",
    "World._ask",
    "World._tick",
    "World._reconnect",
    "World.call.<locals>.answer",
}
