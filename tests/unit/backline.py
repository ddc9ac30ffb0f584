"""A connection to a backend with a fake transport outside and a recording owner inside."""

from __future__ import annotations

from mcp_proxy.upstream import Outgoing
from mcp_proxy.upstream.connection import Connection, Known
from mcp_proxy.wire import Fields
from tests.tools.receiver import RecordingReceiver
from tests.tools.wire import pieces
from tests.unit.fakes import FakeTransport

REQUEST = Outgoing(b"POST", b"/mcp?x=1", Fields([(b"accept", b"*/*"), (b"x-a", b"1"), (b"x-a", b"2")]), b"{}")
REQUEST_BYTES = (
    b"POST /mcp?x=1 HTTP/1.1\r\nhost: backend.example:80\r\n"
    b"accept: */*\r\nx-a: 1\r\nx-a: 2\r\ncontent-length: 2\r\n\r\n{}"
)


class RecordingOwner:
    def __init__(self) -> None:
        self.released_count = 0
        self.gone_count = 0
        self.progress = 0
        self.known: dict[bytes, Known] = {}

    def recall(self, session: bytes) -> Known | None:
        return self.known.get(session)

    def remember(self, session: bytes, known: Known) -> None:
        self.known[session] = known

    def released(self, connection: Connection) -> None:
        assert connection.is_usable
        self.released_count += 1

    def gone(self, connection: Connection) -> None:
        self.gone_count += 1

    def progressed(self, connection: Connection) -> None:
        self.progress += 1


class Line:
    """One connection; ``ask`` sends a request and returns who gets the answer."""

    def __init__(self, *, watched: bool = False) -> None:
        self.owner = RecordingOwner()
        self.connection = Connection(self.owner, b"backend.example:80", watched=watched)
        self.transport = FakeTransport()
        self.transport.attach(self.connection)

    def ask(
        self, outgoing: Outgoing = REQUEST, receiver: RecordingReceiver | None = None
    ) -> RecordingReceiver:
        receiver = receiver or RecordingReceiver()
        self.connection.send(outgoing, receiver)
        return receiver

    def feed(self, *segments: bytes) -> None:
        self.transport.feed(*segments)

    def feed_cut(self, data: bytes, cuts: object) -> None:
        self.transport.feed(*pieces(data, cuts))  # type: ignore[arg-type]

    @property
    def is_reusable(self) -> bool:
        return self.connection.is_usable


def essence(receiver: RecordingReceiver) -> tuple[object, ...]:
    """All that a receiver was told, how often it was cut does not matter."""
    head = None if receiver.head is None else (receiver.head[0], list(receiver.head[1]), receiver.head[2])
    return head, receiver.body, receiver.ended, receiver.verdict


def ok(*fields: bytes, body: bytes = b"hello", status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *fields]) + b"\r\n\r\n" + body
