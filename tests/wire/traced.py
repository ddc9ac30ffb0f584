"""Requests that belong to a trace, and what a collector got of them.

Rules of this file: every request has a trace of its own, so that a collector may be shared by tests.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tools.client import Answer, call, post
from tests.tools.otlp_receiver import OtlpReceiver, Span
from tests.tools.recording import Seen
from tests.wire.rig import Rig, bench


@dataclass(frozen=True)
class Parent:
    """A span of a client."""

    flags: str = "01"
    trace: str = field(default_factory=lambda: secrets.token_hex(16))
    span: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def text(self) -> str:
        return f"00-{self.trace}-{self.span}-{self.flags}"

    @property
    def line(self) -> str:
        return f"traceparent: {self.text}"


@dataclass(frozen=True)
class Recorded:
    """What a collector got of one exchange: its own span, and one per backend that was asked, in order."""

    server: Span
    clients: list[Span]

    @property
    def client(self) -> Span:
        """There was one attempt."""
        (client,) = self.clients
        return client


async def recorded(receiver: OtlpReceiver, trace: str, attempts: int = 1) -> Recorded:
    spans = await receiver.spans(attempts + 1, trace)
    (server,) = [span for span in spans if span.kind == "SERVER"]
    clients = sorted((span for span in spans if span.kind == "CLIENT"), key=lambda span: span.start_ns)
    assert len(clients) == attempts
    assert {span.parent_id for span in clients} <= {server.span_id}
    return Recorded(server, clients)


async def ask(rig: Rig, *fields: str, body: bytes | None = None) -> tuple[Answer, Seen]:
    """One call on a connection of its own, which its backend must get as it is."""
    body = call() if body is None else body
    async with await rig.client() as client:
        answer = await client.ask(post(body, *fields))
    (seen,) = rig.taken()
    assert seen.body == body
    return answer, seen


def request_id(answer: Answer) -> str:
    return (answer.head.one("x-request-id") or b"").decode()


async def access_line(rig: Rig, answer: Answer) -> dict[str, Any]:
    """Of the exchange with this answer, as soon as it has been written."""
    wanted = request_id(answer)
    found: list[dict[str, Any]] = []

    async def is_written() -> bool:
        found[:] = [line for line in rig.proxy.access_lines() if line["request_id"] == wanted]
        return bool(found)

    await rig.proxy.until(is_written, f"an access line of {wanted}")
    (line,) = found
    return line


def traces(endpoint: str, **settings: Any) -> dict[str, Any]:
    """A part of a configuration."""
    return {"telemetry": {"traces": {"endpoint": endpoint, **settings}}}


@contextlib.asynccontextmanager
async def traced(folder: Path, sample: float, **settings: Any) -> AsyncIterator[tuple[Rig, OtlpReceiver]]:
    """A bench of its own, and the collector of its proxy."""
    async with OtlpReceiver() as receiver:
        over = traces(receiver.endpoint, sample=sample)
        async with bench(folder, over, **settings) as rig:
            rig.taken()
            yield rig, receiver
