"""The client that only listens: a stream that is held, then the next.

Rules of this file: a stream is one of its own session, so that no server can think that it has one already;
where there are no sessions it is a ``subscriptions/listen``. What comes is timed: the first event, and the
gaps between events.
"""

from __future__ import annotations

from typing import ClassVar

from mcp_proxy.load import Plan
from mcp_proxy.load.ledger import Ledger
from mcp_proxy.load.users import SessionScenario
from mcp_proxy.load.users.listener import Listener, get_stream, subscription


class StreamUser(SessionScenario):
    kind: ClassVar[str] = "stream"

    def __init__(self, plan: Plan, ledger: Ledger, number: int = 0) -> None:
        super().__init__(plan, ledger, number)
        self._listener: Listener | None = None

    def begin(self) -> None:
        """Every turn begins its own session."""

    def turn(self) -> None:
        self.client.due = None  # it is not due at a time, it takes its time
        if self.facts.get_stream:
            super().begin()
            opening = get_stream(self.fields)
        else:
            opening = subscription
        # Holders that began together do not all come back together.
        seconds = self.plan.hold_s * self.random.uniform(0.5, 1.0)
        self._listener = Listener(self.plan, self.ledger, self.kind, opening)
        if not self.client.stopping.is_set():
            self._listener.run(seconds)
        self._listener = None
        self.finish()

    def stop(self) -> None:
        super().stop()
        listener = self._listener
        if listener is not None:
            listener.stop()
