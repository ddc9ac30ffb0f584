"""A stream that stays open, and how it ends.

Rules of this file: a stream that the other side ends properly has not failed; one that is cut, or ends inside
an event, has. What its own reader breaks off is neither. What failed is counted before ``Failed`` is raised.
"""

from __future__ import annotations

from mcp_proxy.load.connection import Broken, Connection, Reply
from mcp_proxy.load.ledger import Ledger, Operation
from mcp_proxy.load.sse import Event, SseError, SseParser


class Failed(Exception):
    """It went wrong, and that is counted. ``status`` is 0 without an answer."""

    def __init__(self, reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.status = status


class Stopped(Exception):
    """The user is to end while it waits; nothing failed."""


class Stream:
    """A stream that stays open until somebody ends it. ``close`` it."""

    def __init__(
        self, ledger: Ledger, row: Operation, connection: Connection, reply: Reply, sent_at: float
    ) -> None:
        self.reply = reply
        self.row = row
        self.sent_at = sent_at
        self.parser = SseParser()
        self.last_at: float | None = None
        self.has_ended = False
        """By the other side, properly."""
        self.is_closed = False
        self._ledger = ledger
        self._connection = connection

    def events(self, timeout_s: float) -> list[Event]:
        """What comes next, as one portion; empty after ``timeout_s`` without anything, and at the end
        (``has_ended``). Raises Failed if the stream is cut."""
        try:
            data = self.reply.some(timeout_s)
            if not data:
                if self.parser.is_inside:
                    raise Broken("body", "an event stream that ended inside an event")
                self.has_ended = True
                self.row.ends += 1
                return []
            events = self.parser.feed(data)
        except TimeoutError:
            return []
        except (Broken, SseError) as error:
            if self.is_closed:
                raise Stopped from None
            self._ledger.failed(self.row, f"stream cut: {error}")
            raise Failed(str(error)) from None
        for _ in events:
            if self.last_at is None:
                self._ledger.first_event(self.row, self.reply.arrived_at - self.sent_at)
            else:
                self._ledger.gap(self.row, self.reply.arrived_at - self.last_at)
            self.last_at = self.reply.arrived_at
        return events

    def stop(self) -> None:
        """Break it, from another thread than the reader's, who then closes it."""
        self.is_closed = True
        self._connection.stop()

    def close(self) -> None:
        """Break it, and give back what it holds. Idempotent."""
        self.stop()
        self._connection.close()
