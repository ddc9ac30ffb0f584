"""Backends that live in the test's process, at the seam of transports. They write down whatever reaches
them, and know by themselves whose each of their sessions is.

Rules of this file: an answer comes in a later turn of the loop, as from a socket. A backend believes
nobody: a request under a session of somebody else is an offence, noted for the test to find.
"""

from __future__ import annotations

import asyncio
import json
from typing import NamedTuple

from mcp_proxy.errors import Phase, UpstreamError
from mcp_proxy.upstream import Outgoing, Receiver
from mcp_proxy.wire import Fields

JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream")
SESSION = b"mcp-session-id"
UNKNOWN = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"no such session here"}}'


class Seen(NamedTuple):
    """A request that reached a backend."""

    replica: str
    backend: str
    what: str
    """``DELETE``, ``GET``, or the method of the message."""
    session: bytes
    user: bytes


class Line:
    """One request; implements Call."""

    def __init__(self, wire: FakeWire, outgoing: Outgoing, receiver: Receiver) -> None:
        self.wire = wire
        self.outgoing = outgoing
        self.receiver: Receiver | None = receiver
        self.session = b""
        self.is_streaming = False

    def pause(self) -> None:
        """A few bytes fit into any buffer."""

    def resume(self) -> None: ...

    def cancel(self) -> None:
        assert self.receiver is not None, "a Call must be dropped when it is over"
        self.drop()

    def drop(self) -> None:
        self.receiver = None
        self.wire.lines.discard(self)

    def whole(self, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        receiver = self._take()
        if receiver is not None:
            receiver.on_whole(status, Fields([JSON, *headers] if body else headers), body)

    def stream(self) -> None:
        assert self.receiver is not None
        self.is_streaming = True
        self.receiver.on_head(200, Fields([EVENTS]), None)
        if self.receiver is not None:
            self.receiver.on_body(b": here\n\n")

    def end(self) -> None:
        receiver = self._take()
        if receiver is not None:
            receiver.on_end()

    def fail(self, phase: Phase, kind: str) -> None:
        receiver = self._take()
        if receiver is not None:
            receiver.on_error(UpstreamError(phase, kind, "scripted", sent=phase is not Phase.CONNECT))

    def _take(self) -> Receiver | None:
        receiver = self.receiver
        self.drop()
        return receiver


class FakeWire:
    """The way of one replica to one backend; implements Transport."""

    def __init__(self, replica: str, backend: FakeBackend) -> None:
        self.replica = replica
        self.backend = backend
        self.lines: set[Line] = set()
        backend.wires.append(self)

    def send(self, outgoing: Outgoing, receiver: Receiver, *, fresh: bool = False) -> Line:
        line = Line(self, outgoing, receiver)
        self.lines.add(line)
        asyncio.get_running_loop().call_soon(self.backend.arrive, line)
        return line

    async def probe(self) -> bool | None:
        return self.backend.is_up

    @property
    def open_connections(self) -> int:
        return len(self.lines)

    @property
    def is_idle(self) -> bool:
        return self.open_connections == 0

    def sweep(self, at_s: float) -> None:
        """No timeouts here."""

    def cut(self) -> None:
        """The replica is no more."""
        for line in list(self.lines):
            line.drop()
        self.backend.wires.remove(self)

    async def aclose(self) -> None:
        assert not self.lines, "a request was left behind"


class FakeBackend:
    def __init__(self, letter: str, seen: list[Seen]) -> None:
        self.letter = letter
        self.id = f"http://{letter}.example:8000/mcp"
        self.is_up = True
        self.owners: dict[bytes, bytes] = {}
        """Users of the sessions that it knows."""
        self.wires: list[FakeWire] = []
        self.offences: list[str] = []
        self._seen = seen
        self._issued = 0

    # --- its life --------------------------------------------------------------------

    def restart(self, *, reissues: bool) -> None:
        """``reissues``: it begins to count its sessions from the start again."""
        self.stop()
        self.owners.clear()
        self.is_up = True
        if reissues:
            self._issued = 0

    def stop(self) -> None:
        """Unreachable from now on. Its sessions stay."""
        self.is_up = False
        for line in self._lines():
            line.fail(Phase.BODY, "lost")

    @property
    def is_busy(self) -> bool:
        return any(not line.is_streaming for line in self._lines())

    def _lines(self) -> list[Line]:
        return [line for wire in self.wires for line in wire.lines]

    # --- requests --------------------------------------------------------------------

    def arrive(self, line: Line) -> None:
        if line.receiver is None:
            return
        if not self.is_up:
            line.fail(Phase.CONNECT, "refused")
            return
        outgoing = line.outgoing
        headers: dict[bytes, bytes] = dict(outgoing.headers)
        user = headers.get(b"authorization", b"")
        line.session = session = headers.get(SESSION, b"")
        message = json.loads(outgoing.body) if outgoing.body else {}
        what = message.get("method", outgoing.method.decode())
        self._seen.append(Seen(line.wire.replica, self.id, what, session, user))
        if what == "initialize":
            self._begin(line, user, session)
        elif session not in self.owners:
            line.whole(404, UNKNOWN)
        else:
            if self.owners[session] != user:
                self.offences.append(f"{user!r} came as {session!r} of {self.owners[session]!r}: {what}")
            self._answer(line, what, session)

    def _begin(self, line: Line, user: bytes, session: bytes) -> None:
        if session:
            self.offences.append(f"an initialize within {session!r}")
        self._issued += 1
        new = f"{self.letter}-{self._issued}".encode()
        self.owners[new] = user
        line.whole(200, b'{"jsonrpc":"2.0","id":7,"result":{}}', (SESSION, new))

    def _answer(self, line: Line, what: str, session: bytes) -> None:
        if what == "DELETE":
            del self.owners[session]
            line.whole(200, b"")
            for other in self._lines():
                if other.session == session and other.outgoing.stream:
                    other.end()
        elif what == "GET":
            line.stream()
        elif what.startswith("notifications/"):
            line.whole(202, b"")
        else:
            line.whole(200, b'{"jsonrpc":"2.0","id":7,"result":{}}')
