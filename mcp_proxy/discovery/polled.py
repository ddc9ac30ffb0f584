"""The loop of a source that asks again and again.

Rules of this file: one look at a time, and every way in which it can end leads to the next.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from mcp_proxy.backends import Publish
from mcp_proxy.clock import now
from mcp_proxy.discovery import Answer, LookError
from mcp_proxy.discovery.findings import Findings
from mcp_proxy.discovery.pace import PacedWait

RETRY_S: Final = 2.0
"""After a failed look, unless it is the turn of the next one before."""

TTL_FLOOR_S: Final = 1.0
"""Name servers that count a TTL down also say 0."""


class Polled:
    """Implements Source. ``look`` raises LookError when it has learnt nothing."""

    def __init__(self, name: str, look: Callable[[], Awaitable[Answer]], every_s: float) -> None:
        self._findings = Findings(name)
        self._look = look
        self._every_s = every_s
        self._wait = PacedWait()

    async def run(self, publish: Publish) -> None:
        self._findings.publish = publish
        while True:
            await self._wait.until_due()
            self._wait.pace.start(now())
            wait_s = await self._turn()
            self._wait.pace.done(now(), wait_s)

    def refresh(self) -> None:
        self._wait.ask()

    def health(self) -> tuple[bool, str]:
        return self._findings.health()

    async def _turn(self) -> float:
        """Look once; how long to wait then."""
        try:
            answer = await self._look()
        except LookError as error:
            self._findings.failed(str(error), error.detail)
            return min(self._every_s, RETRY_S)
        except Exception as error:
            # A library that surprises us must not end the search for ever.
            self._findings.failed("cannot be looked up", repr(error))
            return min(self._every_s, RETRY_S)
        self._findings.succeeded()
        self._findings.found(answer.endpoints, now())
        return self._next_s(answer.ttl_s)

    def _next_s(self, ttl_s: float | None) -> float:
        wait_s = self._every_s if ttl_s is None else min(max(ttl_s, TTL_FLOOR_S), self._every_s)
        recheck_s = self._findings.recheck_s
        return wait_s if recheck_s is None else min(wait_s, recheck_s)
