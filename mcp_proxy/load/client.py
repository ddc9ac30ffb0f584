"""What every user does: ask, obey, judge the answer, and have it counted.

Rules of this file: a request is sent once. Only an answer that says that nothing ran (503 or 429 with
``Retry-After``) makes the user wait and send it again, as an SDK would; that is counted apart, and a request
that is never served is a failure. A connection that breaks under a request is a failure of that request, and
so is a status, a body or a JSON-RPC message that is not the answer. What failed is counted before ``Failed``
is raised, so a user's story reads without any of this.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

from mcp_proxy.load import Target, messages
from mcp_proxy.load.connection import Broken, Connection, Reply
from mcp_proxy.load.ledger import Ledger, Operation
from mcp_proxy.load.messages import Fields, Message
from mcp_proxy.load.sse import Event, SseError, SseParser
from mcp_proxy.load.stream import Failed, Stopped, Stream

SHORTEST_WAIT_S: Final = 0.05
END_S: Final = 1.0
"""How long a stream may stay open behind its answer; then its connection is given up."""
LONGEST_WAIT_S: Final = 5.0
"""``Retry-After`` is obeyed between these: a load test does not sleep for an hour."""
_TOLD: Final = (429, 503)
_SHOWN_BYTES: Final = 300

T = TypeVar("T")


class Answer:
    """A right answer: a result, or the head of what has none."""

    def __init__(self, reply: Reply, message: Message | None, events: list[Event]) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self.message = message
        self.events = events
        """Of an event stream, the answer's own as the last."""
        self.at = reply.arrived_at
        """When it came; what the stream did then is not its time."""

    @property
    def result(self) -> Message:
        value: Message = (self.message or {}).get("result", {})
        return value


class _Served(NamedTuple, Generic[T]):
    """An exchange that came to its right end."""

    value: T
    sent_at: float
    due: float | None


class Client:
    """One user's way to the server: a keep-alive connection for what is answered at once."""

    def __init__(
        self,
        target: Target,
        ledger: Ledger,
        kind: str,
        *,
        headers: Fields | None = None,
        timeout_s: float = 30.0,
        patience_s: float = 30.0,
        verify: bool = True,
        is_aside: bool = False,
    ) -> None:
        """``is_aside``: what goes wrong once it is stopped is nobody's concern any more."""
        self.target = target
        self.ledger = ledger
        self.kind = kind
        self.due: float | None = None
        """When the next request ought to be sent (``time.perf_counter``); taken by that request."""
        self.stopping = threading.Event()
        self.timeout_s = timeout_s
        self._patience_s = patience_s
        self._verify = verify
        self._is_aside = is_aside
        self._always = [messages.AGENT, *(headers or [])]
        self._connection: Connection | None = None
        self._last_id = 0

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- requests ------------------------------------------------------------------------------

    def ask(self, name: str, id: int, body: bytes, fields: Fields, *, splits: bool = False) -> Answer:
        """A request and its response, by JSON or by events. ``splits``: the two are rows of their own, as
        soon as it is known which it is.

        Raises Failed, Stopped."""
        row = self.ledger.operation(self.kind, name)
        by_json = self.ledger.operation(self.kind, f"{name} (JSON)") if splits else row
        by_events = self.ledger.operation(self.kind, f"{name} (SSE)") if splits else row
        headers = [messages.ACCEPT, messages.JSON, *fields]

        def read(reply: Reply, sent_at: float) -> Answer:
            if reply.status != 200:
                raise _Wrong(_status(reply), _shown(reply, self.timeout_s), reply.status)
            kind = _media_type(reply)
            if kind == "text/event-stream":
                return self._events_until(by_events, reply, id, sent_at)
            if kind != "application/json":
                raise _Wrong(f"content type {kind or 'missing'}", _shown(reply, self.timeout_s))
            data = reply.whole(self.timeout_s)
            return Answer(reply, _judged(messages.parse(data), id, data), [])

        served = self._exchange(row, "POST", headers, body, read)
        answer = served.value
        self._answered(by_events if answer.events else by_json, served, answer.at, len(body))
        return answer

    def tell(self, name: str, body: bytes, fields: Fields) -> None:
        """A notification: accepted or not. Raises Failed, Stopped."""
        self._plain(name, "POST", [messages.ACCEPT, messages.JSON, *fields], body, (200, 202, 204))

    def delete(self, fields: Fields) -> int:
        """End a session; 405 means that this server leaves it to time. Raises Failed, Stopped."""
        return self._plain("DELETE", "DELETE", list(fields), None, (200, 202, 204, 405))

    def _plain(
        self, name: str, method: str, headers: Fields, body: bytes | None, right: tuple[int, ...]
    ) -> int:
        row = self.ledger.operation(self.kind, name, is_post=method == "POST")

        def read(reply: Reply, sent_at: float) -> int:
            if reply.status not in right:
                raise _Wrong(_status(reply), _shown(reply, self.timeout_s), reply.status)
            reply.whole(self.timeout_s)
            return reply.status

        served = self._exchange(row, method, headers, body, read)
        self._answered(row, served, time.perf_counter(), len(body or b""))
        return served.value

    def _answered(self, row: Operation, served: _Served[T], at: float, size: int) -> None:
        late_s = None if served.due is None else at - served.due
        self.ledger.answered(row, at - served.sent_at, size, late_s)

    def _exchange(
        self,
        row: Operation,
        method: str,
        headers: Fields,
        body: bytes | None,
        read: Callable[[Reply, float], T],
    ) -> _Served[T]:
        """Send until it is served. The moment of sending is that of the answer that counted."""
        due, self.due = self.due, None
        began = time.perf_counter()
        while True:
            sent_at = time.perf_counter()
            try:
                reply = self._send(method, headers, body)
                wait_s = told_to_wait(reply)
                if wait_s is None:
                    return _Served(read(reply, sent_at), sent_at, due)
                reply.whole(self.timeout_s)
            except (_Wrong, Broken, TimeoutError, SseError) as error:
                raise self._count(row, error, time.perf_counter() - sent_at) from None
            if time.perf_counter() + wait_s - began > self._patience_s:
                why = _Wrong("never served, only told to wait", _status(reply), reply.status)
                raise self._count(row, why, time.perf_counter() - began)
            self.ledger.waited(row, wait_s)
            if self.stopping.wait(wait_s):
                raise Stopped

    def _send(self, method: str, headers: Fields, body: bytes | None) -> Reply:
        connection = self._connection
        if connection is None or not connection.is_usable():
            self.close()
            connection = self._connection = Connection(self.target, verify=self._verify)
        reply = connection.ask(method, [*self._always, *headers], body, self.timeout_s)
        self._note(reply)
        return reply

    def _note(self, reply: Reply) -> None:
        word = reply.headers.get("mcp-proxy-reason")
        if word is not None:
            self.ledger.refused(word)

    def _count(self, row: Operation, error: Exception, seconds: float) -> Failed:
        """An exchange that went wrong. The connection is of no use any more."""
        self.close()
        if self._is_aside and self.stopping.is_set():
            raise Stopped from None
        reason, example, status = self._explained(error)
        self.ledger.failed(row, reason, example, seconds)
        return Failed(reason, status)

    def _explained(self, error: Exception) -> tuple[str, str, int]:
        if isinstance(error, _Wrong):
            return error.reason, error.example, error.status
        if isinstance(error, TimeoutError):
            return f"no answer in {self.timeout_s:g} s", "", 0
        if isinstance(error, Broken):
            return error.reason, f"phase {error.phase}", 0
        return str(error), "", 0

    # --- event streams -------------------------------------------------------------------------

    def _events_until(self, row: Operation, reply: Reply, id: int, sent_at: float) -> Answer:
        """The events of a POST's answer up to the response. A stream that ends without it has failed."""
        events: list[Event] = []
        for event in self.clocked(row, reply, sent_at):
            events.append(event)
            message = messages.parse(event.data) if event.data else None
            if message is not None and "method" not in message:
                _judged(message, id, (event.data or "").encode())
                answer = Answer(reply, message, events)
                # How the stream ends belongs to the answer. That it ends is only a SHOULD.
                with contextlib.suppress(TimeoutError):
                    reply.whole(END_S)
                return answer
        raise _Wrong("an event stream that ended without the answer", f"after {len(events)} events")

    def clocked(self, row: Operation, reply: Reply, sent_at: float) -> Iterator[Event]:
        """Events as they come, with the time of the first and the time between two. Ends when the stream
        does; raises Broken if it is cut, also inside an event, and TimeoutError when its time is over:
        keep-alives are no answer."""
        parser = SseParser()
        last_at: float | None = None
        until = sent_at + self.timeout_s
        while data := reply.some(until - time.perf_counter()):
            for event in parser.feed(data):
                if last_at is None:
                    self.ledger.first_event(row, reply.arrived_at - sent_at)
                else:
                    self.ledger.gap(row, reply.arrived_at - last_at)
                last_at = reply.arrived_at
                yield event
        if parser.is_inside:
            raise Broken("body", "an event stream that ended inside an event")

    def stream(self, name: str, method: str, headers: Fields, body: bytes | None = None) -> Stream:
        """A stream that is meant to stay, on a connection of its own. Raises Failed, Stopped."""
        row = self.ledger.operation(self.kind, name, is_post=method == "POST", is_call=False)
        own: list[Connection] = []
        kept, self._connection = self._connection, None

        def read(reply: Reply, sent_at: float) -> Stream:
            if reply.status != 200:
                raise _Wrong(_status(reply), _shown(reply, self.timeout_s), reply.status)
            if _media_type(reply) != "text/event-stream":
                raise _Wrong(f"content type {_media_type(reply) or 'missing'}", "")
            assert self._connection is not None
            own.append(self._connection)
            self._connection = None
            return Stream(self.ledger, row, own[0], reply, sent_at)

        try:
            stream = self._exchange(row, method, headers, body, read).value
        finally:
            self.close()
            self._connection = kept
        self.ledger.answered(row, stream.reply.head_at - stream.sent_at)
        return stream


def told_to_wait(reply: Reply) -> float | None:
    """Seconds, if the answer says that nothing ran and when to come again; None if it is to be read as what
    it is."""
    after = reply.headers.get("retry-after")
    if reply.status not in _TOLD or after is None:
        return None
    seconds = float(after) if after.isascii() and after.isdigit() else 1.0
    return min(max(seconds, SHORTEST_WAIT_S), LONGEST_WAIT_S)


def broken(client: Client, error: Exception) -> None:
    """A mistake of the load test itself: it is counted where everybody sees it, and the load goes on."""
    row = client.ledger.operation(client.kind, "the load test itself", is_post=False, is_call=False)
    where = traceback.extract_tb(error.__traceback__)[-1]
    example = f"{error} ({Path(where.filename).name}:{where.lineno})"
    client.ledger.failed(row, f"a mistake: {type(error).__name__}", example)


class _Wrong(Exception):
    """An answer that came whole and is not right."""

    def __init__(self, reason: str, example: str, status: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.example = example
        self.status = status


def _judged(message: Message | None, id: int, data: bytes) -> Message:
    reason = "a body that is no JSON object" if message is None else messages.fault(message, id)
    if reason is not None or message is None:
        raise _Wrong(reason or "", data[:_SHOWN_BYTES].decode(errors="replace"), 200)
    return message


def _status(reply: Reply) -> str:
    word = reply.headers.get("mcp-proxy-reason")
    return f"HTTP {reply.status} {word}" if word else f"HTTP {reply.status}"


def _shown(reply: Reply, timeout_s: float) -> str:
    """The beginning of a body that says why, if it comes."""
    try:
        return reply.whole(min(timeout_s, 5.0))[:_SHOWN_BYTES].decode(errors="replace")
    except (Broken, TimeoutError):
        return ""


def _media_type(reply: Reply) -> str:
    return reply.headers.get("content-type", "").partition(";")[0].strip().lower()
