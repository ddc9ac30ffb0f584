"""``/events``: an endless answer for as long as somebody reads it.

Rules of this file: whoever joins the feed leaves it, however the answer ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from mcp_proxy.admin.answers import SECURITY_HEADERS, Endpoint, answer, refusal
from mcp_proxy.admin.contract import EVENTS
from mcp_proxy.admin.feed import READERS, Feed, Reader

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_HEADERS: Final = {
    **SECURITY_HEADERS,
    "content-type": EVENTS,
    # nginx would hold events back until its buffer is full.
    "x-accel-buffering": "no",
}


def events_endpoint(feed: Feed) -> Endpoint:
    async def events(request: Request) -> Response:
        if request.method == "HEAD":
            return answer(200, b"", EVENTS)
        reader = await feed.join()
        if reader is None:
            detail = f"{READERS} listen already; read the access log instead"
            return refusal(503, "too_many_readers", detail, {"retry-after": "5"})
        return _Events(feed, reader)

    return events


class _Events(StreamingResponse):
    def __init__(self, feed: Feed, reader: Reader) -> None:
        super().__init__(reader.chunks(), headers=_HEADERS)
        self._feed = feed
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._feed.leave(self._reader)
