"""One exchange between a strict client and a strict backend, with a director that obeys the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mcp_proxy.admission import Admitted, Porter
from mcp_proxy.clock import Deadlines, Turn, Turns, now
from mcp_proxy.envelope import parse
from mcp_proxy.errors import Fault, Phase, UpstreamError
from mcp_proxy.exchange import EVENT_REST_S, Exchange, State
from mcp_proxy.forwarding import Forwarder
from mcp_proxy.policy.origin import OriginGuard
from mcp_proxy.routing import Plan, plan_get, plan_post
from mcp_proxy.tap import Owned
from mcp_proxy.upstream import Outgoing
from mcp_proxy.wire import Fields, Headers, Rejection, Request
from tests.unit.actors import Attempt, ScriptedTransport, StrictReply
from tests.unit.poolside import pool_of

HOLD = 100
CALL = b'{"jsonrpc":"2.0","id":"\\u0061","method":"tools/call","params":{"name":"x"}}'
JSON = [(b"content-type", b"application/json")]


class Moments(Turns):
    """Every moment is a turn of its own."""

    def begin(self) -> Turn:
        return Turn(now())


class Director:
    """Passes heads on as they are and gives up on every error, unless told otherwise."""

    json_hold = HOLD

    def __init__(self) -> None:
        self.parting_due: Deadlines[Exchange] = Deadlines(EVENT_REST_S, Exchange.part_now)
        self.turns: Turns = Moments()
        self.finishes: list[tuple[Fault, Phase]] = []
        self.streams = 0
        self.errors: list[UpstreamError] = []
        self.decide: Callable[..., None] = lambda exchange, status, headers, length: exchange.relay(
            status, headers, length
        )

    def on_head(self, exchange: Exchange, status: int, headers: Fields, length: int | None) -> None:
        self.decide(exchange, status, headers, length)

    def on_error(self, exchange: Exchange, error: UpstreamError) -> None:
        self.errors.append(error)
        exchange.refuse(Rejection("upstream_lost", id=exchange.id), Fault.BACKEND, error.phase)

    def on_stream(self, exchange: Exchange) -> None:
        self.streams += 1

    def on_owned(self, exchange: Exchange, owned: Sequence[Owned]) -> None:
        raise AssertionError("nothing is tapped here")

    def on_held(self, exchange: Exchange, owned: Sequence[Owned]) -> None:
        raise AssertionError("nothing is tapped here")

    def on_finish(self, exchange: Exchange) -> None:
        assert exchange.state is State.DONE
        self.finishes.append((exchange.fault, exchange.phase))


def admitted(method: bytes = b"POST", *headers: tuple[bytes, bytes]) -> Admitted:
    porter = Porter({b"/mcp": "pool"}, OriginGuard("0.0.0.0", None), Forwarder(()))
    pairs: Headers = [(b"host", b"proxy.example"), (b"content-type", b"application/json"), *headers]
    admission = porter.admit(Request(method, b"/mcp", pairs, "192.0.2.7", "http"))
    assert isinstance(admission, Admitted)
    return admission


class Rig:
    def __init__(self, *, listens: bool = False, is_stream: bool = False) -> None:
        self.director = Director()
        self.reply = StrictReply()
        self.attempts: list[Attempt] = []
        self.transport = ScriptedTransport("backend", self.attempts)
        self.pool = pool_of(lambda _: self.transport, "backend.example")
        (self.backend,) = self.pool.backends
        admission = admitted(b"GET", (b"mcp-session-id", b"s")) if listens else admitted()
        self.exchange = Exchange(self.director, admission, self.pool, b"" if listens else CALL, self.reply)
        if not listens:
            self.exchange.envelope = parse(CALL)
        plan = plan_get(admission.head) if listens else plan_post(admission.head, parse(CALL))
        assert isinstance(plan, Plan)
        self.exchange.plan = plan
        self.exchange.is_stream = is_stream

    def send(self) -> Attempt:
        outgoing = Outgoing(b"POST", b"/mcp", Fields(), self.exchange.body)
        self.exchange.send(self.backend, self.transport, outgoing)
        return self.attempts[-1]

    def storing(self) -> Attempt:
        self.director.decide = lambda exchange, *head: exchange.store(*head)
        attempt = self.send()
        attempt.head(200, JSON)
        return attempt

    @property
    def wire(self) -> tuple[object, ...]:
        """All that the client could see."""
        reply = self.reply
        return reply.has_started, reply.status, reply.body, reply.outcome


def routing(**options: bool) -> Rig:
    return Rig(**options)


def waiting(**options: bool) -> Rig:
    rig = Rig(**options)
    rig.send()
    return rig


def storing(**options: bool) -> Rig:
    rig = Rig(**options)
    rig.storing()
    return rig


def holding(**options: bool) -> Rig:
    rig = Rig(**options)
    attempt = rig.send()
    attempt.head(200, JSON)
    attempt.body(b"held")
    return rig


def relaying(**options: bool) -> Rig:
    rig = Rig(is_stream=True, **options)
    attempt = rig.send()
    attempt.head(200, [(b"content-type", b"text/event-stream")])
    attempt.body(b"data: 1\n\n")
    return rig


def done(**options: bool) -> Rig:
    rig = Rig(**options)
    rig.send().answer(200, b"{}")
    return rig


STATES = {
    State.ROUTING: routing,
    State.WAITING: waiting,
    State.STORING: storing,
    State.HOLDING: holding,
    State.RELAYING: relaying,
    State.DONE: done,
}
REFUSAL = Rejection("upstream_lost", "x")
