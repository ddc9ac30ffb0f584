"""Redis: the one file that knows the library.

Rules of this file: its exceptions end here. The library retries nothing and times nothing but
connecting: deadlines come from above, as cancellation. A connection whose answers were not all
read is closed, never given back: a late answer would be taken for somebody else's. Only masters
are spoken to: a replica may not know yet what was written.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, Final

from redis import exceptions
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    RedisSSLContext,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from mcp_proxy.clock import now
from mcp_proxy.config.redis_url import RedisUrl, parse_url
from mcp_proxy.sessions.remote.cluster import ClusterLink
from mcp_proxy.sessions.remote.lane import IN_FLIGHT, Answer, Command, LinkError, Redirect, Refusal
from mcp_proxy.sessions.remote.link import SingleLink
from mcp_proxy.sessions.remote.registry import Changed, LinkedRegistry
from mcp_proxy.sessions.remote.slots import Node
from mcp_proxy.tasks import Tasks

BUDGET_S: Final = 0.25
CLOSE_S: Final = 1.0
"""For connections to close; what has not by then is abandoned."""

OPEN_S: Final = 1.0
"""To open a connection, for whoever comes next: nobody waits for longer than the budget."""

SUBSCRIBE_S: Final = 1.0
"""To connect and subscribe. Nobody waits for it, but a silent server must be given up."""

QUIET_S: Final = 2.0
"""Without a message the subscription is asked whether it still lives."""

TLS_S: Final = 60.0
"""Until certificates are read again: they are renewed while we run."""

SENTINEL_S: Final = 0.1
"""For one sentinel to answer: two that hang and one that answers fit into the budget."""

_TEXT_LIMIT: Final = 120


class _ReplicaError(exceptions.ConnectionError):
    """What answers is no master."""


async def _only_masters(connection: AbstractConnection) -> None:
    """Ends the handshake of every connection."""
    await connection.on_connect()
    await connection.send_command("ROLE")
    try:
        role = await connection.read_response()
    except exceptions.NoPermissionError:
        return
    if role and role[0] != b"master":
        raise _ReplicaError("a replica")


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except (exceptions.RedisError, OSError) as error:
        raise LinkError(_cause(error)) from None


_CAUSES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (exceptions.AuthenticationError, "user or password were refused"),
    (exceptions.AuthorizationError, "user or password were refused"),
    (exceptions.BusyLoadingError, "it is loading its data"),
    (_ReplicaError, "it is a replica, which cannot be written to"),
    (MasterNotFoundError, "the sentinels know no master"),
    (exceptions.TimeoutError, "no answer in time"),
    (TimeoutError, "no answer in time"),
    (ConnectionRefusedError, "connection refused"),
    (socket.gaierror, "its name cannot be resolved"),
    (ssl.SSLCertVerificationError, "its TLS certificate is not trusted"),
    (ssl.SSLError, "TLS failed"),
    (FileNotFoundError, "there is no such socket or file"),
    (PermissionError, "permission denied"),
)


def _cause(error: BaseException) -> str:
    """Without addresses: health says it too."""
    for one in (error, error.__cause__, error.__context__):
        for kind, text in _CAUSES:
            if isinstance(one, kind):
                return text
    if isinstance(error, exceptions.ResponseError):
        return f"refused: {_text(error)}"
    return "the connection was lost"


def _text(error: exceptions.ResponseError) -> str:
    code = getattr(error, "status_code", None)
    return f"{code} {error}"[:_TEXT_LIMIT] if code else str(error)[:_TEXT_LIMIT]


def _answer(error: exceptions.ResponseError) -> Answer:
    if isinstance(error, exceptions.AskError):  # MovedError is one, too
        return Redirect(error.slot_id, error.host, error.port, not isinstance(error, exceptions.MovedError))
    return Refusal(_text(error))


class RedisServer:
    """One server, or whichever is the master of a Sentinel service."""

    def __init__(self, pool: ConnectionPool, tasks: Tasks, sentinel: Sentinel | None = None) -> None:
        self._pool = pool
        self._tasks = tasks
        self._waiting: deque[asyncio.Future[AbstractConnection]] = deque()
        self._opening = 0
        """Connections that are being opened or taken from the pool, each for somebody who waits."""
        self._sentinel = sentinel
        self._demotions = 0
        """How often it turned out to be a master no more. All older connections are closed then:
        they would still read, from what may be out of date."""

    async def exchange(self, commands: Sequence[Command]) -> list[Answer]:
        with _mapped():
            waiting: asyncio.Future[AbstractConnection] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            self._want()
            try:
                connection = await waiting
            except asyncio.CancelledError:
                if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                    await self._give(waiting.result())  # it came in the same moment
                raise
            demotions = self._demotions
            is_clean = is_lost = False
            try:
                await _send(connection, commands)
                answers = [await self._read(connection) for _ in commands]
                is_clean = demotions == self._demotions
                return answers
            except exceptions.ConnectionError:
                is_lost = True
                raise
            finally:
                if not is_clean:
                    await connection.disconnect(nowait=True)
                await self._give(connection)
                if is_lost or demotions != self._demotions:
                    # What ended this connection has hardly spared the idle ones.
                    await self._pool.disconnect(inuse_connections=False)

    def _want(self) -> None:
        self._opening += 1
        self._tasks.spawn(self._open())

    async def _open(self) -> None:
        """Find or open a connection for whoever waits. Opening takes three round trips, which may be more
        than there is time for; then another that has become free has served by then, and this one
        serves the next."""
        try:
            try:
                connection = await self._connected()
            finally:
                self._opening -= 1
        except exceptions.MaxConnectionsError:
            pass  # there are as many as there may be, and each is given when it is free
        except (exceptions.RedisError, OSError) as error:
            waiting = self._first()
            if waiting is not None:
                waiting.set_exception(error)
            self._replace()
        else:
            await self._give(connection)

    async def _connected(self) -> AbstractConnection:
        async with asyncio.timeout(OPEN_S):
            connection: AbstractConnection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
            try:
                if _is_dead(connection):
                    await connection.disconnect(nowait=True)
                    await connection.connect()  # type: ignore[no-untyped-call]
            except BaseException:
                await self._pool.release(connection)
                raise
        return connection

    async def _give(self, connection: AbstractConnection) -> None:
        """To whoever waits, or back."""
        is_dead = _is_dead(connection)
        waiting = self._first() if not is_dead else None
        if waiting is not None:
            waiting.set_result(connection)
            return
        await self._pool.release(connection)  # never waits: nobody holds the pool's lock for long
        if is_dead:
            self._replace()

    def _replace(self) -> None:
        """One is lost. Whoever found all of them taken may have counted on it."""
        if len(self._waiting) > self._opening:
            self._want()

    def _first(self) -> asyncio.Future[AbstractConnection] | None:
        """Who has waited for longest and still does."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                return waiting
        return None

    async def _read(self, connection: AbstractConnection) -> Answer:
        try:
            return await connection.read_response()
        except exceptions.ResponseError as error:
            if isinstance(error, exceptions.ReadOnlyError):
                self._demotions += 1
            return _answer(error)
        except exceptions.ConnectionError as error:
            if isinstance(error.__context__, exceptions.ReadOnlyError):  # how Sentinel's connections say it
                self._demotions += 1
                raise _ReplicaError("a replica") from None
            raise

    async def listen(self, channel: str, opened: Callable[[], None], heard: Callable[[bytes], None]) -> None:
        with _mapped():
            connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                async with asyncio.timeout(SUBSCRIBE_S):
                    await connection.connect()
                    await connection.send_command("SUBSCRIBE", channel)
                    await connection.read_response(push_request=True)
                opened()
                while True:
                    message = await _next_message(connection)
                    if isinstance(message, list) and len(message) == 3 and message[0] == b"message":
                        heard(message[2])
            finally:
                await connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        with contextlib.suppress(exceptions.RedisError, OSError):
            async with asyncio.timeout(CLOSE_S):
                await self._pool.disconnect()
        if self._sentinel is not None:
            with contextlib.suppress(exceptions.RedisError, OSError):
                async with asyncio.timeout(CLOSE_S):
                    await self._sentinel.aclose()


def _is_dead(connection: AbstractConnection) -> bool:
    """Reset while it was idle. The library sees an orderly end, but not this."""
    writer = connection._writer
    return writer is None or writer.transport.is_closing()


async def _send(connection: AbstractConnection, commands: Sequence[Command]) -> None:
    try:
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
    except RuntimeError as error:  # uvloop's word for a transport that has just been closed
        raise exceptions.ConnectionError("closed") from error


async def _next_message(connection: AbstractConnection) -> object:
    message = await connection.read_response(timeout=QUIET_S, push_request=True)
    if message is None:
        await connection.send_command("PING")
        message = await connection.read_response(timeout=SUBSCRIBE_S, push_request=True)
        if message is None:
            raise exceptions.TimeoutError("silent")
    return message


class _Tls(RedisSSLContext):
    """Shared by connections: reading the trusted authorities blocks the loop for some 20 ms."""

    _read_at_s = float("-inf")

    def get(self) -> ssl.SSLContext:
        if now() - self._read_at_s > TLS_S:
            self.context, self._read_at_s = None, now()
        return super().get()


class _TlsConnection(SSLConnection):
    def __init__(self, *, tls: _Tls, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context = tls


class _MasterTlsConnection(_TlsConnection, SentinelManagedSSLConnection):
    """The same towards the master of a service."""


@lru_cache(maxsize=4)
def _tls(options: frozenset[tuple[str, Any]]) -> _Tls:
    given = {name.removeprefix("ssl_"): value for name, value in options if name.startswith("ssl_")}
    defaults: dict[str, Any] = {"cert_reqs": "required", "check_hostname": True}
    return _Tls(**defaults | given)


def _options(url: RedisUrl) -> dict[str, Any]:
    options = {"tls": _tls(frozenset(url.options.items()))} if url.tls else {}
    return (
        options
        | _PLAIN
        | {
            "db": url.db,
            "username": url.username or None,
            "password": url.password or None,
            "socket_timeout": None,
            "socket_connect_timeout": OPEN_S,
            "redis_connect_func": _only_masters,
            "max_connections": 2 * IN_FLIGHT,
        }
    )


_PLAIN: Final[dict[str, Any]] = {
    "protocol": 3,
    "retry": Retry(NoBackoff(), 0),
    "driver_info": None,
    # Switched on it would also switch off the look at idle connections for leftovers.
    "maint_notifications_config": MaintNotificationsConfig(enabled=False),
}


def connect(url: RedisUrl, tasks: Tasks, node: Node | None = None) -> RedisServer:
    """No I/O yet. ``node``: of a cluster."""
    options = _options(url)
    if url.kind == "sentinel":
        return _connect_sentinel(url, options, tasks)
    if url.path:
        return RedisServer(ConnectionPool(UnixDomainSocketConnection, path=url.path, **options), tasks)
    host, port = node or url.hosts[0]
    kind = _TlsConnection if url.tls else Connection
    return RedisServer(ConnectionPool(kind, host=host, port=port, **options), tasks)


def _connect_sentinel(url: RedisUrl, options: dict[str, Any], tasks: Tasks) -> RedisServer:
    tls = {"ssl": True, **{k: v for k, v in url.options.items() if k.startswith("ssl_")}} if url.tls else {}
    asking = (
        _PLAIN
        | tls
        | {
            "username": url.options.get("sentinel_username"),
            "password": url.options.get("sentinel_password"),
            "socket_timeout": SENTINEL_S,
            "socket_connect_timeout": SENTINEL_S,
        }
    )
    sentinel = Sentinel(url.hosts, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
    if url.tls:
        options["connection_class"] = _MasterTlsConnection
    pool = SentinelConnectionPool(url.service, sentinel, **options)  # type: ignore[no-untyped-call]
    return RedisServer(pool, tasks, sentinel)


class RedisRegistry(LinkedRegistry):
    """A Registry. ``ttl_s`` is how long an unused session lives."""

    def __init__(
        self, url: str, *, ttl_s: float, tasks: Tasks, budget_s: float = BUDGET_S, prefix: str = "mcp-proxy:"
    ) -> None:
        """Raises ValueError if ``url`` cannot be used. No I/O before ``start``."""
        parsed = parse_url(url)

        def build(changed: Changed) -> SingleLink | ClusterLink:
            if parsed.kind != "cluster":
                return SingleLink(connect(parsed, tasks), tasks, budget_s, changed)
            seeds = [Node(host, port) for host, port in parsed.hosts]
            return ClusterLink(seeds, partial(connect, parsed, tasks), tasks, budget_s, changed)

        super().__init__(build, tasks, where=parsed.redacted, ttl_s=ttl_s, prefix=prefix)
