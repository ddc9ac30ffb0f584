"""A hardened door with a fake transport outside and a scripted handler inside.

Rules of this file: the handler keeps the seam of ``wire.py`` and checks that the door does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from msgspec import structs

from mcp_proxy import wire
from mcp_proxy.downstream.http11 import Http11Protocol
from mcp_proxy.downstream.settings import DoorLimits, DoorSettings
from mcp_proxy.replies import render
from mcp_proxy.wire import Headers, Rejection, Reply, Request, with_values
from tests.tools.wire import pieces
from tests.unit.fakes import FakeTransport, Reading, read_response, read_responses, settle

BODY_LIMIT = 100_000
FAR_FUTURE_S = 1e12


@dataclass
class Admission:
    request: Request


@dataclass
class Conversation:
    """What the door told the exchange, in order: ``pause resume disconnect drain``."""

    events: list[str] = field(default_factory=list)

    def pause(self) -> None:
        self.events.append("pause")

    def resume(self) -> None:
        self.events.append("resume")

    def disconnect(self) -> None:
        self.events.append("disconnect")

    def drain(self) -> None:
        self.events.append("drain")

    def expire(self) -> None:
        self.events.append("expire")


@dataclass
class Served:
    """One request that the door handed over."""

    request: Request
    body: bytes
    reply: Reply
    conversation: Conversation

    @property
    def essence(self) -> tuple[bytes, bytes, bytes]:
        return self.request.method, self.request.target, self.body


def echo(served: Served) -> None:
    served.reply.answer(200, [(b"content-type", b"text/plain")], served.body)


class ScriptedHandler:
    """``respond`` None leaves every answer to the test. ``judge`` may refuse a head."""

    def __init__(self, body_limit: int = BODY_LIMIT) -> None:
        self.body_limit = body_limit
        self.respond: Callable[[Served], None] | None = echo
        self.judge: Callable[[Request], Rejection | None] = lambda request: None
        self.served: list[Served] = []
        self.refused: list[tuple[Request | None, Rejection]] = []

    def admit(self, request: Request) -> Admission | Rejection:
        return self.judge(request) or Admission(request)

    def vary(self, admission: wire.Admission, values: Headers) -> Admission:
        request = admission.request
        return Admission(structs.replace(request, headers=with_values(request.headers, values)))

    def handle(self, admission: wire.Admission, body: bytes, reply: Reply) -> Conversation:
        served = Served(admission.request, body, reply, Conversation())
        self.served.append(served)
        if self.respond is not None:
            self.respond(served)
        return served.conversation

    def refuse(self, request: Request | None, rejection: Rejection, reply: Reply) -> None:
        self.refused.append((request, rejection))
        status, headers, body = render(rejection)
        reply.answer(status, headers, body)

    @property
    def essences(self) -> list[tuple[bytes, bytes, bytes]]:
        return [served.essence for served in self.served]

    @property
    def reasons(self) -> list[str]:
        return [rejection.reason for _, rejection in self.refused]


def settings(handler: ScriptedHandler, *, connections_limit: int = 100, **options: Any) -> DoorSettings:
    limits = DoorLimits(**({"head": 32 * 1024, "fields": 100, "head_timeout_s": 10.0} | options))
    return DoorSettings(handler, limits, connections_limit=connections_limit)


class Door:
    """One connection. Doors that share ``process`` share limits and deadlines."""

    def __init__(
        self,
        handler: ScriptedHandler | None = None,
        *,
        process: DoorSettings | None = None,
        transport: FakeTransport | None = None,
        **options: Any,
    ) -> None:
        self.handler = handler or ScriptedHandler()
        self.process = process or settings(self.handler, **options)
        self.connections: set[object] = set()
        self.transport = transport or FakeTransport()
        application = SimpleNamespace(http11=self.process)
        config = SimpleNamespace(loaded=True, loaded_app=application)
        self.protocol = Http11Protocol(config, SimpleNamespace(connections=self.connections))
        self.transport.attach(self.protocol)

    def feed(self, *segments: bytes) -> None:
        self.transport.feed(*segments)

    def feed_cut(self, data: bytes, cuts: Iterable[int]) -> None:
        self.transport.feed(*pieces(data, cuts))

    @property
    def sent(self) -> bytes:
        return bytes(self.transport.sent)

    @property
    def served(self) -> list[Served]:
        return self.handler.served

    def response(self, method: bytes = b"POST") -> Reading:
        return read_response(self.sent, method)

    def responses(self, *methods: bytes) -> list[Reading]:
        return read_responses(self.sent, *methods)

    def expire(self) -> None:
        """Every deadline that is armed now has passed."""
        self.process.sweep(FAR_FUTURE_S)

    async def settled(self) -> Door:
        await settle()
        return self


def post(body: bytes, *fields: bytes, target: bytes = b"/mcp", framing: bytes | None = None) -> bytes:
    """A POST. ``framing`` replaces the Content-Length line; the body is taken as given."""
    lines = [
        b"POST %b HTTP/1.1" % target,
        b"Host: door.example",
        b"Content-Type: application/json",
        *fields,
        b"Content-Length: %d" % len(body) if framing is None else framing,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def get(
    *fields: bytes, method: bytes = b"GET", target: bytes = b"/mcp", version: bytes = b"HTTP/1.1"
) -> bytes:
    return (
        b"\r\n".join([b"%b %b %b" % (method, target, version), b"Host: door.example", *fields]) + b"\r\n\r\n"
    )


def chunked(*chunks: bytes, trailers: bytes = b"", extension: bytes = b"") -> bytes:
    """A chunked body. ``trailers``: whole lines."""
    coded = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    return coded + b"0\r\n" + trailers + b"\r\n"


CHUNKED = b"Transfer-Encoding: chunked"


def silent_door(transport: FakeTransport | None = None) -> Door:
    """A door whose handler leaves the answers to the test."""
    handler = ScriptedHandler()
    handler.respond = None
    return Door(handler, transport=transport)


def served_once(door: Door) -> Door:
    """The same door, idle behind its first answer."""
    door.feed(post(b"a"))
    door.served[0].reply.answer(200, [], b"")
    door.transport.sent.clear()
    return door
