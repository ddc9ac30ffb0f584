"""The ``http11`` transport: connections to one backend, dialled on demand, reused youngest first.

Rules of this file: every operation is O(1) in open connections. Youngest-first reuse lets
the old ones run into the idle timeout, which is shorter than the backends' own (uvicorn: 5 s),
so that reuse rarely meets a connection that the backend is closing.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from typing import Final

from mcp_proxy.clock import Deadlines, patience
from mcp_proxy.errors import Phase, UpstreamError
from mcp_proxy.upstream import Call, Outgoing, Receiver, Spawner
from mcp_proxy.upstream.berths import Berths
from mcp_proxy.upstream.connection import Connection, Known

IDLE_S: Final = 4.0
"""Below uvicorn's keep-alive of 5 s, the shortest default among MCP servers."""

IDLE_LIMIT: Final = 256
"""Idle connections kept per backend; more than a burst of calls needs."""


NOBODY: Final = (socket.EAI_NONAME, socket.EAI_NODATA)
"""The name does not exist, or has no address: a pod or a container that is gone. A resolver that cannot
answer says something else, which says nothing about the backend."""

KNOWN_LIMIT: Final = 1024
"""Response heads remembered per backend, one per session, about 1 KiB each. A hit needs two
answers of a session within one second (the Date), so more would not help."""


class Http11Transport:
    """Implements Transport over ``asyncio.Protocol`` connections."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tasks: Spawner,
        berths: Berths | None = None,
        name: str | None = None,
        server_name: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        connect_timeout_s: float | None = None,
        head_timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
    ) -> None:
        """``name``: for the Host header, instead of ``host``. ``server_name``: for TLS, instead of both."""
        self._host = host
        self._port = port
        self._ssl = ssl_context
        self._tasks = tasks
        self._berths = berths or Berths(IDLE_LIMIT)
        self._connect_timeout_s = connect_timeout_s
        self._open: set[Connection] = set()
        self._dials: set[_Dial] = set()
        self._idle: Deadlines[Connection] = Deadlines(IDLE_S, Connection.close)
        self._head_due: Deadlines[Connection] = Deadlines(head_timeout_s, self._expire_head)
        self._body_due: Deadlines[Connection] = Deadlines(idle_timeout_s, self._expire_body)
        self._watched = head_timeout_s is not None or idle_timeout_s is not None
        self._known: dict[bytes, Known] = {}
        self._closed = False
        name = name or host
        self._server_name = (server_name or name) if ssl_context is not None else None
        authority = f"[{name}]" if ":" in name else name
        self._authority = f"{authority}:{port}".encode()

    def __repr__(self) -> str:
        return f"<Http11Transport {self._authority.decode()} open={len(self._open)} idle={len(self._idle)}>"

    @property
    def open_connections(self) -> int:
        return len(self._open)

    @property
    def is_idle(self) -> bool:
        return not self._dials and len(self._open) == len(self._idle)

    def send(self, outgoing: Outgoing, receiver: Receiver, *, fresh: bool = False) -> Call:
        if not fresh:
            while (connection := self._idle.take_newest()) is not None:
                if connection.is_usable:
                    connection.send(outgoing, receiver)
                    if self._watched:
                        self._head_due.arm(connection)
                    return connection
        dial = _Dial(self, outgoing, receiver)
        self._dials.add(dial)
        dial.task = self._tasks.spawn(dial.run())
        return dial

    def begin(self, dial: _Dial, connection: Connection, outgoing: Outgoing, receiver: Receiver) -> None:
        """A dial came through."""
        self._dials.discard(dial)
        connection.send(outgoing, receiver)
        if self._watched:
            self._head_due.arm(connection)

    def abandon(self, dial: _Dial) -> None:
        """A dial failed or nobody waits for it any more."""
        self._dials.discard(dial)

    async def dial(self) -> Connection:
        """A new connection. Raises OSError (ssl.SSLError and TimeoutError included)."""
        try:
            if self._berths.take(self):
                await asyncio.sleep(0)  # the descriptor of the other one is free then
            async with patience(self._connect_timeout_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self, self._authority, watched=self._watched),
                    self._host,
                    self._port,
                    ssl=self._ssl,
                    server_hostname=self._server_name,
                )
        except BaseException:
            self._berths.leave(self)
            raise
        self._open.add(connection)
        return connection

    def close_idle(self) -> bool:
        if not self._idle:
            return False
        self._idle.trim(len(self._idle) - 1)
        return True

    async def probe(self) -> bool | None:
        try:
            connection = await self.dial()
        except OSError as error:
            return False if _kind_of(error) == "refused" else None
        except Exception:
            return None
        connection.close()
        return True

    def sweep(self, at_s: float) -> None:
        """Fire due timeouts; a job for the Ticker."""
        if not self._open:
            return
        self._idle.sweep(at_s)
        self._idle.trim(IDLE_LIMIT)
        self._head_due.sweep(at_s)
        self._body_due.sweep(at_s)

    async def aclose(self) -> None:
        self._closed = True
        for dial in list(self._dials):
            dial.fail("lost", "the proxy is closing")
        for connection in list(self._open):
            connection.fail("lost", "the proxy is closing")

    # --- Owner: called by connections ------------------------------------------------

    def released(self, connection: Connection) -> None:
        if self._watched:
            self._head_due.disarm(connection)
            self._body_due.disarm(connection)
        if self._closed:
            connection.close()
        else:
            self._idle.arm(connection)

    def recall(self, session: bytes) -> Known | None:
        return self._known.get(session)

    def remember(self, session: bytes, known: Known) -> None:
        if len(self._known) >= KNOWN_LIMIT and session not in self._known:
            del self._known[next(iter(self._known))]  # the oldest; a busy session comes back at once
        self._known[session] = known

    def gone(self, connection: Connection) -> None:
        if connection in self._open:  # else its dial lets go of the berth
            self._open.remove(connection)
            self._berths.leave(self)
        self._idle.disarm(connection)
        self._head_due.disarm(connection)
        self._body_due.disarm(connection)

    def progressed(self, connection: Connection) -> None:
        self._head_due.disarm(connection)
        self._body_due.arm(connection)

    # --- deadlines -------------------------------------------------------------------

    def _expire_head(self, connection: Connection) -> None:
        connection.fail("timeout", f"no response head within {self._head_due.delay_s:g} s")

    def _expire_body(self, connection: Connection) -> None:
        if connection.is_paused:
            self._body_due.arm(connection)  # the client is slow, not the backend
        else:
            connection.fail("timeout", f"no bytes for {self._body_due.delay_s:g} s")


class _Dial:
    """A request that waits for its connection. Implements Call."""

    __slots__ = ("_connection", "_outgoing", "_paused", "_receiver", "_transport", "task")

    def __init__(self, transport: Http11Transport, outgoing: Outgoing, receiver: Receiver) -> None:
        self._transport = transport
        self._outgoing: Outgoing | None = outgoing
        self._receiver: Receiver | None = receiver
        self._connection: Connection | None = None
        self._paused = False
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        try:
            connection = await self._transport.dial()
        except TimeoutError:
            self.fail("timeout", "connect timed out")
        except OSError as error:
            self.fail(_kind_of(error), f"cannot connect: {error.strerror or type(error).__name__}")
        except Exception as error:
            # A host name that IDNA refuses, for one. Whatever it is, somebody waits.
            self.fail("unresolved", f"cannot connect: {type(error).__name__}")
        else:
            outgoing, receiver = self._outgoing, self._receiver
            assert outgoing is not None
            assert receiver is not None
            # A stream may stay for hours, and what this object refers to with it.
            self._outgoing = self._receiver = self.task = None
            self._connection = connection
            self._transport.begin(self, connection, outgoing, receiver)
            if self._paused:
                connection.pause()

    def fail(self, kind: str, detail: str) -> None:
        """Tell the receiver, once, and give up."""
        receiver = self._give_up()
        if receiver is not None:
            receiver.on_error(UpstreamError(Phase.CONNECT, kind, detail, sent=False))

    def pause(self) -> None:
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        self._paused = False
        if self._connection is not None:
            self._connection.resume()

    def cancel(self) -> None:
        if self._connection is not None:
            self._connection.cancel()
        else:
            self._give_up()

    def _give_up(self) -> Receiver | None:
        receiver, self._receiver, self._outgoing = self._receiver, None, None
        self._transport.abandon(self)
        if self.task is not None and asyncio.current_task() is not self.task:
            self.task.cancel()
        return receiver


def _kind_of(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        if error.errno in NOBODY:
            return "refused"
        # EAI_SYSTEM: the resolver could not open a socket
        return "exhausted" if error.errno == socket.EAI_SYSTEM else "unresolved"
    return "exhausted" if error.errno in (errno.EMFILE, errno.ENFILE) else "refused"
