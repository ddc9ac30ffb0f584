"""The client whose connection breaks: it comes back with ``Last-Event-ID`` and must get what it missed.

Rules of this file: the break is real (the socket is shut), at a random event. What had come behind that event
counts as not seen: it must come again. Then the whole is judged (``sequence.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar, Final

from mcp_proxy.load import messages, sequence
from mcp_proxy.load.messages import is_answer_to
from mcp_proxy.load.sse import Event
from mcp_proxy.load.stream import Failed, Stopped, Stream
from mcp_proxy.load.users import SessionScenario
from mcp_proxy.load.users.listener import SLICE_S, get_stream

BROKEN_CALL: Final = "tools/call (broken off)"
RESUMED_CALL: Final = "GET answer (resumed)"
RESUMED: Final = "GET stream (resumed)"
EVENTS_EACH: Final = 2
"""Of a GET stream, before and behind the break."""
AWAY_S: Final = 0.3
"""Longest time without a connection."""
ATTEMPTS: Final = 3
"""Resumed streams may end before the response, as SDK clients see it."""


class ReconnectUser(SessionScenario):
    kind: ClassVar[str] = "reconnect"

    def turn(self) -> None:
        self.client.due = None
        can_answer = self.facts.answer_ids and self.facts.stream_tool is not None
        if can_answer and (not self.facts.get_ids or self.random.random() < 0.5):
            self._break_call()
        else:
            self._break_stream()

    # --- a call whose answer breaks off --------------------------------------------------------

    def _break_call(self) -> None:
        tool = self.facts.stream_tool
        assert tool is not None
        id = self.client.next_id()
        params = {"name": tool.name, "arguments": tool.arguments, "_meta": {"progressToken": id}}
        body = messages.request(id, "tools/call", params)
        fields = [messages.ACCEPT, messages.JSON, *self.fields]
        stream = self.client.stream(BROKEN_CALL, "POST", fields, body)
        before = self._read_until_break(stream)
        after: list[Event] = []

        def is_answered() -> bool:
            return any(_is_response(event, id) for event in (*before, *after))

        for _ in range(ATTEMPTS):
            if is_answered():
                break
            last_id = next(event.id for event in reversed([*before, *after]) if event.id is not None)
            stream = get_stream(self.fields, RESUMED_CALL)(self.client, last_id)
            self._read(stream, after, is_answered)
        self._judge(RESUMED_CALL, sequence.answer_fault(before, after, id, tool.events))

    def _read_until_break(self, stream: Stream) -> list[Event]:
        """Up to a random event with an id, from the first on; the rest counts as lost on the way."""
        seen: list[Event] = []
        wanted = self.random.randint(
            1, 1 + (self.facts.stream_tool.events or 1 if self.facts.stream_tool else 1)
        )
        self._read(stream, seen, lambda: sum(event.id is not None for event in seen) >= wanted)
        with_id = [index for index, event in enumerate(seen) if event.id is not None]
        if not with_id:
            self._judge(BROKEN_CALL, "no event with an id")
        return seen[: with_id[min(wanted, len(with_id)) - 1] + 1]

    # --- a GET stream that breaks off ----------------------------------------------------------

    def _break_stream(self) -> None:
        """In a session of its own, with nothing but this stream."""
        self.finish()
        self.begin()
        before: list[Event] = []
        self._read(get_stream(self.fields)(self.client, ""), before, lambda: _with_id(before) >= EVENTS_EACH)
        if _with_id(before) < EVENTS_EACH:
            return  # it was quiet, or it is to end
        last = max(index for index, event in enumerate(before) if event.id is not None)
        before = before[: self.random.randint(1, last + 1)]
        last_id = next((event.id for event in reversed(before) if event.id is not None), None)
        if last_id is None or self.client.stopping.wait(self.random.random() * AWAY_S):
            return
        after: list[Event] = []
        stream = get_stream(self.fields, RESUMED)(self.client, last_id)
        self._read(stream, after, lambda: _with_id(after) >= EVENTS_EACH)
        if _with_id(after) >= EVENTS_EACH:
            self._judge(RESUMED, sequence.fault(before, after))

    # --- both ----------------------------------------------------------------------------------

    def _read(self, stream: Stream, into: list[Event], is_enough: Callable[[], bool]) -> None:
        """Until it is enough, the stream ends, or nothing comes for long; then it is broken."""
        until = time.perf_counter() + self.plan.timeout_s
        try:
            while not is_enough() and not stream.has_ended and time.perf_counter() < until:
                if self.client.stopping.is_set():
                    raise Stopped
                into += stream.events(SLICE_S)
        finally:
            stream.close()

    def _judge(self, name: str, reason: str | None) -> None:
        if reason is not None:
            row = self.ledger.operation(self.kind, name, is_post=False, is_call=False)
            self.ledger.failed(row, reason)
            raise Failed(reason)


def _with_id(events: list[Event]) -> int:
    return sum(event.id is not None for event in events)


def _is_response(event: Event, id: int) -> bool:
    message = messages.parse(event.data) if event.data else None
    return message is not None and is_answer_to(message, id)
