"""The ``httpx`` transport: HTTP/2, egress proxies and TLS as httpx2 does them.

Rules of this file: only the transport level of httpx2 is used. ``AsyncClient`` keeps a cookie
jar, so one user's Set-Cookie would be sent with the next user's request (encode/httpx#2992),
and it decodes bodies.

Long streams, and calls that must not reuse a connection, get a pool of their own: httpcore's
pool does work proportional to the connections it holds, and over HTTP/2 a connection of its own
makes a cancelled stream a closed connection.
"""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import socket
import ssl
from typing import Final

import httpx2

from mcp_proxy.clock import Deadlines, patience
from mcp_proxy.errors import StartupError
from mcp_proxy.upstream import Call, Outgoing, Receiver, Spawner
from mcp_proxy.upstream.httpx_call import CLOSE_S, HttpxCall, Lane

IDLE_S: Final = 4.0
"""Below uvicorn's keep-alive of 5 s, the shortest default among MCP servers."""

IDLE_LIMIT: Final = 256
"""Idle connections kept per backend. httpcore closes expired ones only when the pool is used
again, so this also bounds the sockets that a burst leaves behind."""

MULTIPLEX_LIMIT: Final = 100
"""Calls per HTTP/2 connection. RFC 9113 section 6.5.2 asks servers to allow at least 100, and
httpcore allows itself no more: call 101 would wait, without bound, for one of them to end."""


class HttpxTransport:
    """Implements Transport."""

    def __init__(
        self,
        *,
        origin: str,
        tasks: Spawner,
        name: str | None = None,
        server_name: str | None = None,
        connect_timeout_s: float | None = None,
        head_timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
        ssl_context: ssl.SSLContext | None = None,
        http2: bool = False,
        proxy: str | None = None,
    ) -> None:
        """``origin``: ``scheme://host:port``. ``name``: for the Host header, instead of that host.
        ``server_name``: for TLS, instead of both. ``proxy``: URL of an egress proxy, with credentials
        if it wants them; ``http``, ``https``, ``socks5`` or ``socks5h``. ``http2``: offered by
        ALPN, so only over TLS. Raises StartupError if a library for that is not installed."""
        self.require(http2=http2, proxy=proxy)
        self.url = httpx2.URL(origin)
        self.authority = self.url.netloc if name is None else self.url.copy_with(host=name).netloc
        self.server_name = server_name or name
        self.connect_timeout_s = connect_timeout_s
        self.head_due: Deadlines[HttpxCall] = Deadlines(head_timeout_s, HttpxCall.expire_head)
        self.body_due: Deadlines[HttpxCall] = Deadlines(idle_timeout_s, HttpxCall.expire_body)
        self.is_closed = False
        self._tasks = tasks
        self._http2 = http2
        self._proxy = None if proxy is None else httpx2.Proxy(proxy)
        if ssl_context is None and self.url.scheme == "https":
            ssl_context = httpx2.create_ssl_context(trust_env=False)
        # Never None: httpx2 would load all certificates again for every pool.
        self._ssl = ssl_context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._shared = [self._open_lane(keep=IDLE_LIMIT)]
        self._calls: set[HttpxCall] = set()

    @staticmethod
    def require(*, http2: bool, proxy: str | None) -> None:
        """Raises StartupError if a library that the arguments need is not installed."""
        _require("h2", http2, "http2: true needs the extra http2: pip install 'mcp-reverse-proxy[http2]'")
        _require("socksio", (proxy or "").startswith("socks"), "a SOCKS proxy needs: pip install socksio")

    def __repr__(self) -> str:
        return f"<HttpxTransport {self.url} open={self.open_connections} calls={len(self._calls)}>"

    @property
    def open_connections(self) -> int:
        alone = {call.lane for call in self._calls}.difference(self._shared)
        return sum(lane.open_connections for lane in (*self._shared, *alone))

    @property
    def is_idle(self) -> bool:
        return not self._calls

    def send(self, outgoing: Outgoing, receiver: Receiver, *, fresh: bool = False) -> Call:
        lane = self._open_lane(keep=0) if fresh or outgoing.stream else self._shared_lane()
        call = HttpxCall(self, lane, outgoing, receiver)
        lane.inflight += 1
        self._calls.add(call)
        call.task = self._tasks.spawn(call.run())
        call.task.add_done_callback(call.forget)
        return call

    async def probe(self) -> bool | None:
        """Of an egress proxy, if there is one: that is where connections go."""
        url = self.url if self._proxy is None else self._proxy.url
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            async with patience(self.connect_timeout_s):
                _, writer = await asyncio.open_connection(url.host, port)
        except (socket.gaierror, UnicodeError):
            return None
        except OSError as error:
            return None if error.errno in (errno.EMFILE, errno.ENFILE) else False
        writer.transport.abort()
        return True

    def sweep(self, at_s: float) -> None:
        """Fire due timeouts; a job for the Ticker."""
        self.head_due.sweep(at_s)
        self.body_due.sweep(at_s)

    async def aclose(self) -> None:
        self.is_closed = True
        calls = list(self._calls)
        for call in calls:
            call.fail("lost", "the proxy is closing")
        if calls:
            await asyncio.wait([call.task for call in calls], timeout=CLOSE_S)
        for lane in self._shared:
            await lane.transport.aclose()

    # --- Owner: called by calls ------------------------------------------------------

    def forget(self, call: HttpxCall) -> None:
        self._calls.discard(call)
        call.lane.inflight -= 1

    def is_spare(self, lane: Lane) -> bool:
        if lane not in self._shared:
            return True
        if lane.inflight > 1 or lane is self._shared[0]:
            return False
        self._shared.remove(lane)
        return True

    # --- pools -----------------------------------------------------------------------

    def _shared_lane(self) -> Lane:
        if self._http2:
            for lane in self._shared:
                if lane.inflight < MULTIPLEX_LIMIT:
                    return lane
            self._shared.append(self._open_lane(keep=IDLE_LIMIT))
        return self._shared[-1]

    def _open_lane(self, *, keep: int) -> Lane:
        return Lane(
            httpx2.AsyncHTTPTransport(
                verify=self._ssl,
                trust_env=False,
                http2=self._http2,
                limits=httpx2.Limits(
                    max_connections=None, max_keepalive_connections=keep, keepalive_expiry=IDLE_S
                ),
                proxy=self._proxy,
                retries=0,
            )
        )


def _require(module: str, is_needed: bool, sentence: str) -> None:
    if is_needed and importlib.util.find_spec(module) is None:
        raise StartupError(sentence)
