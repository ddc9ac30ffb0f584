"""The story of one request: admit, envelope, policy, route, send, relay, record.

Rules of this file: one call per phase; deciding is synchronous and returns. Only a registry
that needs I/O hands back an awaitable, which runs in a task owned here. Nothing is retried
that may have run: a request goes elsewhere only if its connect failed, or if it has no effect
and no response head came. A registry that cannot be asked is never "unknown session".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from mcp_proxy.admission import Admitted, Porter, preflight
from mcp_proxy.backends import Backend
from mcp_proxy.clock import Deadlines
from mcp_proxy.envelope import EnvelopeError, parse
from mcp_proxy.errors import Fault, Phase, StoreError, UpstreamError
from mcp_proxy.exchange import Exchange, State
from mcp_proxy.forwarding import Forwarder
from mcp_proxy.headers import Facts, is_session_id, read_facts
from mcp_proxy.keeper import SessionKeeper
from mcp_proxy.owners import Owners, affinity, readable
from mcp_proxy.pools import Pool
from mcp_proxy.recorder import CLOSE_REASONS, Recorder
from mcp_proxy.replies import render
from mcp_proxy.responses import adapt
from mcp_proxy.revival import Reviver
from mcp_proxy.routing import Aim, Era, Plan, plan_delete, plan_get, plan_post
from mcp_proxy.sticky import SessionRouting
from mcp_proxy.tap import Owned
from mcp_proxy.tasks import Tasks
from mcp_proxy.telemetry import Meters
from mcp_proxy.upstream import Outgoing
from mcp_proxy.watch import SessionWatch
from mcp_proxy.wire import Admission, Fields, Rejection, Reply, Request

REPEAT_LIMIT: Final = 2
"""Backends that may see the same repeatable request; a poisonous one must not visit all."""

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
        streams_limit: int,
    ) -> None:
        self.body_limit = body_limit
        self.json_hold = json_hold
        self.streams_limit = streams_limit
        self.live: set[Exchange] = set()
        """Exchanges in progress."""
        self.streams = 0
        """Streams open or being opened, all pools."""
        self.discover_due: Deadlines[Exchange] = Deadlines(DISCOVER_HEAD_S, self._expire_discover)
        self.pools = pools
        self._keeper = keeper
        self._watch = watch
        self._sticky = SessionRouting(self, keeper, Reviver(keeper.store, tasks, meters))
        self._find = keeper.find
        self._route_session = self._sticky.route
        self._owners = Owners(self, keeper.store, tasks, meters)
        self._porter = porter
        self._forwarder = forwarder
        self._tasks = tasks
        self._recorder = recorder
        self._meters = meters

    # --- Handler: called by the doors ------------------------------------------------

    def admit(self, request: Request) -> Admitted | Rejection:
        return self._porter.admit(request)

    def handle(self, admission: Admission, body: bytes, reply: Reply) -> Exchange:
        assert type(admission) is Admitted
        exchange = Exchange(self, admission, self.pools[admission.pool], body, reply)
        self.live.add(exchange)
        try:
            plan = self._plan(exchange, body)
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
        reply.answer(status, headers, body)
        self._recorder.refused(request, self._porter.route(request), rejection, status, len(body))

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
        if plan.listens:
            if self.streams >= self.streams_limit:
                exchange.refuse(Rejection("overloaded", "too many open streams", exchange.id))
                return
            self.streams += 1
            exchange.counts_as_stream = True
        if plan.aim is Aim.SESSION:
            exchange.key = key = exchange.admission.key
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
        backend = pool.next(exchange.tried, affinity(exchange))
        if backend is None:
            exchange.refuse(Rejection("backend_unavailable", "no backend could be reached", exchange.id))
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
        outgoing = Outgoing(admission.request.method, target, headers, exchange.body, session, plan.listens)
        exchange.send(backend, pool.transport(backend), outgoing, fresh=fresh)
        if plan.listens:
            self._watch.sent(exchange)
        elif plan.discover and pool.has_other(exchange.tried):
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
        if backend.unreachable_since_s is not None:
            backend.reached()
        if plan.discover:
            self.discover_due.disarm(exchange)
        if status >= 500 and self._tries_elsewhere(exchange, plan, status):
            exchange.retreat()
            self.send_anywhere(exchange)
        else:
            self._relay(exchange, plan, status, headers, length)

    def _relay(
        self, exchange: Exchange, plan: Plan, status: int, headers: Fields, length: int | None
    ) -> None:
        facts: Facts | None = headers.note
        if facts is None:
            headers.note = facts = read_facts(headers)
        if facts.changed is not None:
            headers = facts.changed
        exchange.is_stream = facts.is_stream
        if plan.aim is Aim.NEW_SESSION and 200 <= status < 300:
            exchange.pool.learn_sessions(facts.session_id is not None)
            if facts.session_id is not None:
                self._learn(exchange, facts.session_id, status, headers, length)
                return
        head, record = exchange.admission.head, exchange.record
        theirs = head.session_id if record is None else record.upstream_id or head.session_id
        if (
            status == 200
            and facts.session_id == theirs == head.session_id
            and facts.location is head.origin is None
            and not plan.ends_session
            and exchange.pool.tap is None
        ):
            exchange.relay(status, headers, length)
        else:
            self._relay_other(exchange, status, headers, length, facts, theirs)

    def _relay_other(
        self,
        exchange: Exchange,
        status: int,
        headers: Fields,
        length: int | None,
        facts: Facts,
        theirs: bytes | None,
    ) -> None:
        """All that is not an ordinary answer. ``theirs``: how the backend calls the session."""
        head, plan = exchange.admission.head, exchange.plan
        assert plan is not None
        if status == 200 and facts.location is head.origin is None and facts.session_id == theirs:
            if theirs != head.session_id:
                headers = facts.named(headers, head.session_id or b"")
        else:
            adapted = self._adapt(exchange, status, headers, facts, theirs, head.session_id)
            if adapted is None:
                return
            headers = adapted
        if plan.aim is Aim.SESSION and (status == 404 or plan.ends_session):
            self._sticky.relay(exchange, plan, status, headers, length)
            return
        if exchange.pool.tap is not None and plan.era is Era.MODERN and 200 <= status < 300:
            self._owners.listen(exchange)
        exchange.relay(status, headers, length)

    def _adapt(
        self,
        exchange: Exchange,
        status: int,
        headers: Fields,
        facts: Facts,
        theirs: bytes | None,
        ours: bytes | None,
    ) -> Fields | None:
        """The headers to pass on; None: the exchange has been refused. The session that the backend
        calls ``theirs`` is ``ours`` to the client."""
        admission = exchange.admission
        assert exchange.backend is not None
        adapted = adapt(
            status,
            headers,
            facts,
            backend=exchange.backend.id,
            route=admission.route,
            has_credentials=exchange.pool.authorization is not None,
            origin=admission.head.origin,
            theirs=theirs,
            ours=ours,
        )
        if isinstance(adapted, Rejection):
            exchange.refuse(msgspec.structs.replace(adapted, id=exchange.id), Fault.BACKEND)
            return None
        return adapted

    def _learn(
        self, exchange: Exchange, session_id: bytes, status: int, headers: Fields, length: int | None
    ) -> None:
        """A session begins: write it down first, relay the head then."""
        if not is_session_id(session_id):
            detail = "the backend issued an illegal session id"
            exchange.refuse(Rejection("upstream_invalid", detail, exchange.id), Fault.BACKEND)
            return
        try:
            key, record = self._keeper.issue(exchange, session_id)
        except StoreError as error:
            self._keeper.say_goodbye(exchange, session_id)
            exchange.refuse(Rejection("upstream_invalid", str(error), exchange.id), Fault.BACKEND)
            return
        facts: Facts = headers.note or read_facts(headers)
        adapted = self._adapt(exchange, status, headers, facts, session_id, key.session_id)
        if adapted is not None:
            self._keeper.learn(exchange, key, record, status, adapted, length)

    def _tries_elsewhere(self, exchange: Exchange, plan: Plan, status: int) -> bool:
        """A head that another backend can better: any 5xx to ``server/discover``, and the
        503 with which a full server refuses a new session (nothing was created)."""
        if not (plan.discover and status >= 500) and not (plan.aim is Aim.NEW_SESSION and status == 503):
            return False
        return exchange.pool.has_other(exchange.tried)

    # --- Director: failures ----------------------------------------------------------

    def on_error(self, exchange: Exchange, error: UpstreamError) -> None:
        plan, backend = exchange.plan, exchange.backend
        assert plan is not None
        assert backend is not None
        pool = exchange.pool
        self.discover_due.disarm(exchange)
        self._meters.upstream_failure(pool.name, error.phase.name.lower())
        if error.phase is Phase.CONNECT and error.kind in ("refused", "timeout"):
            pool.refused(backend)
        if exchange.state is not State.WAITING:
            self.give_up(exchange, error)
        elif error.stale and (plan.repeatable or exchange.admission.request.method == b"GET"):
            exchange.retreat()
            self.send(exchange, pool, backend, fresh=True)
        elif exchange.record is not None:
            self._sticky.retry(exchange, backend, error)
        elif self._may_go_elsewhere(exchange, plan, error) and pool.has_other(exchange.tried):
            exchange.retreat()
            self.send_anywhere(exchange)
        else:
            self.give_up(exchange, error)

    def _may_go_elsewhere(self, exchange: Exchange, plan: Plan, error: UpstreamError) -> bool:
        if error.kind == "exhausted":
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
        if exchange.counts_as_stream:
            self.streams -= 1
        plan = exchange.plan
        if plan is not None and plan.discover:
            self.discover_due.disarm(exchange)
        elif plan is not None and plan.listens:
            self._watch.finished(exchange)
        self._recorder.finished(exchange)

    def sweep(self, at_s: float) -> None:
        """Fire due deadlines, look for absent backends, keep sessions in use alive; a job for the
        Ticker."""
        self.discover_due.sweep(at_s)
        self._keeper.touch(self.live, at_s)
        for pool in self.pools.values():
            for backend in pool.absent(at_s):
                self._tasks.spawn(pool.probe(backend))

    async def aclose(self) -> None:
        """End every exchange, then every connection. Idempotent."""
        for exchange in list(self.live):
            exchange.expire()
        await self._tasks.aclose()
        for pool in self.pools.values():
            await pool.aclose()
        await self._keeper.store.aclose()


_FAULTS: Final = {"timeout": Fault.TIMEOUT, "exhausted": Fault.PROXY}

_UPSTREAM_REASONS: Final = {
    "lost": "upstream_lost",
    "invalid": "upstream_invalid",
    "timeout": "upstream_timeout",
    "refused": "upstream_lost",
}
