"""A pool beside a model that looks at everybody every time, and what may happen to both."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Coroutine, Generator
from dataclasses import dataclass, field
from math import inf
from types import coroutine
from typing import Any, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mcp_proxy.backends import Backend, Ejection, Endpoint, Standing
from mcp_proxy.backends.balance import BALANCES
from mcp_proxy.backends.departures import MEMORY_S
from mcp_proxy.backends.ejection import Rule
from mcp_proxy.errors import Phase, UpstreamError
from mcp_proxy.pools import Pool, PoolPolicy
from mcp_proxy.sessions import SessionKey, SessionRecord
from mcp_proxy.upstream import Call, Outgoing, Receiver
from mcp_proxy.watch import SessionWatch
from tests.unit.poolside import endpoint

HOSTS = "abc"
ROUTES = ("/one", "/two")

LOST_AFTER = (0.0, 10.0)
DRAIN_TIMES = (0.0, 30.0)
EJECT_RULES = (None, Rule(1, 5.0, 0.5), Rule(1, 5.0, 1.0), Rule(2, 30.0, 1.0))
PAUSES = (0.0, 0.1, 2.0, 10.0, 60.0, MEMORY_S)
UNDRAIN = -1.0

NUMBERS = st.integers(0, 2)
POLICIES = st.builds(
    PoolPolicy,
    balance=st.sampled_from(sorted(BALANCES)),
    lost_after_s=st.sampled_from(LOST_AFTER),
    unknown_after_s=st.sampled_from(LOST_AFTER),
    drain_s=st.sampled_from(DRAIN_TIMES),
    slow_start_s=st.sampled_from([None, 5.0]),
    eject=st.sampled_from(EJECT_RULES),
    is_modern=st.sampled_from([None, None, True]),
)
ENDPOINTS = st.lists(
    st.builds(
        endpoint,
        st.sampled_from(HOSTS),
        weight=st.integers(1, 4),
        is_open=st.sampled_from([True, True, False]),
    ),
    max_size=len(HOSTS),
    unique_by=lambda each: each.host,
)
FAILURES = (
    UpstreamError(Phase.CONNECT, "refused", "scripted", sent=False),
    UpstreamError(Phase.CONNECT, "timeout", "scripted", sent=False),
    UpstreamError(Phase.CONNECT, "unresolved", "scripted", sent=False),
    UpstreamError(Phase.CONNECT, "exhausted", "scripted", sent=False),
    UpstreamError(Phase.HEAD, "lost", "scripted", sent=True),
    UpstreamError(Phase.HEAD, "lost", "scripted", sent=True, stale=True),
    UpstreamError(Phase.HEAD, "timeout", "scripted", sent=True),
)
NOT_ITS_FAULT = ("unresolved", "exhausted")
WAITS = (Ejection.OUT, Ejection.PROBED)
STATUSES = (200, 404, 500)
CONNECTS = (True, False)
GRADES = {Standing.TRIAL: 0, Standing.GOOD: 1, Standing.POOR: 2}


@coroutine
def held() -> Generator[None, bool | None, bool | None]:
    """Suspends its coroutine until the test sends what it is to get."""
    return (yield)


class HeldTransport:
    """Implements Transport; what a probe finds is in the test's hands."""

    open_connections = 0
    is_idle = True

    def __init__(self, backend: Backend, looking: list[Backend]) -> None:
        self.backend = backend
        self.looking = looking
        self.closed = 0

    def send(self, outgoing: Outgoing, receiver: Receiver, *, fresh: bool = False) -> Call:
        raise AssertionError("nothing is sent here")

    async def probe(self) -> bool | None:
        assert not self.closed
        assert self.backend not in self.looking, "one look at a time"
        self.looking.append(self.backend)
        try:
            return await held()
        finally:
            self.looking.remove(self.backend)

    def sweep(self, at_s: float) -> None:
        assert not self.closed

    async def aclose(self) -> None:
        self.closed += 1


class Stepper:
    """Implements Spawner: tasks begin when the test says so, and wait for what it sends them."""

    def __init__(self) -> None:
        self.new: list[Coroutine[Any, Any, None]] = []
        self.waiting: list[Coroutine[Any, Any, None]] = []

    def spawn(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.new.append(coro)
        return cast("asyncio.Task[None]", coro)

    def turn(self) -> None:
        """One of the loop."""
        new, self.new = self.new, []
        for coro in new:
            self._send(coro, None)

    def _send(self, coro: Coroutine[Any, Any, None], value: object) -> None:
        try:
            coro.send(value)
        except StopIteration:
            return
        self.waiting.append(coro)

    def resume(self, number: int, value: bool | None) -> None:
        if self.waiting:
            self._send(self.waiting.pop(number % len(self.waiting)), value)

    def close(self) -> None:
        for coro in [*self.new, *self.waiting]:
            coro.close()


@dataclass
class Known:
    """What the model knows of one backend."""

    backend: Backend
    is_modern: bool | None
    drained_by: str = ""
    deadline_s: float = 0.0
    is_told: bool = False
    away_since_s: float | None = None
    is_healthy: bool = True
    inflight: int = 0
    opening: int = 0
    transports: list[HeldTransport] = field(default_factory=list)


class PoolAgainstModel(RuleBasedStateMachine):
    @initialize(policy=POLICIES, found=ENDPOINTS)
    def begin(self, policy: PoolPolicy, found: list[Endpoint]) -> None:
        self.at_s = 1000.0
        self.policy = policy
        self.tasks = Stepper()
        self.dialled: list[HeldTransport] = []
        self.looking: list[Backend] = []
        self.known: dict[str, Known] = {}
        self.wanted: set[str] = set()
        self.closing: set[str] = set()
        self.strangers: dict[str, float] = {}
        self.gone: dict[str, float] = {}
        self.is_told = False
        self.requests: list[tuple[Known, bool]] = []
        self.sessions: dict[SessionKey, SessionRecord] = {}
        self.pool = Pool("pool", policy, self.dial, self.tasks, lambda: self.at_s)
        self.routes = dict.fromkeys(ROUTES, self.pool)
        self.watch = SessionWatch(self.routes)
        self.pool.on_change = self.watch.recount
        self.pool.on_overdue = self.overdue
        if found:
            self.update(found, "reload")

    def dial(self, backend: Backend) -> HeldTransport:
        self.dialled.append(HeldTransport(backend, self.looking))
        return self.dialled[-1]

    def overdue(self, backend: Backend) -> None:
        assert not self.known[backend.id].is_told, "once per drain"
        self.known[backend.id].is_told = True

    def one(self, number: int) -> Known | None:
        known = list(self.known.values())
        return known[number % len(known)] if known else None

    # --- who there is ------------------------------------------------------------------

    @rule(found=ENDPOINTS, by=st.sampled_from(["discovery", "reload"]))
    def update(self, found: list[Endpoint], by: str) -> None:
        self.is_told = True
        before = {id: known.backend for id, known in self.known.items()}
        self.pool.update(found, by)
        named = {each.backend().id: each for each in found}
        self.wanted = set(named)
        self.closing = {id for id, each in named.items() if not each.is_open}
        for backend in self.pool.backends:
            if backend.id in before:
                assert backend is before[backend.id]
            else:
                self.known[backend.id] = Known(backend, self.policy.is_modern)
                self.gone.pop(backend.id, None)
                self.strangers.pop(backend.id, None)
        assert set(self.known) == set(before) | self.wanted
        for id, known in self.known.items():
            if id in named and named[id].is_open:
                assert known.backend.weight == named[id].weight
                if known.drained_by != "operator":
                    known.drained_by = ""
            elif not known.drained_by:
                self.begin_drain(known, by, self.policy.drain_s)

    def begin_drain(self, known: Known, by: str, seconds: float) -> None:
        known.drained_by, known.deadline_s, known.is_told = by, self.at_s + seconds, False

    @rule(number=NUMBERS, seconds=st.sampled_from([None, 0.0, 60.0, UNDRAIN]))
    def operate(self, number: int, seconds: float | None) -> None:
        if seconds == UNDRAIN:
            self.undrain(number)
        else:
            self.drain(number, seconds)

    def drain(self, number: int, seconds: float | None) -> None:
        known = self.one(number)
        if known is not None:
            self.pool.drain(known.backend, "operator", seconds)
            self.begin_drain(known, "operator", self.policy.drain_s if seconds is None else seconds)

    def undrain(self, number: int) -> None:
        known = self.one(number)
        if known is not None:
            may_stay = known.backend.id in self.wanted - self.closing
            assert self.pool.undrain(known.backend) is may_stay
            if may_stay:
                known.drained_by = ""

    @rule(policy=st.one_of(st.none(), POLICIES))
    def reload(self, policy: PoolPolicy | None) -> None:
        if policy is None:
            self.reconnect()
        else:
            self.configure(policy)

    def configure(self, policy: PoolPolicy) -> None:
        if policy.is_modern is not self.policy.is_modern:
            for known in self.known.values():
                known.is_modern = policy.is_modern
        self.policy = policy
        self.pool.configure(policy)

    def reconnect(self) -> None:
        for transport in cast("list[HeldTransport]", self.pool.reconnect(self.dial)):
            self.dialled.remove(transport)
            assert not transport.closed, "that is up to the caller"

    # --- what is found out ---------------------------------------------------------------

    @rule(
        number=NUMBERS,
        news=st.one_of(st.sampled_from(STATUSES), st.sampled_from(FAILURES), st.sampled_from(CONNECTS)),
    )
    def hear(self, number: int, news: int | UpstreamError | bool) -> None:
        """What came of a request, or of a connection that nobody waited for."""
        known = self.one(number)
        if known is None:
            return
        if isinstance(news, UpstreamError):
            self.pool.failed(known.backend, news)
            is_there = None if news.phase is not Phase.CONNECT or news.kind in NOT_ITS_FAULT else False
        elif isinstance(news, bool):
            (self.pool.reached if news else self.pool.refused)(known.backend)
            is_there = news
        else:
            self.pool.answered(known.backend, news)
            is_there = True
        if is_there:
            known.away_since_s = None
        elif is_there is False and known.away_since_s is None:
            known.away_since_s = self.at_s

    @rule(number=NUMBERS, is_there=st.sampled_from([True, False, None]))
    def look(self, number: int, is_there: bool | None) -> None:
        """A look that has begun comes to its end, perhaps at a backend that has left."""
        away = {id for id, known in self.known.items() if known.away_since_s is not None}
        self.tasks.resume(number, is_there)
        back = [id for id in away if self.known[id].backend.unreachable_since_s is None]
        assert len(back) <= (1 if is_there else 0)
        for id in back:
            self.known[id].away_since_s = None
        for id, known in self.known.items():
            if id not in away and known.backend.unreachable_since_s is not None:
                assert is_there is False
                assert known.drained_by, "nobody looks for others that are there"
                known.away_since_s = self.at_s

    @rule(number=NUMBERS, is_healthy=st.booleans(), is_modern=st.booleans())
    def check(self, number: int, is_healthy: bool, is_modern: bool) -> None:
        known = self.one(number)
        if known is not None:
            self.pool.checked(known.backend, is_healthy)
            self.pool.learn_era(known.backend, is_modern)
            known.is_healthy, known.is_modern = is_healthy, is_modern

    # --- requests --------------------------------------------------------------------------

    @rule(
        tried=st.sets(st.sampled_from(HOSTS)),
        affinity=st.sampled_from([None, None, b"ann", b"bob"]),
        opens_session=st.booleans(),
        is_modern=st.booleans(),
        times=st.integers(1, 3),
    )
    def requests_come(
        self, tried: set[str], affinity: bytes | None, opens_session: bool, is_modern: bool, times: int
    ) -> None:
        for _ in range(times):
            self.request(tried, affinity, opens_session, is_modern)

    def request(
        self, tried: Collection[str], affinity: bytes | None, opens_session: bool, is_modern: bool
    ) -> None:
        ids = [endpoint(host).backend().id for host in tried]
        able = self.able(ids, is_modern)
        grade_of = {backend: GRADES[backend.standing] for backend in able}
        due = {backend for backend in able if backend.ejection is Ejection.DUE}
        assert self.pool.has_other(ids, is_modern=is_modern) is bool(able)
        chosen = self.pool.next(ids, affinity, opens_session=opens_session, is_modern=is_modern)
        assert (chosen is None) is (not able)
        if chosen is not None:
            assert grade_of[chosen] == min(grade_of.values())
            assert chosen not in due or chosen.ejection is Ejection.PROBED
            self.occupy(self.known[chosen.id], opens_session)

    def able(self, tried: Collection[str], is_modern: bool) -> list[Backend]:
        """Whom a request may go to, by the rules as they are written."""
        there = [known for known in self.known.values() if not known.drained_by]
        if is_modern:
            eras = {known.is_modern for known in there}
            era = True if True in eras else None if None in eras else False
            there = [known for known in there if known.is_modern is era]
        return [known.backend for known in there if known.backend.id not in tried]

    def occupy(self, known: Known, opens_session: bool) -> None:
        """As an exchange does."""
        self.requests.append((known, opens_session))
        known.inflight += 1
        known.backend.inflight += 1
        if opens_session:
            known.opening += 1
            known.backend.opening += 1
            self.pool.recount(known.backend)

    @rule(number=NUMBERS)
    def pinned_request(self, number: int) -> None:
        known = self.one(number)
        if known is not None and not self.pool.is_lost(known.backend):
            self.occupy(known, opens_session=False)

    @rule(number=NUMBERS)
    def end(self, number: int) -> None:
        if self.requests:
            known, opens_session = self.requests.pop(number % len(self.requests))
            known.inflight -= 1
            known.backend.inflight -= 1
            if opens_session:
                known.opening -= 1
                known.backend.opening -= 1
                self.pool.recount(known.backend)

    # --- sessions ----------------------------------------------------------------------------

    @rule(route=st.sampled_from(ROUTES), name=st.integers(0, 3), host=st.sampled_from(["", *HOSTS]))
    def session(self, route: str, name: int, host: str) -> None:
        """One ends, begins or moves, perhaps to a backend that is not known here, or not yet."""
        key = SessionKey(route, b"%d" % name)
        if key in self.sessions:
            self.watch.forgot(key, self.sessions.pop(key), is_over=name % 2 == 0)
        if host:
            self.sessions[key] = record = SessionRecord(endpoint(host).backend().id)
            self.watch.learnt(key, record)

    @rule(route=st.sampled_from(ROUTES))
    def lead(self, route: str) -> None:
        """A reload takes the route away, or gives it back."""
        if self.routes.pop(route, None) is None:
            self.routes[route] = self.pool
        self.watch.recount(self.pool)

    @rule(host=st.sampled_from(HOSTS))
    def ask_for_stranger(self, host: str) -> None:
        id = endpoint(host).backend().id
        if id in self.known:
            return
        is_gone = self.at_s - self.gone.get(id, -inf) < MEMORY_S
        if self.is_told and not is_gone:
            patience_s = self.policy.unknown_after_s
            if self.at_s - self.strangers.get(id, -inf) >= patience_s + MEMORY_S:
                self.strangers[id] = self.at_s
            is_gone = self.at_s - self.strangers[id] >= patience_s
        assert self.pool.has_left(id) is is_gone

    # --- time ----------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from(PAUSES))
    def pass_time(self, seconds: float) -> None:
        self.at_s += seconds
        lost = {id for id, known in self.known.items() if self.is_lost(known)}
        waits = [known.backend for known in self.known.values() if known.backend.ejection in WAITS]
        due = [backend for backend in waits if backend.released_s <= self.at_s]
        self.pool.sweep(self.at_s)
        assert all((backend.ejection is Ejection.DUE) is (backend in due) for backend in waits)
        for id in list(self.known):
            known = self.known[id]
            if known.drained_by:
                assert known.is_told is (id in lost), "whoever is lost is told of, and nobody else"
            may_go = known.drained_by and known.is_told and id not in self.wanted and not known.inflight
            assert (self.pool.find(id) is None) is bool(may_go)
            if may_go:
                del self.known[id]
                self.gone[id] = self.at_s

    # --- always ----------------------------------------------------------------------------------

    def is_lost(self, known: Known) -> bool:
        if known.drained_by and (known.is_told or self.at_s >= known.deadline_s):
            return True
        if known.away_since_s is None:
            return False
        is_leaving = known.drained_by in ("reload", "discovery")
        return is_leaving or self.at_s - known.away_since_s >= self.policy.lost_after_s

    def standing(self, known: Known) -> Standing:
        if known.drained_by:
            return Standing.CLOSED
        if known.away_since_s is not None or not known.is_healthy:
            return Standing.POOR
        by_ejection = {Ejection.NONE: Standing.GOOD, Ejection.DUE: Standing.TRIAL}
        return by_ejection.get(known.backend.ejection, Standing.POOR)

    @invariant()
    def everybody_is_as_the_model_says(self) -> None:
        assert [backend.id for backend in self.pool.backends] == list(self.known)
        assert self.wanted <= set(self.known)
        for known in self.known.values():
            backend = known.backend
            assert self.pool.find(backend.id) is backend
            assert backend.standing is self.standing(known)
            assert backend.is_modern is known.is_modern
            assert self.policy.eject is not None or backend.ejection is Ejection.NONE
            assert self.pool.is_lost(backend) is self.is_lost(known)
            assert (backend.inflight, backend.opening) == (known.inflight, known.opening)
            is_suspect = (
                known.away_since_s is not None or backend.failures or backend.ejection is not Ejection.NONE
            )
            assert backend.is_suspect is bool(is_suspect)

    @invariant()
    def sessions_are_counted_where_they_live(self) -> None:
        owned = Counter(record.backend for key, record in self.sessions.items() if key.route in self.routes)
        assert [known.backend.sessions for known in self.known.values()] == [owned[id] for id in self.known]

    @invariant()
    def every_transport_is_closed_once_and_not_before_its_time(self) -> None:
        self.tasks.turn()
        used = [cast("HeldTransport", self.pool.transport(known.backend)) for known in self.known.values()]
        assert not any(transport.closed for transport in used)
        for transport in self.dialled:
            assert transport.closed == (transport not in used)
        self.dialled = [transport for transport in self.dialled if not transport.closed]

    def teardown(self) -> None:
        self.tasks.turn()
        self.tasks.close()
        for _ in range(2):
            self.tasks.spawn(self.pool.aclose())
            self.tasks.turn()
