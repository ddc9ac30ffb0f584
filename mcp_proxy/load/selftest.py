"""Does this generator see events when they come? Proven by cause and effect, before anything is measured.

Rules of this file: the server sends an event only when it has been told that the one before was seen. A
reader that waits for more than there is waits for ever, and is found out. No clock decides, but the clock is
checked: the moment that the reader noted lies between the moment of sending and that of the next.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from mcp_proxy.load import Target
from mcp_proxy.load.client import Client
from mcp_proxy.load.ledger import Ledger

EVENTS: Final = 5
PATIENCE_S: Final = 5.0
"""How long the server waits to be told; only a reader that lies needs more than a millisecond."""

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    b"connection: close\r\n\r\n"
)

Reader = Callable[[Target], Iterator[tuple[int, float]]]
"""Opens the stream and yields number and moment (``time.perf_counter``) of every event."""


def self_test(reader: Reader | None = None, patience_s: float = PATIENCE_S) -> str | None:
    """What is wrong with the reader (default: the one that users have); None: it sees events in time."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = _Server(listening, patience_s)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        where = Target("http", "127.0.0.1", listening.getsockname()[1], "/mcp")
        try:
            for number, at in (reader or own_reader)(where):
                server.saw(number, at)
        except Exception as error:
            server.problem = server.problem or f"the reader broke: {error!r}"
        server.is_over.set()
        thread.join(2 * patience_s)
    return server.verdict()


def own_reader(where: Target) -> Iterator[tuple[int, float]]:
    """As ``Client`` does it."""
    stream = Client(where, Ledger(), "self-test", timeout_s=2 * PATIENCE_S).stream("self-test", "GET", [])
    try:
        while not stream.has_ended:
            for event in stream.events(2 * PATIENCE_S):
                yield int(event.data or 0), stream.reply.arrived_at
    finally:
        stream.close()


class _Server:
    """One stream for one reader."""

    def __init__(self, listening: socket.socket, patience_s: float) -> None:
        self._listening = listening
        self._patience_s = patience_s
        self._seen = [threading.Event() for _ in range(EVENTS)]
        self._arrived: list[float] = []
        self._sent: list[float] = []
        self.problem: str | None = None
        self.is_over = threading.Event()

    def saw(self, number: int, at: float) -> None:
        """The reader says that it has this event."""
        if number != len(self._arrived) or number >= EVENTS:
            self.problem = self.problem or f"event {number} came out of order"
            return
        self._arrived.append(at)
        self._seen[number].set()

    def run(self) -> None:
        self._listening.settimeout(self._patience_s)
        try:
            connection, _ = self._listening.accept()
        except OSError:
            self.problem = self.problem or "the reader never connected"
            return
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(self._patience_s)
            with contextlib.suppress(OSError):  # what a reader that leaves has not seen is counted
                connection.recv(65536)
                connection.sendall(_HEAD)
                for number in range(EVENTS):
                    self._send(connection, number)
                connection.sendall(b"0\r\n\r\n")

    def _send(self, connection: socket.socket, number: int) -> None:
        event = b"data: %d\n\n" % number
        self._sent.append(time.perf_counter())
        connection.sendall(b"%x\r\n%b\r\n" % (len(event), event))
        if not self._seen[number].wait(self._patience_s) and not self.is_over.is_set():
            self.problem = self.problem or f"event {number + 1} of {EVENTS} was not seen when it came"

    def verdict(self) -> str | None:
        if self.problem is not None:
            return self.problem
        if len(self._arrived) != EVENTS:
            return f"{len(self._arrived)} of {EVENTS} events were seen"
        following = [*self._sent[1:], float("inf")]
        for number, at in enumerate(self._arrived):
            if not self._sent[number] <= at <= following[number]:
                return f"the time of event {number + 1} is not the time at which it came"
        return None
