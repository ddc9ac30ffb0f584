"""The seam between doors, gateway and transports: what a message is, and who calls whom.

Rules of this file: values and Protocols, no I/O, no imports from the package.

    door -> Handler.admit(request)                 the head is known: an Admission, or a Rejection
    door -> Handler.handle(admission, body, reply) the body is whole; returns the Conversation
    gateway -> Reply                             the answer, pushed as it arrives
    door -> Conversation                         backpressure and the client's disconnect

Bytes stay bytes: header names are lower-case bytes, values are as received without the
surrounding optional whitespace, order and duplicates are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol

import msgspec

Header = tuple[bytes, bytes]
Headers = list[Header]


class Fields(list[Header]):
    """A header block that nobody changes any more, and that remembers its rendering.

    On a connection that repeats its heads the same block is used again and again; what was
    computed from it once is kept beside it.
    """

    __slots__ = ("block", "has_date", "note")

    block: bytes
    """The fields as HTTP/1.1 lines, each with its CR LF."""
    has_date: bool

    def __init__(self, headers: Iterable[Header] = ()) -> None:
        super().__init__(headers)
        self.note: Any = None
        """What the gateway read from it."""

    def __getattr__(self, name: str) -> Any:
        """Render at the first use; from then on the slots answer."""
        if name not in ("block", "has_date"):
            raise AttributeError(name)
        parts: list[bytes] = []
        self.has_date = False
        for field, value in self:
            parts += (field, b": ", value, b"\r\n")
            if field == b"date":
                self.has_date = True
        self.block = b"".join(parts)
        return getattr(self, name)

    def with_values(self, values: Headers) -> Fields:
        """The same fields with other values, for names that occur once at most. What has been rendered is
        not rendered again."""
        fields = Fields(with_values(self, values))
        block = self.block
        for name, value in values:
            start = b"%b: " % name
            found = 0 if block.startswith(start) else block.find(b"\r\n" + start) + 2
            if found != 1:  # or it is not there
                found += len(start)
                block = block[:found] + value + block[block.find(b"\r", found) :]
        fields.block, fields.has_date = block, self.has_date
        return fields


VARYING: Final = (b"x-request-id", b"traceparent")
"""Request headers whose values are others in every call. They decide nothing."""


def with_values(headers: Headers, values: Headers) -> Headers:
    """The same headers with other values, for names that occur once at most."""
    changed = headers.copy()
    for pair in values:
        for place, (name, _) in enumerate(headers):
            if name == pair[0]:
                changed[place] = pair
                break
    return changed


def fields_of(lines: bytes) -> Headers:
    """Header lines of ours, each ``name: value`` with its CR LF, as pairs."""
    pairs = (line.partition(b": ") for line in lines.split(b"\r\n")[:-1])
    return [(name, value) for name, _, value in pairs]


class Request(msgspec.Struct, frozen=True):
    """The head of one request, as a door read it from its wire."""

    method: bytes
    """Upper-case token, e.g. ``b"POST"``."""
    target: bytes
    """Origin-form request target exactly as received: path and query, never decoded."""
    headers: Headers
    """Without the framing headers that the door consumed (Content-Length,
    Transfer-Encoding, Expect, and the Connection/Upgrade pair are still present
    as received; ``headers.py`` removes everything hop-by-hop)."""
    peer: str
    """Address of the TCP peer without port, ``""`` when unknown (Unix sockets)."""
    scheme: str
    """``"http"`` or ``"https"``, as the door's own socket sees it."""


class Reply(Protocol):
    """The answer to one request. ``headers`` are end-to-end only; the door frames.

    ``own`` is set before the first call: header lines of this one answer, each with its CR LF, that go out
    beside ``headers``.

    Calls are synchronous and never block.

    Legal order: ``answer`` | ``start`` ``write``* (``end`` | ``abort``) | ``abort``.
    After ``end``, ``abort`` or ``answer`` the object must not be used any more.
    ``write`` accepts data beyond the watermark; the door then calls
    ``Conversation.pause`` and later ``resume``.
    """

    own: bytes

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer in one piece. The door adds framing (and Date, if it does)."""

    def start(self, status: int, headers: Headers, length: int | None) -> None:
        """Begin a streamed answer. ``length`` None means unknown: the door frames it.

        The head leaves at once, before the first ``write``."""

    def write(self, chunk: bytes) -> None:
        """One piece of the body; never empty. Leaves in this iteration of the loop."""

    def end(self) -> None:
        """The body is complete; the client sees a clean end."""

    def abort(self) -> None:
        """The body is broken. The client must be able to see it (RFC 9112 section 8):
        no last chunk, or fewer bytes than Content-Length said, then the connection closes."""


class Conversation(Protocol):
    """One exchange in progress, as its door sees it. All calls are idempotent."""

    def pause(self) -> None:
        """The client reads slower than the backend writes: stop reading the backend."""

    def resume(self) -> None: ...

    def disconnect(self) -> None:
        """The client is gone. The backend's side is closed at once; no Reply call follows."""

    def drain(self) -> None:
        """The proxy is going away: end a listening stream cleanly, behind the event in whose middle it
        is; let calls finish."""

    def expire(self) -> None:
        """The time for draining is over: end whatever is left."""


class Rejection(msgspec.Struct, frozen=True, gc=False):
    """An answer that the proxy authors itself instead of forwarding. See ``replies.py``."""

    reason: str
    """A word from ``replies.TABLE``: decides status, JSON-RPC code and headers."""
    detail: str = ""
    """One sentence for the person who debugs; never client bytes or secrets."""
    id: bytes = b"null"
    """The JSON-RPC id to echo, raw JSON."""
    extra: Headers = []
    """Headers beside those of the table (``Allow``, CORS)."""


class Admission(Protocol):
    """What ``Handler.admit`` learnt from the head; opaque to the door."""

    @property
    def request(self) -> Request: ...


class Handler(Protocol):
    """What a door needs of the gateway. No method raises."""

    body_limit: int

    def admit(self, request: Request) -> Admission | Rejection:
        """Decide on the head alone. The door sends a Rejection through ``refuse``, at once,
        without reading the body. An Admission holds for every later request with the same
        head: what may change with time is decided in ``handle``."""

    def vary(self, admission: Admission, values: Headers) -> Admission:
        """The Admission of a head that differs in these values only. ``values``: of VARYING, each once, of
        plain characters; the head that was admitted has a value for each of them."""

    def handle(self, admission: Admission, body: bytes, reply: Reply) -> Conversation:
        """Serve the request. The reply may have been completed when this returns."""

    def refuse(self, request: Request, rejection: Rejection, reply: Reply) -> None:
        """Answer with a Rejection and record it. ``request`` has an empty method and target if
        no head could be read."""
