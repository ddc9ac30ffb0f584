"""A registry over a link: it listens, it knows how the servers are, and it says so.

Rules of this file: no library. What turns is logged once, with the cause; operations that fail
are counted by whoever asked for them.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from functools import partial
from typing import Final

from mcp_proxy.clock import now
from mcp_proxy.errors import StoreError
from mcp_proxy.sessions.remote.cluster import ClusterLink
from mcp_proxy.sessions.remote.link import SingleLink
from mcp_proxy.sessions.remote.operations import NAME, REVIVED, Operations
from mcp_proxy.sessions.remote.subscription import Subscription
from mcp_proxy.tasks import Tasks

logger = logging.getLogger("mcp_proxy")

CLOSE_S: Final = 1.0
"""For the subscription to end."""

_POLICY: Final = re.compile(rb"maxmemory_policy:([a-z-]+)")

Changed = Callable[[str | None], None]
"""Called by a link when its state may differ: with the cause if something was lost."""


class LinkedRegistry(Operations):
    """A Registry, but for how its servers are reached. ``where`` is shown to people."""

    def __init__(
        self,
        build: Callable[[Changed], SingleLink | ClusterLink],
        tasks: Tasks,
        *,
        where: str,
        ttl_s: float,
        prefix: str,
    ) -> None:
        self.on_change: Callable[[str], None] = lambda name: None
        self.on_revive: Callable[[str], None] = lambda name: None
        self.on_reset: Callable[[], None] = lambda: None
        self._where = where
        self._tasks = tasks
        self._was_ok: bool | None = None
        self._has_been_ok = False
        self._policy_checked = False
        self._is_closed = False
        self._link_to = build(self._changed)
        super().__init__(self._link_to, ttl_s, prefix)
        self._subscription = Subscription(
            partial(self._link_to.listen, self.channel),
            tasks,
            opened=self._opened,
            heard=self._heard,
            lost=self._link_to.suspect,
        )

    def start(self) -> None:
        self._link_to.start()
        self._subscription.start()

    # --- what is heard ---------------------------------------------------------------

    def _opened(self) -> None:
        self.on_reset()

    def _heard(self, message: bytes) -> None:
        if NAME.fullmatch(message):
            self.on_change(message.decode())
        elif message.startswith(REVIVED) and NAME.fullmatch(message, len(REVIVED)):
            self.on_revive(message[len(REVIVED) :].decode())

    # --- the state of the server -----------------------------------------------------

    def health(self) -> tuple[bool, str]:
        ok, what, since_s = self._link_to.state()
        if ok:
            return (
                True,
                "redis: connected" if self._subscription.is_open else "redis: connected, not subscribed",
            )
        if not self._has_been_ok:
            return False, "redis: not reached yet; only sessions that this replica made are known"
        return False, f"{what} unreachable for {now() - since_s:.0f} s; known sessions keep working"

    def _changed(self, cause: str | None) -> None:
        """Says once what has turned."""
        ok, what, _ = self._link_to.state()
        if self._is_closed or ok == self._was_ok or (cause is None and not ok and self._was_ok is None):
            return
        self._was_ok = ok
        if not ok:
            logger.warning(
                "session registry: %s unreachable (%s): %s", what, self._where, cause or "no answer"
            )
        elif self._has_been_ok:
            logger.warning("session registry: redis is back (%s)", self._where)
            # The subscription may have come back before, when nobody could be asked yet.
            self.on_reset()
        else:
            logger.info("session registry: connected to %s", self._where)
        if ok:
            self._has_been_ok = True
            if not self._policy_checked:
                self._policy_checked = True
                self._tasks.spawn(self._check_policy())

    async def _check_policy(self) -> None:
        try:
            nodes = self._link_to.nodes()
            answer = (await self._link_to.ask_node(nodes[0], (b"INFO", b"memory")))[0]
        except (StoreError, IndexError):
            self._policy_checked = False  # at the next opportunity
            return
        policy = _POLICY.search(answer) if isinstance(answer, bytes) else None
        if policy is not None and policy[1] != b"noeviction":
            logger.warning(
                "session registry: redis has maxmemory-policy %s and may drop sessions that are in use when"
                " its memory is full; set maxmemory-policy noeviction",
                policy[1].decode(),
            )

    async def aclose(self) -> None:
        self._is_closed = True
        task = self._subscription.close()
        if task is not None:
            await asyncio.wait({task}, timeout=CLOSE_S)
        await self._link_to.aclose()
