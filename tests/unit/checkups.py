"""A pool that is checked, with its backends and the time in the test's hands."""

from __future__ import annotations

import json
from typing import Any

from mcp_proxy.backends import Backend
from mcp_proxy.checkup import ActiveRule, Checkup
from mcp_proxy.clock import TICK_S
from mcp_proxy.tasks import Tasks
from tests.unit.actors import Attempt, ScriptedTransport
from tests.unit.fakes import settle
from tests.unit.poolside import endpoint, pool_of

EVERY_S = 5.0


def rule(check: str = "tcp", *, timeout_s: float = 60.0, fall: int = 3, rise: int = 2) -> ActiveRule:
    """``timeout_s`` is in real time, so it is none that a test reaches."""
    return ActiveRule(check, EVERY_S, timeout_s, fall, rise)


def discovered(*versions: str) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"supportedVersions": versions}}).encode()


def failed(code: int, **data: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "error": {"code": code, "data": data}}).encode()


MODERN = discovered("2026-07-28")
LEGACY = failed(-32601)


class Clinic:
    """``pool`` with a backend for each letter of ``hosts``, or that number of them."""

    def __init__(
        self,
        hosts: str | int = "ab",
        active: ActiveRule | None = None,
        *,
        era: bool = False,
        **policy: Any,
    ) -> None:
        self.tasks = Tasks()
        self.transports: dict[str, ScriptedTransport] = {}
        self.attempts: list[Attempt] = []
        self.hosts = [str(number) for number in range(hosts)] if isinstance(hosts, int) else list(hosts)
        policy.setdefault("drain_s", 0.0)
        self.pool = pool_of(self._dial, *self.hosts, tasks=self.tasks, **policy)
        self.at_s = 0.0
        self.active = active
        self.checkup = Checkup(self.pool, self.tasks, active=active, probes_era=era)

    def _dial(self, backend: Backend) -> ScriptedTransport:
        self.transports[backend.host] = ScriptedTransport(backend.host, self.attempts)
        return self.transports[backend.host]

    def __getitem__(self, host: str) -> Backend:
        return next(backend for backend in self.pool.backends if backend.host == host)

    def probes(self) -> list[int]:
        """How often each backend was connected to."""
        return [self.transports[host].probes for host in self.hosts]

    async def wait(self, seconds: float = EVERY_S) -> None:
        """Let the time pass, tick by tick."""
        for _ in range(round(seconds / TICK_S)):
            self.at_s = round(self.at_s + TICK_S, 3)
            self.checkup.sweep(self.at_s)
            await settle()

    async def take(self) -> Attempt:
        """The only request that is made within one round."""
        await self.wait()
        (attempt,) = self.attempts
        self.attempts.clear()
        return attempt

    async def taken(self, seconds: float = EVERY_S) -> dict[str, Attempt]:
        """By host, the requests that are made within that time: at most one each."""
        await self.wait(seconds)
        taken = {attempt.backend: attempt for attempt in self.attempts}
        assert len(taken) == len(self.attempts)
        self.attempts.clear()
        return taken

    async def leave(self, host: str) -> None:
        """A backend is taken out of the pool, for good."""
        gone = self[host]
        self.hosts.remove(host)
        self.pool.update([endpoint(other) for other in self.hosts], "discovery")
        for seconds in (1e6, 2e6):
            self.pool.sweep(seconds)
        assert self.pool.find(gone.id) is None
        await settle()

    def come(self, host: str) -> None:
        self.hosts.append(host)
        self.pool.update([endpoint(other) for other in self.hosts], "discovery")
