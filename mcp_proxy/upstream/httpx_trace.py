"""What happens inside of one httpx2 call: the one file that looks into httpcore2.

Rules of this file: it is told by httpcore2's public ``trace`` extension where a call is, and
takes the connection from the pool's records; a rename there raises, so that the call fails
loudly instead of going on with a rule less. What it knows, httpcore2 does not say or do itself:

- whether the request began to leave, and on a new connection or a reused one;
- bytes behind the end of a response: h11 keeps them, and they would be read as the *next*
  response (RFC 9112 section 6.3: such a connection must not be reused);
- a cancelled HTTP/2 stream: httpcore2 forgets it without RST_STREAM, so the backend would go
  on writing to nobody;
- the HTTP/2 connection window: one reader that stalls would use it up and stop all others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import httpx2

_CANCEL: Final = 0x8
"""RFC 9113 section 7."""

_WINDOW: Final = 2**31 - 1
"""The largest window (RFC 9113 section 6.9.1). httpcore2 gives each stream and the connection
16 MiB, so that one stalled stream can block the connection; 100 of them fit into this."""


class Trace:
    """The ``trace`` extension of one call."""

    __slots__ = (
        "_connection", "_is_complete", "_is_connecting", "_on_sending", "_request", "_stream_id",
        "_transport",
    )  # fmt: skip

    def __init__(self, transport: httpx2.AsyncHTTPTransport, on_sending: Callable[[], None]) -> None:
        self._transport = transport
        self._on_sending = on_sending
        self._is_connecting = False
        self._is_complete = False
        self._connection: Any = None
        """The httpcore2 connection that carries the request, once it leaves."""
        self._request: Any = None
        self._stream_id: int | None = None

    async def __call__(self, name: str, info: dict[str, Any]) -> None:
        if name.endswith("connect_tcp.started"):
            self._is_connecting = True
        elif name.endswith("send_request_headers.started") and info["request"].method != b"CONNECT":
            self._connection = self._find()
            self._request = info["request"]
            self._stream_id = info.get("stream_id")
            if self._stream_id is not None:
                self._widen()
            self._on_sending()

    @property
    def is_unsent(self) -> bool:
        """It is certain that no byte of the request has left."""
        return self._is_connecting and self._connection is None

    def is_stale(self) -> bool:
        """Whether a reused connection has not brought a single byte of the response. Never for
        HTTP/2: a connection that others use is not an idle one."""
        if self._is_connecting or self._connection is None or self._stream_id is not None:
            return False
        return not self._connection._h11_state.trailing_data[0]

    def completed(self) -> None:
        """The response has been read to its end. Call it before the response is closed."""
        self._is_complete = True
        if self._connection is not None and self._stream_id is None:
            state = self._connection._h11_state
            if state.trailing_data[0]:
                state.send_failed()  # h11's own word for "not reusable"

    async def release(self) -> None:
        """Tell an HTTP/2 backend that a response is no longer wanted."""
        if self._stream_id is None or self._is_complete:
            return
        from h2.exceptions import ProtocolError

        try:
            self._connection._h2_state.reset_stream(self._stream_id, error_code=_CANCEL)
        except ProtocolError:
            return  # the stream or the connection has ended by itself
        await self._connection._write_outgoing_data(self._request)

    def _find(self) -> Any:
        requests = self._transport._pool._requests
        connection: Any = next(r.connection for r in requests if r.request.extensions.get("trace") is self)
        while hasattr(connection, "_connection"):  # tunnels and forwarders wrap one another
            connection = connection._connection
        return connection

    def _widen(self) -> None:
        state = self._connection._h2_state
        missing = _WINDOW - state.inbound_flow_control_window
        if missing > _WINDOW // 2:
            state.increment_flow_control_window(missing)
