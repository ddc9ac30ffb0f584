"""A recording Receiver, for tests of transports alone.

Rules of this file: it checks the legal order of calls itself, so that every test of a transport
is a test of the order, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.tools import PATIENCE_S


class RecordingReceiver:
    """``head``, ``body``, ``ended`` and ``error`` are what has been pushed so far."""

    def __init__(self, reaction: Callable[[str], None] = lambda event: None) -> None:
        """``reaction`` is called inside of each push with its name: ``head body end error``."""
        self.head: tuple[int, list[tuple[bytes, bytes]], int | None] | None = None
        self.body = b""
        self.ended = False
        self.error: Any = None
        self._reaction = reaction
        self._changed = asyncio.Event()

    @property
    def is_over(self) -> bool:
        return self.ended or self.error is not None

    @property
    def verdict(self) -> tuple[str, str, bool, bool] | None:
        """Phase, kind, sent and stale of the error."""
        if self.error is None:
            return None
        return self.error.phase.name, self.error.kind, self.error.sent, self.error.stale

    def on_whole(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.on_head(status, headers, len(body))
        if body:
            self.on_body(body)
        self.on_end()

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]], length: int | None) -> None:
        assert self.head is None
        assert not self.is_over
        self.head = (status, headers, length)
        self._tell("head")

    def on_body(self, chunk: bytes) -> None:
        assert self.head is not None
        assert not self.is_over
        assert chunk
        self.body += chunk
        self._tell("body")

    def on_end(self) -> None:
        assert self.head is not None
        assert not self.is_over
        self.ended = True
        self._tell("end")

    def on_error(self, error: Any) -> None:
        assert not self.is_over
        self.error = error
        self._tell("error")

    async def over(self) -> RecordingReceiver:
        """Wait for the end or an error."""
        await self.until(lambda: self.is_over)
        return self

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def _tell(self, event: str) -> None:
        self._changed.set()
        self._reaction(event)
