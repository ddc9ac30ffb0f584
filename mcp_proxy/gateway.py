"""The story of one request: admit, envelope, policy, route, send, relay, record.

Rules of this file: one call per phase; deciding is synchronous and returns. Only a registry
that needs I/O hands back an awaitable, which runs in a task owned here. Nothing is retried
that may have run: a request goes elsewhere only if its connect failed, or if it has no effect
and no response head came. A registry that cannot be asked is never "unknown session".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from mcp_proxy.admission import Admitted, Porter, preflight
from mcp_proxy.backends import Backend
from mcp_proxy.clock import Deadlines, Turns
from mcp_proxy.correlation import new as new_id
from mcp_proxy.envelope import EnvelopeError, parse
from mcp_proxy.errors import Fault, Phase, UpstreamError
from mcp_proxy.exchange import EVENT_REST_S, Exchange, State
from mcp_proxy.forwarding import Forwarder
from mcp_proxy.keeper import SessionKeeper
from mcp_proxy.owners import Owners, affinity, readable
from mcp_proxy.pools import Pool, PoolPolicy
from mcp_proxy.quotas import Quotas
from mcp_proxy.recorder import Recorder
from mcp_proxy.relay import Relay
from mcp_proxy.replies import render
from mcp_proxy.revival import Reviver
from mcp_proxy.routing import Aim, Era, Plan, plan_delete, plan_get, plan_post
from mcp_proxy.sticky import SessionRouting
from mcp_proxy.tap import Owned
from mcp_proxy.tasks import Tasks
from mcp_proxy.telemetry import Meters
from mcp_proxy.telemetry.families import CLOSE_REASONS
from mcp_proxy.telemetry.traces import Tracer
from mcp_proxy.tracing import begin, sent, without_context
from mcp_proxy.upstream import Outgoing, Transport
from mcp_proxy.watch import SessionWatch
from mcp_proxy.wire import Admission, Fields, Headers, Rejection, Reply, Request

TRIES_LIMIT: Final = 8
"""Backends that a request is tried at. Who refuses is tried last from then on, so the next request does
better; a pool of which eight in a row are away is better off with a client that comes again."""

REPEAT_LIMIT: Final = 2
"""Backends that may see the same repeatable request; a poisonous one must not visit all."""

ENDINGS: Final = 50
"""Streams of a drained backend that are ended in one tick of 0.1 s: their clients all come back at once."""

DISCOVER_HEAD_S: Final = 3.0
"""``server/discover`` moves on to the next backend after so long: clients give up after
10 s and then stay in the session era for good."""


class Gateway:
    """Implements Handler for the doors and Director for its exchanges."""

    def __init__(
        self,
        *,
        porter: Porter,
        forwarder: Forwarder,
        pools: Mapping[str, Pool],
        keeper: SessionKeeper,
        watch: SessionWatch,
        tasks: Tasks,
        recorder: Recorder,
        meters: Meters,
        body_limit: int,
        json_hold: int,
        quotas: Quotas,
        tracer: Tracer | None = None,
    ) -> None:
        self.body_limit = body_limit
        self.json_hold = json_hold
        self.live: set[Exchange] = set()
        """Exchanges in progress."""
        self.quotas = quotas
        self.discover_due: Deadlines[Exchange] = Deadlines(DISCOVER_HEAD_S, self._expire_discover)
        self.turns = Turns()
        self.parting_due: Deadlines[Exchange] = Deadlines(EVENT_REST_S, Exchange.part_now)
        self.pools = pools
        self._ending: deque[tuple[Exchange, Backend]] = deque()
        """Streams that end because the time of their backend is over."""
        self._keeper = keeper
        self._watch = watch
        self._sticky = SessionRouting(self, keeper, Reviver(keeper.store, tasks, meters))
        self._find = keeper.find
        self._route_session = self._sticky.route
        self._owners = Owners(self, keeper.store, tasks, meters)
        self._relay = Relay(keeper, self._sticky, self._owners).relay
        self._porter = porter
        self._forwarder = forwarder
        self._tasks = tasks
        self._recorder = recorder
        self._meters = meters
        self._tracer = tracer

    def reconfigure(self, porter: Porter, forwarder: Forwarder, body_limit: int, json_hold: int) -> None:
        """For requests that are admitted from now on."""
        self._porter = porter
        self._forwarder = forwarder
        self.body_limit = body_limit
        self.json_hold = json_hold

    # --- Handler: called by the doors ------------------------------------------------

    def admit(self, request: Request) -> Admitted | Rejection:
        return self._porter.admit(request)

    def vary(self, admission: Admission, values: Headers) -> Admitted:
        assert type(admission) is Admitted
        varied = admission.vary(values)
        if varied.porter is not self._porter:
            judged = self._porter.admit(varied.request)
            return varied if isinstance(judged, Rejection) else judged  # ``handle`` refuses it
        return varied

    def handle(self, admission: Admission, body: bytes, reply: Reply) -> Exchange:
        assert type(admission) is Admitted
        refusal = None
        if admission.porter is not self._porter:
            judged = self._porter.again(admission)
            admission, refusal = (admission, judged) if isinstance(judged, Rejection) else (judged, None)
        exchange = Exchange(self, admission, self.pools.get(admission.pool) or _NO_POOL, body, reply)
        exchange.own = reply.own = admission.own or new_id()
        self.live.add(exchange)
        try:
            plan = refusal or self._plan(exchange, body)
            if self._tracer is not None:
                exchange.trace = begin(self._tracer, admission, exchange.envelope)
            if type(plan) is Plan:
                exchange.plan = plan
                self._route(exchange, plan)
            elif type(plan) is Rejection:
                exchange.refuse(plan, Fault.CLIENT, Phase.ADMIT)
            else:
                exchange.answer(*preflight(admission.request, admission.head), b"")
        except Exception:
            exchange.crash()
        return exchange

    def refuse(self, request: Request, rejection: Rejection, reply: Reply) -> None:
        status, headers, body = render(rejection)
        headers += self._porter.cors(request)
        reply.own = own = self._porter.named(request) or new_id()
        reply.answer(status, headers, body)
        self._recorder.refused(request, self._porter.route(request), rejection, status, len(body), own)

    # --- envelope and route ----------------------------------------------------------

    def _plan(self, exchange: Exchange, body: bytes) -> Plan | Rejection | None:
        """None: a preflight, which is answered here."""
        admission = exchange.admission
        method = admission.request.method
        if method == b"POST":
            try:
                envelope = parse(body)
            except EnvelopeError as error:
                reason = "parse_error" if error.code == -32700 else "invalid_request"
                return Rejection(reason, error.detail, error.id)
            exchange.envelope = envelope
            return plan_post(admission.head, envelope)
        if method == b"GET":
            return plan_get(admission.head)
        return plan_delete(admission.head) if method == b"DELETE" else None

    def _route(self, exchange: Exchange, plan: Plan) -> None:
        admission, quotas = exchange.admission, self.quotas
        if quotas.requests < quotas.easy_requests and not plan.listens:
            quotas.requests += 1  # as ``enter`` would: most requests are spared the call
        else:
            refusal = quotas.enter(plan, exchange.envelope, admission.client, admission.principal)
            if refusal is not None:
                fault = Fault.CLIENT if refusal.reason == "too_many_requests" else Fault.PROXY
                exchange.refuse(msgspec.structs.replace(refusal, id=exchange.id), fault)
                return
        exchange.is_counted = True
        if plan.aim is Aim.SESSION:
            exchange.key = key = admission.key
            if key is None:
                exchange.refuse(Rejection("session_not_found", id=exchange.id), Fault.CLIENT)
            else:
                self._find(exchange, key, self._route_session)
        elif plan.era is Era.MODERN:
            self._owners.route(exchange)
        else:
            self.send_anywhere(exchange)

    # --- send ------------------------------------------------------------------------

    def send_anywhere(self, exchange: Exchange) -> None:
        pool = exchange.pool
        plan = exchange.plan
        assert plan is not None
        backend = pool.next(
            exchange.tried,
            affinity(exchange),
            opens_session=plan.aim is Aim.NEW_SESSION,
            is_modern=plan.era is Era.MODERN,
        )
        if backend is None:
            detail = "no backend could be reached" if exchange.tried else "there is no backend to send it to"
            exchange.refuse(Rejection("backend_unavailable", detail, exchange.id))
        else:
            self.send(exchange, pool, backend)

    def send(self, exchange: Exchange, pool: Pool, backend: Backend, *, fresh: bool = False) -> None:
        admission, plan = exchange.admission, exchange.plan
        assert plan is not None
        headers = admission.forward
        if headers is None:
            headers = self.forward(exchange)
        record = exchange.record
        if plan.aim is Aim.ANY and admission.head.session_id is not None:
            # It named no session known here, so no backend may take it for one.
            headers = Fields(pair for pair in headers if pair[0] != b"mcp-session-id")
        elif record is not None and record.upstream_id:
            headers = admission.forward_as(record.upstream_id)
        elif pool.tap is not None and plan.era is Era.MODERN:
            headers = readable(headers)
        target = backend.path + admission.query if admission.query else backend.path
        session = b"" if exchange.key is None else exchange.key.session_id
        own = exchange.own
        if exchange.trace is not None:
            headers, own = without_context(headers), own + sent(exchange.trace, backend)
        method = admission.request.method
        outgoing = Outgoing(method, target, headers, exchange.body, session, own, plan.listens)
        if plan.aim is Aim.NEW_SESSION:
            exchange.opens_session = True
            backend.opening += 1
            pool.recount(backend)
        exchange.send(backend, pool.transport(backend), outgoing, fresh=fresh)
        if plan.listens:
            self._watch.sent(exchange)
        elif plan.discover and _has_other(exchange, plan):
            self.discover_due.arm(exchange)

    def forward(self, exchange: Exchange) -> Fields:
        """The request's headers towards backends, under the session id of the client."""
        admission = exchange.admission
        headers = admission.forward
        if headers is None:
            headers = self._forwarder.headers(admission.request, admission.head, exchange.pool.authorization)
            admission.forward = headers
        return headers

    # --- Director: relay -------------------------------------------------------------

    def on_head(self, exchange: Exchange, status: int, headers: Fields, length: int | None) -> None:
        plan, backend = exchange.plan, exchange.backend
        assert plan is not None
        assert backend is not None
        if status >= 500 or backend.is_suspect:
            exchange.pool.answered(backend, status)
        if plan.discover:
            self.discover_due.disarm(exchange)
        if status >= 500 and self._tries_elsewhere(exchange, plan, status):
            exchange.retreat()
            self.send_anywhere(exchange)
        else:
            self._relay(exchange, plan, status, headers, length)

    def _tries_elsewhere(self, exchange: Exchange, plan: Plan, status: int) -> bool:
        """A head that another backend can better: any 5xx to ``server/discover``, and the
        503 with which a full server refuses a new session (nothing was created)."""
        if not (plan.discover and status >= 500) and not (plan.aim is Aim.NEW_SESSION and status == 503):
            return False
        return _has_other(exchange, plan)

    # --- Director: failures ----------------------------------------------------------

    def on_error(self, exchange: Exchange, error: UpstreamError) -> None:
        plan, backend = exchange.plan, exchange.backend
        assert plan is not None
        assert backend is not None
        pool = exchange.pool
        self.discover_due.disarm(exchange)
        self._meters.upstream_failure(pool.name, error.phase.name.lower())
        pool.failed(backend, error)
        if exchange.state is not State.WAITING:
            self.give_up(exchange, error)
        elif error.stale and (plan.repeatable or exchange.admission.request.method == b"GET"):
            self._send_again(exchange, pool, backend)
        elif exchange.record is not None:
            self._sticky.retry(exchange, backend, error)
        elif self._may_go_elsewhere(exchange, plan, error):
            exchange.retreat()
            self.send_anywhere(exchange)
        else:
            self.give_up(exchange, error)

    def _send_again(self, exchange: Exchange, pool: Pool, backend: Backend) -> None:
        """On another connection, unless nothing of the kind may go to the backend any more."""
        exchange.retreat()
        if backend.drain is not None and exchange.record is None:
            self.send_anywhere(exchange)
        elif backend.drain is not None and pool.is_lost(backend):
            self._route_session(exchange, exchange.record)
        else:
            self.send(exchange, pool, backend, fresh=True)

    def _may_go_elsewhere(self, exchange: Exchange, plan: Plan, error: UpstreamError) -> bool:
        if error.kind == "exhausted" or not _has_other(exchange, plan):
            return False
        return not error.sent or plan.discover or (plan.repeatable and exchange.attempts < REPEAT_LIMIT)

    def give_up(self, exchange: Exchange, error: UpstreamError) -> None:
        if error.kind == "exhausted":
            rejection = Rejection("overloaded", "out of file descriptors", exchange.id)
        elif error.phase is Phase.CONNECT:
            rejection = Rejection("backend_unavailable", error.detail, exchange.id)
        else:
            rejection = Rejection(_UPSTREAM_REASONS[error.kind], error.detail, exchange.id)
        exchange.refuse(rejection, _FAULTS.get(error.kind, Fault.BACKEND), error.phase)

    def _expire_discover(self, exchange: Exchange) -> None:
        """The backend is slow with ``server/discover`` and there is another."""
        if exchange.state is State.WAITING:
            exchange.cancel_attempt()
            self.on_error(exchange, UpstreamError(Phase.HEAD, "timeout", "slow", sent=True))

    # --- record ----------------------------------------------------------------------

    def on_stream(self, exchange: Exchange) -> None:
        assert exchange.backend is not None
        pool = exchange.pool
        pool.streams += 1
        exchange.backend.streams += 1
        exchange.streams_from = exchange.backend
        self._meters.stream_opened(pool.name)

    def on_owned(self, exchange: Exchange, owned: Sequence[Owned]) -> None:
        self._owners.learn(exchange, owned)

    def on_held(self, exchange: Exchange, owned: Sequence[Owned]) -> None:
        self._owners.learn_first(exchange, owned)

    def on_finish(self, exchange: Exchange) -> None:
        self.live.discard(exchange)
        if exchange.streams_from is not None:
            pool = exchange.pool
            pool.streams -= 1
            exchange.streams_from.streams -= 1
            self._meters.stream_closed(pool.name, CLOSE_REASONS[exchange.fault])
        plan = exchange.plan
        if exchange.is_counted:
            assert plan is not None
            quotas = self.quotas
            if plan.listens or quotas.has_shares:
                admission = exchange.admission
                quotas.leave(plan, exchange.envelope, admission.client, admission.principal)
            else:
                quotas.requests -= 1
        if plan is not None and plan.discover:
            self.discover_due.disarm(exchange)
        elif plan is not None and plan.listens:
            self._watch.finished(exchange)
        self._recorder.finished(exchange)

    def sweep(self, at_s: float) -> None:
        """Fire due deadlines, keep sessions in use alive; a job for the Ticker."""
        self.discover_due.sweep(at_s)
        self.parting_due.sweep(at_s)
        self._keeper.touch(self.live, at_s)
        for _ in range(min(ENDINGS, len(self._ending))):
            self._end_stream(*self._ending.popleft())

    def let_go(self, backend: Backend) -> None:
        """Its time to drain is over: its streams end, so that their clients come back and learn more."""
        self._ending.extend((exchange, backend) for exchange in self.live if _listens_to(exchange, backend))

    def _end_stream(self, exchange: Exchange, backend: Backend) -> None:
        if _listens_to(exchange, backend):  # it has not gone elsewhere meanwhile
            exchange.end_listening_soon()
            if exchange.state is State.WAITING or exchange.state is State.HOLDING:
                self.parting_due.arm(exchange)  # what it waits for may never come

    async def aclose(self) -> None:
        """End every exchange, then every task. Idempotent."""
        for exchange in list(self.live):
            exchange.expire()
        await self._tasks.aclose()


def _dial_nobody(backend: Backend) -> Transport:
    raise AssertionError("this pool has no backends")


def _has_other(exchange: Exchange, plan: Plan) -> bool:
    """There is one more backend to try, and it may be tried."""
    is_modern = plan.era is Era.MODERN
    return exchange.attempts < TRIES_LIMIT and exchange.pool.has_other(exchange.tried, is_modern=is_modern)


def _listens_to(exchange: Exchange, backend: Backend) -> bool:
    return exchange.backend is backend and exchange.plan is not None and exchange.plan.listens


_NO_POOL: Final = Pool("", PoolPolicy(), _dial_nobody, Tasks())
"""Of a request that was admitted before its route and pool were taken from the configuration."""

_FAULTS: Final = {"timeout": Fault.TIMEOUT, "exhausted": Fault.PROXY}

_UPSTREAM_REASONS: Final = {
    "lost": "upstream_lost",
    "invalid": "upstream_invalid",
    "timeout": "upstream_timeout",
    "refused": "upstream_lost",
}
