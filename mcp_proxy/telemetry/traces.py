"""Traces: whose trace a request belongs to, whether it is recorded, and what is noted of it on its way.

Rules of this file: pure; times and randomness are arguments, and nothing here knows OpenTelemetry. Whether an
exchange is recorded is decided before anything is built for it, and the answer "no" is the common one. What a
client sends is read by the letter (W3C Trace Context, level 1): what is not valid is as if it were absent.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Final, NamedTuple

BODY_LIMIT: Final = 64 * 1024
"""Bytes kept of an answer. It is read for its error code only, and answers with one are short."""

STATE_LIMIT: Final = 512
"""Of ``tracestate``, section 3.3.1.5: what everybody has to pass on. More is not taken."""

STATE_MEMBERS: Final = 32
"""Section 3.3.1.1."""

_RATIO_BITS: Final = 64
_RATIO_MASK: Final = (1 << _RATIO_BITS) - 1
_SAMPLED: Final = 1

_parent = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL
).fullmatch

# Section 3.3.1.3: a key may name a tenant of a system; values are printable and do not end in a space.
_member = re.compile(
    r"([a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[ -+\--<>-~]{0,255}[!-+\--<>-~]"
).fullmatch


class Context(NamedTuple):
    """A span somewhere else."""

    trace_id: int
    span_id: int
    flags: int


def read_parent(text: str) -> Context | None:
    """The value of a ``traceparent``, None if it is not valid. Of later versions what version 00 has in its
    place, however much follows (section 3.2.4)."""
    match = _parent(text)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if rest is not None and version == "00":
        return None
    return Context(int(trace_id, 16), int(span_id, 16), int(flags, 16))


def read_state(text: str) -> str:
    """The value of a ``tracestate`` as it is; empty if it is too long or not valid."""
    if not text or len(text) > STATE_LIMIT:
        return ""
    keys: set[str] = set()
    for part in text.split(","):
        member = part.strip(" \t")
        if not member:
            continue
        match = _member(member)
        if match is None or match[1] in keys:
            return ""
        keys.add(match[1])
    return text if 0 < len(keys) <= STATE_MEMBERS else ""


class Attempt:
    """A backend that was asked. Times are those of ``clock.now``, 0 for what did not happen."""

    __slots__ = ("backend", "ended_s", "error", "head_s", "host", "port", "sent_s", "span_id", "status")

    def __init__(self, span_id: int, backend: str, host: str, port: int, sent_s: float) -> None:
        self.span_id = span_id
        self.backend = backend
        self.host = host
        self.port = port
        self.sent_s = sent_s
        self.head_s = 0.0
        self.ended_s = 0.0
        self.status = 0
        self.error = ""


class Trace:
    """What is noted of one sampled exchange."""

    __slots__ = (
        "_body", "_draw", "attempts", "finished_s", "link", "parent_id", "rpc_id", "span_id", "state",
        "trace_id", "version",
    )  # fmt: skip

    def __init__(
        self,
        trace_id: int,
        parent_id: int,
        state: str,
        link: tuple[int, int, int] | None,
        draw: Callable[[int], int],
    ) -> None:
        self.trace_id = trace_id
        self.span_id = _id(draw, 64)
        """Of the exchange as a whole."""
        self.parent_id = parent_id
        """0: the trace begins here."""
        self.state = state
        """``tracestate`` to pass on."""
        self.link = link
        """Trace, span and flags of the HTTP request, when the parent is that of the message in it."""
        self.attempts: list[Attempt] = []
        self.rpc_id = b"null"
        """As in the envelope; null: there is no answer to look for."""
        self.version = ""
        """Of the protocol."""
        self.finished_s = 0.0
        self._body = bytearray()
        self._draw = draw

    @property
    def text(self) -> str:
        """The trace as 32 hex digits."""
        return f"{self.trace_id:032x}"

    @property
    def body(self) -> bytes:
        """The answer; of a long one its last ``BODY_LIMIT`` bytes: what a stream ends with is the answer
        to its request."""
        return bytes(self._body[-BODY_LIMIT:])

    def peek(self, chunk: bytes) -> None:
        """Look at a piece of the answer."""
        if self.rpc_id == b"null":
            return
        body = self._body
        body += chunk
        # At twice the limit, or a long stream would move all of it with every chunk.
        if len(body) > 2 * BODY_LIMIT:
            del body[:-BODY_LIMIT]

    def attempt(self, backend: str, host: str, port: int, at_s: float) -> bytes:
        """A backend is asked now. The header lines that make what it records a part of this trace."""
        span_id = _id(self._draw, 64)
        self.attempts.append(Attempt(span_id, backend, host, port, at_s))
        parent = f"traceparent: 00-{self.trace_id:032x}-{span_id:016x}-01\r\n"
        return (f"{parent}tracestate: {self.state}\r\n" if self.state else parent).encode("ascii")

    def answered(self, at_s: float, status: int) -> None:
        """The head of its answer came."""
        attempt = self.attempts[-1]
        attempt.head_s = at_s
        attempt.status = status

    def ended(self, at_s: float, error: str = "") -> None:
        """It had nothing more to say, or was given up; ``error`` says why if that is its fault. The first
        call for an attempt counts."""
        attempt = self.attempts[-1]
        if attempt.ended_s == 0.0:
            attempt.ended_s = max(at_s, attempt.sent_s)  # ``at_s`` may be the beginning of a turn of the loop
            attempt.error = error


class Tracer:
    """Decides what is recorded. ``sample``: the share of traces that begin here; others follow the decision
    of who began them, but anybody can claim that: no more than ``limit`` exchanges are recorded in a second.
    ``draw`` returns that many random bits, ``clock`` seconds; it is needed with a limit."""

    __slots__ = ("_bound", "_clock", "_draw", "_left", "_limit", "_second", "limited")

    def __init__(
        self,
        sample: float,
        *,
        limit: int | None = None,
        draw: Callable[[int], int] = random.getrandbits,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._bound = round(sample * (1 << _RATIO_BITS))
        self._limit = limit
        self._draw = draw
        self._clock = clock
        self._second = self._left = 0
        self.limited = 0
        """Exchanges that were not recorded because of ``limit``."""

    def begin(
        self,
        traceparent: bytes | None,
        tracestate: bytes | None,
        meta_traceparent: str | None,
        meta_tracestate: str | None,
    ) -> Trace | None:
        """None: not recorded. The context of the message goes before that of the HTTP request, which may
        belong to a gateway that knows nothing of the message; that one is linked."""
        parent = None if meta_traceparent is None else read_parent(meta_traceparent)
        if parent is not None:
            if not parent.flags & _SAMPLED:
                return None
            link = None if traceparent is None else read_parent(traceparent.decode("latin-1"))
            if link is not None and link[:2] == parent[:2]:
                link = None
            return self._child(parent, meta_tracestate or "", link)
        if traceparent is not None:
            parent = read_parent(traceparent.decode("latin-1"))
            if parent is not None:
                if not parent.flags & _SAMPLED:
                    return None
                return self._child(parent, (tracestate or b"").decode("latin-1"), None)
        # As the SDK's TraceIdRatio does: whoever samples by the same bits comes to the same result.
        trace_id = _id(self._draw, 128)
        if trace_id & _RATIO_MASK >= self._bound:
            return None
        return Trace(trace_id, 0, "", None, self._draw) if self._may_record() else None

    def _child(self, parent: Context, state: str, link: Context | None) -> Trace | None:
        if not self._may_record():
            return None
        return Trace(parent.trace_id, parent.span_id, read_state(state), link, self._draw)

    def _may_record(self) -> bool:
        if self._limit is None:
            return True
        assert self._clock is not None
        second = int(self._clock())
        if second != self._second:
            self._second, self._left = second, self._limit
        if self._left == 0:
            self.limited += 1
            return False
        self._left -= 1
        return True


def _id(draw: Callable[[int], int], bits: int) -> int:
    """Zero is no id."""
    return draw(bits) or 1
