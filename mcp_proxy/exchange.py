"""The state machine of one exchange: one request, its attempts, one answer, one record.

Rules of this file: every state change goes through ``_move``, which knows the legal ones; an
illegal one raises. Sync moves bytes: head, chunks and end pass straight from the transport
to the door, with no task, queue or timer per chunk. After the head has been sent there is no
repair: a broken body is aborted so that the client can see it. Whatever happens, ``_finish``
runs exactly once and writes the one record.

What to do about a head or a failure is decided by the gateway (``Director``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from enum import Enum
from typing import Final, Protocol

from mcp_proxy.admission import Admitted
from mcp_proxy.backends import Backend
from mcp_proxy.clock import Deadlines, Turns, now
from mcp_proxy.correlation import id_of
from mcp_proxy.envelope import Envelope, Kind
from mcp_proxy.errors import Fault, Phase, UpstreamError
from mcp_proxy.eventstream import BEGINNING, TRAIL_BYTES, is_between_events, rest_of_event, trail
from mcp_proxy.policy.origin import cors_headers
from mcp_proxy.pools import Pool
from mcp_proxy.replies import render
from mcp_proxy.routing import Plan
from mcp_proxy.sessions import SessionKey, SessionRecord
from mcp_proxy.tap import Owned, Tap
from mcp_proxy.telemetry.traces import Trace
from mcp_proxy.upstream import Call, Outgoing, Transport
from mcp_proxy.wire import Fields, Headers, Rejection, Reply

logger = logging.getLogger("mcp_proxy")


class State(Enum):
    ROUTING = "routing"
    """No backend has been asked, or the last one could not be reached."""
    WAITING = "waiting"
    """Handed to a transport; no response head yet."""
    STORING = "storing"
    """Head arrived; it leaves, or is dropped, when the registry has answered."""
    HOLDING = "holding"
    """Head and body are held until whole, up to ``limits.json_hold``: SDK clients do not
    survive a truncated JSON answer."""
    RELAYING = "relaying"
    """Head sent; chunks pass as they come."""
    DONE = "done"

    __hash__ = object.__hash__  # Enum's is written in Python, and every move looks one up


_MOVES: Final[dict[State, frozenset[State]]] = {
    State.ROUTING: frozenset((State.WAITING, State.DONE)),
    State.WAITING: frozenset((State.ROUTING, State.STORING, State.HOLDING, State.RELAYING, State.DONE)),
    State.STORING: frozenset((State.ROUTING, State.HOLDING, State.RELAYING, State.DONE)),
    State.HOLDING: frozenset((State.RELAYING, State.DONE)),
    State.RELAYING: frozenset((State.DONE,)),
    State.DONE: frozenset(),
}

_SENT: Final = (State.WAITING, State.HOLDING)
"""A backend has the request, and nobody has its answer."""

_PHASES: Final = {
    State.ROUTING: Phase.ROUTE,
    State.WAITING: Phase.HEAD,
    State.STORING: Phase.HEAD,
    State.HOLDING: Phase.BODY,
    State.RELAYING: Phase.BODY,
    State.DONE: Phase.NONE,
}


DOUBTS_LIMIT: Final = 2
"""A session may have moved while a request of it was on its way; nobody moves twice in a moment."""

EVENT_REST_S: Final = 5.0
"""How long a stream that is to end waits for its head, or for the rest of an event: what was on its way
comes at once. A lost event is lost for good, unless its server resumes streams."""

_NONE: Final[Headers] = []
"""Never filled; spares every exchange a list."""


class IllegalMove(RuntimeError):
    """A bug: the exchange was told to do something its state does not allow."""


class Director(Protocol):
    """The gateway, as its exchanges see it."""

    json_hold: int
    turns: Turns
    parting_due: Deadlines[Exchange]
    """Calls ``part_now`` of streams that are to end, after ``EVENT_REST_S``."""

    def on_head(self, exchange: Exchange, status: int, headers: Fields, length: int | None) -> None:
        """Decide about a response head: relay it, store its session first, or go elsewhere."""

    def on_error(self, exchange: Exchange, error: UpstreamError) -> None:
        """Decide about a failure before any head was relayed: go elsewhere or refuse."""

    def on_stream(self, exchange: Exchange) -> None:
        """The head of an event stream is being sent."""

    def on_owned(self, exchange: Exchange, owned: Sequence[Owned]) -> None:
        """An event of the answer says what its backend keeps."""

    def on_held(self, exchange: Exchange, owned: Sequence[Owned]) -> None:
        """A tapped JSON answer is whole, and says this; ``answer_held`` sends it."""

    def on_finish(self, exchange: Exchange) -> None:
        """The exchange has ended; count and record it. Called exactly once."""


class Exchange:
    """Implements Conversation for its door and Receiver for its transport."""

    __slots__ = (
        "_call", "_director", "_ended", "_ends_early", "_held", "_held_bytes", "_last", "_length",
        "_occupies", "_parting", "_paused", "_reply", "_sent", "_whole", "admission", "attempts", "backend",
        "begun_s", "body", "byte_s", "bytes_in", "bytes_out", "complete_s", "doubts", "envelope", "fault",
        "finished_s", "head_s", "headers", "is_counted", "is_stream", "key", "last", "opens_session",
        "own", "pending", "phase", "pin_retries", "plan", "pool", "reason", "record", "sent_s", "started_s",
        "state", "status", "streams_from", "tap", "trace", "tried", "waited_s",
    )  # fmt: skip

    def __init__(
        self, director: Director, admission: Admitted, pool: Pool, body: bytes, reply: Reply
    ) -> None:
        self._director = director
        self.pool = pool
        self._reply = reply
        self.state = State.ROUTING
        # request
        self.admission = admission
        self.body = body
        self.bytes_in = len(body)
        self.envelope: Envelope | None = None
        self.plan: Plan | None = None
        self.key: SessionKey | None = None
        self.record: SessionRecord | None = None
        """Of the session that the request belongs to, once it has been found."""
        self.own = b""
        """Header lines of this request and its answer alone: its id."""
        self.trace: Trace | None = None
        """Set when the exchange is sampled."""
        self.doubts = DOUBTS_LIMIT
        """Times that the owner of the session may still be asked for again."""
        self.is_counted = False
        """The quotas have let it in."""
        # attempts
        self._call: Call | None = None
        self._paused = False
        self._occupies = False
        self.opens_session = False
        """Counts as one of its backend's ``opening``."""
        self.pending: asyncio.Task[None] | asyncio.TimerHandle | None = None
        """What the exchange waits for while it is ROUTING or STORING; cancelled at the end."""
        self.backend: Backend | None = None
        self.tried: tuple[str, ...] = ()
        self.attempts = 0
        self.pin_retries = 0
        # response
        self.status = 0
        self.headers: Headers = _NONE
        self._length: int | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._ended = False
        self._ends_early: Fault | None = None
        """Set when a stream is to end before its head has come; why it is."""
        self._whole: bytes | None = None
        """The body, when the response came in one piece."""
        self.tap: Tap | None = None
        """Looks at the answer, if that is wanted."""
        self.is_stream = False
        """The answer is ``text/event-stream``."""
        self._last: bytes | None = None
        """The last bytes of a listening stream: where it stands when it is to end."""
        self._parting: Fault | None = None
        """Set once a listening stream ends behind the event in whose middle it is; why it does."""
        self.streams_from: Backend | None = None
        """Set while the stream is open and counted."""
        self.reason = ""
        self.bytes_out = 0
        self.fault = Fault.NONE
        self.phase = Phase.NONE
        """Who ended it, and where; valid once it is DONE."""
        # times, by clock.now(); 0 for what has not happened
        self.last = self._sent = turn = director.turns.turn or director.turns.begin()
        """The turns of the loop in which the last bytes left, and in which the attempt in progress began."""
        self.started_s = turn.began_s
        self.sent_s = 0.0
        """Of the attempt in progress; or since when its backend is waited for again."""
        self.head_s = 0.0
        self.complete_s = 0.0
        """The backend had nothing more to say."""
        self.waited_s = 0.0
        """For backends, in attempts that are over."""
        self.begun_s = 0.0
        """The head of an answer in several pieces left."""
        self.byte_s = 0.0
        """The last piece of a stream left."""
        self.finished_s = 0.0

    def __repr__(self) -> str:
        return f"<Exchange {self.state.value} {self.admission.request.method.decode()} status={self.status}>"

    def _move(self, state: State) -> None:
        if state not in _MOVES[self.state]:
            raise IllegalMove(f"{self.state.value} -> {state.value}")
        self.state = state

    # --- the gateway's side ----------------------------------------------------------

    def send(
        self, backend: Backend, transport: Transport, outgoing: Outgoing, *, fresh: bool = False
    ) -> None:
        """Begin an attempt at ``backend``."""
        self._move(State.WAITING)
        self.backend = backend
        self.tried = (*self.tried, backend.id)
        self.attempts += 1
        turns = self._director.turns
        self._sent = turn = turns.turn or turns.begin()
        self.sent_s = turn.began_s
        self.head_s = self.complete_s = 0.0
        backend.inflight += 1
        self._occupies = True
        self._call = call = transport.send(outgoing, self, fresh=fresh)
        if self._paused:
            call.pause()

    def cancel_attempt(self) -> None:
        """Stop asking the backend; the caller decides what follows."""
        self._drop_call()

    def retreat(self) -> None:
        """The attempt came to nothing; another may follow."""
        self._drop_call()
        self._attempt_over(now())
        self._whole = None
        self._ended = False
        if self._ends_early is Fault.BACKEND:
            self._ends_early = None
        self._held, self._held_bytes = [], 0
        self._move(State.ROUTING)
        self._leave_backend()

    def relay(self, status: int, headers: Headers, length: int | None) -> None:
        """Pass a head on, now or when the body is whole."""
        self.status = status
        whole = self._whole
        if whole is not None:
            if self.tap is None:
                self._close()
                self.bytes_out = len(whole)
                if self.trace is not None:
                    self.trace.peek(whole)
                self._reply.answer(status, headers, whole)
                self._finish(Fault.NONE, Phase.NONE)
                return
            self._held, self._ended = [whole], True
        self.headers = headers
        self._length = length
        if (self.is_stream and length != 0) or (length is not None and length > self._director.json_hold):
            self._start()
        else:
            self._move(State.HOLDING)
        if self._held:
            held, self._held, self._held_bytes = self._held, [], 0
            self.on_body(b"".join(held))
        if self._ended:
            self.on_end()

    def store(self, status: int, headers: Headers, length: int | None) -> None:
        """Keep a head until ``stored`` is called."""
        self._move(State.STORING)
        self.status, self.headers, self._length = status, headers, length
        # The registry is waited for now, not the backend.
        waited_s = self.head_s - (self._sent.ended_s or self.sent_s)
        self.waited_s += max(0.0, waited_s)
        self.sent_s = 0.0
        if self._call is not None:
            self._call.pause()

    def stored(self) -> None:
        """The registry has acknowledged: the kept head may leave."""
        if self.complete_s == 0.0:
            turns = self._director.turns
            self._sent = turn = turns.turn or turns.begin()
            self.sent_s = turn.began_s
        if not self._paused and not self._ended and self._call is not None:
            self._call.resume()
        self.relay(self.status, self.headers, self._length)

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """End with an answer of the proxy's own that is not an error."""
        self._answer(status, headers, body, Fault.NONE, Phase.NONE)

    def refuse(self, rejection: Rejection, fault: Fault = Fault.PROXY, phase: Phase | None = None) -> None:
        """End with an error of the proxy's own. No head may have been sent."""
        self.reason = rejection.reason
        status, headers, body = render(rejection)
        origin = self.admission.head.origin
        if origin is not None:
            headers += cors_headers(origin)
        self._answer(status, headers, body, fault, phase or _PHASES[self.state])

    def _answer(self, status: int, headers: Headers, body: bytes, fault: Fault, phase: Phase) -> None:
        if self.state is State.RELAYING:
            raise IllegalMove("relaying -> another answer")
        self._drop_call()
        self._close()
        self.status = status
        self.bytes_out = len(body)
        self._reply.answer(status, headers, body)
        self._finish(fault, phase)

    def crash(self) -> None:
        """Called while an exception is handled: a bug of ours, or of a registry, ends this
        one exchange, visibly, in whatever state it is, and nothing else."""
        logger.exception("internal error in %r", self, extra={"request_id": id_of(self.own)})
        if self.state is State.RELAYING:
            self._drop_call()
            self._close()
            self._reply.abort()
            self._finish(Fault.PROXY, Phase.BODY)
        elif self.state is not State.DONE:
            self.refuse(Rejection("internal_error", id=self.id))

    # --- Conversation: called by the door --------------------------------------------

    def pause(self) -> None:
        self._paused = True
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        self._paused = False
        if self._call is not None and self.state is not State.STORING:
            self._call.resume()

    def disconnect(self) -> None:
        if self.state is not State.DONE:
            phase = _PHASES[self.state]
            if self.state is not State.RELAYING:
                self.status = 0  # that of a head which has not left
            self._drop_call()
            self._close()
            self._finish(Fault.CLIENT, phase)

    def drain(self) -> None:
        if self.plan is None or not self.plan.listens or self.state is State.HOLDING:
            return
        if self.state is State.RELAYING:
            self._part(Fault.DRAIN)
        elif self.state is not State.WAITING:
            self.expire()
        elif self._ends_early is not Fault.DRAIN:
            # A client whose stream ends comes again; refused, it counts a failure.
            self._ends_early = Fault.DRAIN
            self._director.parting_due.arm(self)

    def end_listening_soon(self) -> None:
        """The session is over, or lives at another backend now: end its stream cleanly, so that the
        client comes back and learns of it. Not at once: whoever says so is in the middle of something."""
        if self.state is State.RELAYING:
            asyncio.get_running_loop().call_soon(self._part, Fault.BACKEND)
        elif self.state is not State.ROUTING:  # then it will be sent to where the session is
            self._ends_early = Fault.BACKEND

    def _part(self, fault: Fault) -> None:
        """End a stream behind the event in whose middle it is, if it is; else now."""
        if self.state is not State.RELAYING or self._parting is not None:
            return
        self._parting = fault
        if self._last is None or is_between_events(self._last):
            self.part_now()
        else:
            self._director.parting_due.arm(self)

    def part_now(self) -> None:
        """What a stream that is to end waited for has come, or took too long."""
        if self.state is State.RELAYING and self._parting is not None:
            self._drop_call()
            self._break_off(self._parting)
        elif self._ends_early is not None:
            self.expire()

    def expire(self) -> None:
        """The time for draining is over: end whatever is left."""
        if self.state is State.RELAYING:
            self._drop_call()
            self._break_off(Fault.DRAIN)
        elif self.state is not State.DONE:
            plan = self.plan
            if self.state not in _SENT or plan is None or plan.repeatable or plan.listens:
                self.refuse(Rejection("draining", id=self.id), Fault.DRAIN)
            else:  # it may have run, so nobody may be told to come again with it
                detail = "the proxy stopped before the backend had answered"
                self.refuse(Rejection("upstream_timeout", detail, self.id), Fault.DRAIN)

    # --- Receiver: called by the transport -------------------------------------------

    def on_head(self, status: int, headers: Fields, length: int | None) -> None:
        self.head_s = now()
        self._headed(status, headers, length)

    def _headed(self, status: int, headers: Fields, length: int | None) -> None:
        if self.trace is not None:
            self.trace.answered(self.head_s, status)
        try:
            if self.state is not State.WAITING:
                raise IllegalMove(f"{self.state.value} -> head")
            self._director.on_head(self, status, headers, length)
        except Exception:
            self.crash()

    def on_whole(self, status: int, headers: Fields, body: bytes) -> None:
        self._call = None
        if self.state is State.WAITING:
            self._whole = body
        turns = self._director.turns
        self.head_s = self.complete_s = (turns.turn or turns.begin()).began_s
        self._headed(status, headers, len(body))

    def on_body(self, chunk: bytes) -> None:
        if self.state is State.RELAYING:
            if self.tap is not None and self.is_stream and (owned := self.tap.feed(chunk)):
                self._director.on_owned(self, owned)
            size = len(chunk)
            last = self._last
            if last is not None:
                self._last = chunk[-TRAIL_BYTES:] if size >= TRAIL_BYTES else trail(last, chunk)
                if self._parting is not None:
                    self._relay_rest(last, chunk)
                    return
            self.bytes_out += size
            if self.is_stream:
                self.byte_s = now()
                if self.trace is not None and last is None:  # one that listens waits for no answer
                    self.trace.peek(chunk)
            self._reply.write(chunk)
            return
        if self.state is not State.HOLDING and self.state is not State.STORING:
            raise IllegalMove(f"{self.state.value} -> body")
        self._held.append(chunk)
        self._held_bytes += len(chunk)
        if self.state is State.HOLDING and self._held_bytes > self._director.json_hold:
            held, self._held, self._held_bytes = self._held, [], 0
            self._start()
            self.on_body(b"".join(held))

    def _relay_rest(self, last: bytes, chunk: bytes) -> None:
        """The stream ends with this event; nothing of the next one is relayed."""
        end = rest_of_event(last, chunk)
        rest = chunk if end is None else chunk[:end]
        if rest:
            self.bytes_out += len(rest)
            self.byte_s = now()
            self._reply.write(rest)
        if end is not None:
            self.part_now()

    def on_end(self) -> None:
        self._call = None
        if self.complete_s == 0.0:
            turns = self._director.turns
            self.complete_s = (turns.turn or turns.begin()).began_s
        if self.state is State.HOLDING:
            if self.tap is None:
                self.answer_held()
            else:
                self._director.on_held(self, self.tap.whole(b"".join(self._held)))
            return
        if self.state is State.RELAYING:
            self._close()
            self._reply.end()
        elif self.state is State.STORING:
            self._ended = True
            return
        else:
            raise IllegalMove(f"{self.state.value} -> end")
        self._finish(Fault.NONE, Phase.NONE)

    def on_error(self, error: UpstreamError) -> None:
        self._call = None
        if self.trace is not None:
            self.trace.ended(now(), error.kind)
        if self.state is State.RELAYING:
            self._break_off(Fault.TIMEOUT if error.kind == "timeout" else Fault.BACKEND)
        else:
            try:
                self._director.on_error(self, error)
            except Exception:
                self.crash()

    def answer_held(self) -> None:
        """The held body is whole and may leave."""
        self._close()
        body = b"".join(self._held)
        self.bytes_out = len(body)
        if self.trace is not None:
            self.trace.peek(body)
        self._reply.answer(self.status, self.headers, body)
        self._finish(Fault.NONE, Phase.NONE)

    # --- internals -------------------------------------------------------------------

    @property
    def id(self) -> bytes:
        """The JSON-RPC id to echo, raw. That of a client's response is the backend's own."""
        envelope = self.envelope
        return b"null" if envelope is None or envelope.kind is Kind.RESPONSE else envelope.id

    def _start(self) -> None:
        self._move(State.RELAYING)
        self.begun_s = now()
        if self.is_stream:
            self._director.on_stream(self)
            if self.plan is not None and self.plan.listens and self._length is None:
                self._last = BEGINNING
        self._reply.start(self.status, self.headers, self._length)
        if self._ends_early is not None:
            asyncio.get_running_loop().call_soon(self._part, self._ends_early)
        # A stream may stay for hours: keep nothing that only the way to here needed.
        self.body = b""
        self.headers = _NONE
        self.admission = self.admission.slim()

    def _drop_call(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _attempt_over(self, at_s: float) -> None:
        """Count the time for which its backend kept us waiting: from the end of the turn in which the request
        was written, until it had nothing more to say. Idempotent."""
        until_s = self.complete_s or at_s
        if self.sent_s:
            waited_s = until_s - (self._sent.ended_s or self.sent_s)
            if waited_s > 0:  # and not an answer that came with other things of that turn
                self.waited_s += waited_s
            self.sent_s = 0.0
        if self.trace is not None and self.attempts:
            self.trace.ended(until_s)

    def _leave_backend(self) -> None:
        if self._occupies and self.backend is not None:
            self._occupies = False
            self.backend.inflight -= 1
            if self.opens_session:
                self.opens_session = False
                self.backend.opening -= 1
                self.pool.recount(self.backend)

    def _break_off(self, fault: Fault) -> None:
        """End a body that will never be whole."""
        self._close()
        if self.plan is not None and self.plan.listens and self.is_stream and self._length is None:
            # The one broken body that ends cleanly: clients count an aborted stream as a
            # failure of the server and stop listening for good after two (SDK behaviour).
            self._reply.end()
        else:
            self._reply.abort()
        self._finish(fault, Phase.BODY)

    def _close(self) -> None:
        """Nothing may reach the door any more but the last call."""
        self._move(State.DONE)
        self._leave_backend()
        if self._last is not None or self._ends_early is not None:
            self._director.parting_due.disarm(self)
        if self.pending is not None:
            self.pending.cancel()
            self.pending = None

    def _finish(self, fault: Fault, phase: Phase) -> None:
        """The last call has been made."""
        self.finished_s = now()
        turns = self._director.turns
        self.last = turns.turn or turns.begin()
        self._attempt_over(self.finished_s)
        self.fault, self.phase = fault, phase
        # The recorder may keep it for a while.
        self.body = b""
        self.headers = _NONE
        self._held = []
        self._whole = None
        self.tap = None
        self._director.on_finish(self)
