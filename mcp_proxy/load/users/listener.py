"""Whoever reads a stream that is meant to stay.

Rules of this file: as SDK clients do. A stream that ends properly is opened again after ``retry`` (or a
second), a GET stream with the last id that was seen; one that is cut is a failure and opened again, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from mcp_proxy.load import Plan, messages
from mcp_proxy.load.client import Client, broken
from mcp_proxy.load.ledger import Ledger
from mcp_proxy.load.messages import Fields
from mcp_proxy.load.stream import Failed, Stopped, Stream

RETRY_S: Final = 1.0
"""Without a ``retry`` field, as the official SDKs have it."""
LONGEST_RETRY_S: Final = 5.0
SLICE_S: Final = 0.5
"""How often somebody who reads looks whether he is to stop."""
GET: Final = "GET stream"

Opening = Callable[[Client, str], Stream]
"""Takes the last event id, empty at first."""


def get_stream(fields: Fields, name: str = GET) -> Opening:
    """The stream of a session."""

    def opened(client: Client, last_id: str) -> Stream:
        resumed = [messages.resume_field(last_id)] if last_id else []
        return client.stream(name, "GET", [messages.EVENTS, *fields, *resumed])

    return opened


def subscription(client: Client, last_id: str) -> Stream:
    """Of the modern era; nothing is resumed there."""
    method = "subscriptions/listen"
    params = {"notifications": {"toolsListChanged": True}}
    fields = [messages.ACCEPT, messages.JSON, *messages.modern_fields(method)]
    return client.stream(method, "POST", fields, messages.modern_request(client.next_id(), method, params))


class Listener:
    """``run`` in the thread that is to read, ``stop`` from any."""

    def __init__(self, plan: Plan, ledger: Ledger, kind: str, opening: Opening) -> None:
        self._client = Client(
            *(plan.target, ledger, kind),
            headers=plan.headers,
            timeout_s=plan.timeout_s,
            patience_s=plan.patience_s,
            verify=plan.verify,
            is_aside=True,
        )
        self._opening = opening
        self._stream: Stream | None = None
        self._last_id = ""
        self._retry_s = RETRY_S

    def run(self, seconds: float | None = None) -> None:
        """Until stopped, or for so long. Nothing is raised."""
        stopping = self._client.stopping
        until = None if seconds is None else time.perf_counter() + seconds
        while not stopping.is_set():
            try:
                self._listen(until)
            except Failed as failed:
                if failed.status in (400, 404, 405):
                    return  # it will not become better
            except Stopped:
                return
            except Exception as error:
                broken(self._client, error)
                return
            if until is not None and time.perf_counter() >= until:
                return
            stopping.wait(self._retry_s)

    def stop(self) -> None:
        self._client.stopping.set()
        stream = self._stream
        if stream is not None:
            stream.stop()

    def _listen(self, until: float | None) -> None:
        stopping = self._client.stopping
        stream = self._stream = self._opening(self._client, self._last_id)
        try:
            while not stream.has_ended and not stopping.is_set():
                left_s = SLICE_S if until is None else min(SLICE_S, until - time.perf_counter())
                if left_s <= 0:
                    return
                for event in stream.events(left_s):
                    if event.retry_ms is not None:
                        self._retry_s = min(event.retry_ms / 1000, LONGEST_RETRY_S)
                self._last_id = stream.parser.last_id or self._last_id
        finally:
            self._stream = None
            stream.close()
