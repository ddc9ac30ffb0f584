"""``/events``: finished exchanges and changes of backends, to everybody who listens.

Rules of this file: one task asks the proxy, however many listen, and only while somebody does. A reader that
is slower than the events has a bounded buffer; the oldest give way and are counted. What has ended after the
head of the answer is seen is told or counted, because the proxy is asked once before that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from mcp_proxy.admin.documents import BackendEvent, EndEvent, MissedEvent
from mcp_proxy.clock import now
from mcp_proxy.sessions import settled
from mcp_proxy.tasks import Tasks
from mcp_proxy.telemetry.recent import SIZE

if TYPE_CHECKING:
    from mcp_proxy.admin import AdminView, State

READERS: Final = 16
"""People and pages that look at the same time; a program that wants everything reads the access log."""

BUFFER: Final = SIZE + 64
"""Events of one reader: what one question brings, and some changes of backends. Readers share the bytes, in
practice 1 MB, and 6 MB if clients send the longest names."""

POLL_S: Final = 0.25
STATES_S: Final = 1.0
"""Between two looks at the backends."""
HEARTBEAT_S: Final = 15.0
"""Proxies in between cut what is silent for 30 s or 60 s."""

_HEARTBEAT: Final = b":\n\n"

_States = dict[tuple[str, str], "State"]


class Reader:
    """The events of one listener that it has not taken yet."""

    def __init__(self, size: int, heartbeat_s: float) -> None:
        self._events: deque[bytes] = deque(maxlen=size)
        self._missed = 0
        self._news = asyncio.Event()
        self._heartbeat_s = heartbeat_s
        self._is_over = False

    def give(self, event: bytes) -> None:
        self._missed += len(self._events) == self._events.maxlen
        self._events.append(event)
        self._news.set()

    def miss(self, count: int) -> None:
        """The proxy does not know these any more."""
        self._missed += count
        self._news.set()

    def end(self) -> None:
        self._is_over = True
        self._news.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        yield _HEARTBEAT  # the first byte: whoever is in between passes the answer on
        while True:
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await self._news.wait()
            except TimeoutError:
                yield _HEARTBEAT
                continue
            self._news.clear()
            if chunk := self._take():
                yield chunk
            if self._is_over:
                return

    def _take(self) -> bytes:
        events = list(self._events)
        if self._missed:
            events.insert(0, encoded("missed", MissedEvent(self._missed)))
        self._events.clear()
        self._missed = 0
        return b"".join(events)


class Feed:
    """``join`` and ``leave`` come in pairs. Without readers it does nothing and owns no task."""

    def __init__(
        self,
        view: AdminView,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        buffer: int = BUFFER,
        poll_s: float = POLL_S,
    ) -> None:
        self._view = view
        self._tasks = Tasks()
        self._following: asyncio.Task[None] | None = None
        self._readers: set[Reader] = set()
        self._heartbeat_s = heartbeat_s
        self._buffer = buffer
        self._poll_s = poll_s
        self._begun = asyncio.Event()
        """The proxy has been asked, so it keeps what ends from now on."""

    def __len__(self) -> int:
        return len(self._readers)

    async def join(self) -> Reader | None:
        """None: there are enough. The reader is one when this returns, whatever is asked later."""
        if len(self._readers) >= READERS:
            return None
        reader = Reader(self._buffer, self._heartbeat_s)
        self._readers.add(reader)
        if self._following is None:
            self._begun.clear()
            self._following = self._tasks.spawn(self._follow())
        try:
            await self._begun.wait()
        except asyncio.CancelledError:
            self.leave(reader)
            raise
        return reader

    def leave(self, reader: Reader) -> None:
        """Idempotent."""
        self._readers.discard(reader)
        if not self._readers and self._following is not None:
            self._following.cancel()
            self._following = None

    async def _follow(self) -> None:
        reason = "failed"
        try:
            await self._watch()
            reason = "draining"
        finally:
            # Not after a cancellation: then the readers, if any, belong to a task that came later.
            if self._following is asyncio.current_task():
                self._following = None
                self._over(reason)

    async def _watch(self) -> None:
        cursor = ""
        states = await self._states()
        looked_s = now()
        while True:
            recent = await self._view.recent(cursor)
            cursor = recent.cursor
            self._tell(map(_exchange, recent.lines), recent.missed)
            if (at_s := now()) - looked_s >= STATES_S:
                states, before, looked_s = await self._states(), states, at_s
                self._tell(changes(before, states))
            if recent.is_over:
                return
            self._begun.set()
            await asyncio.sleep(self._poll_s)

    def _tell(self, events: Iterable[bytes], missed: int = 0) -> None:
        for event in events:
            for reader in self._readers:
                reader.give(event)
        if missed:
            for reader in self._readers:
                reader.miss(missed)

    def _over(self, reason: str) -> None:
        self._begun.set()
        for reader in self._readers:
            reader.give(encoded("end", EndEvent(reason)))
            reader.end()

    async def _states(self) -> _States:
        status = await settled(self._view.status())
        return {
            (name, backend.id): backend.state
            for name, pool in status.pools.items()
            for backend in pool.backends
        }


def encoded(event: str, value: object) -> bytes:
    """One event as ``text/event-stream`` has it. JSON has no line breaks of its own."""
    return b"event: %s\ndata: %s\n\n" % (event.encode(), msgspec.json.encode(value))


def _exchange(line: object) -> bytes:
    return encoded("exchange", line)


def changes(before: _States, after: _States) -> list[bytes]:
    """What is different, as events."""
    keys = before | after
    return [
        encoded("backend", BackendEvent(*key, state=after.get(key), was=before.get(key)))
        for key in keys
        if before.get(key) != after.get(key)
    ]
