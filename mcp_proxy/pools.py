"""A pool at run time: interchangeable backends, the transport to each, and who is next.

Rules of this file: no I/O but through the transports. Backends come and go while requests are on their
way: what leaves is drained first and forgotten last. Whatever is found out about a backend ends in
``_settle``, so that the next choice knows it. A pinned session never moves because its backend is judged
badly: judging decides about the unbound only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from mcp_proxy.affinity import Affinity
from mcp_proxy.backends import Backend, Drain, Ejection, Endpoint
from mcp_proxy.backends.absence import Absence
from mcp_proxy.backends.departures import Departures
from mcp_proxy.backends.ejection import Ejector, Rule
from mcp_proxy.backends.roster import Roster
from mcp_proxy.clock import now
from mcp_proxy.errors import Phase, UpstreamError
from mcp_proxy.upstream import Spawner, Transport

logger = logging.getLogger("mcp_proxy")

PRINCIPAL: Final = Affinity("principal")


class PoolPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What the configuration says of a pool, but for its backends and how to reach them."""

    balance: str = "least_sessions"
    affinity: Affinity = PRINCIPAL
    tap: int | None = None
    """Size of answers in which to look for what their backend keeps; None: do not look."""
    authorization: bytes | None = None
    """What backends get instead of the client's Authorization, None to pass that on."""
    reinitializes: bool = False
    """Sessions of a lost backend are made anew at another one."""
    lost_after_s: float = 10.0
    unknown_after_s: float = 60.0
    drain_s: float = 300.0
    slow_start_s: float | None = None
    eject: Rule | None = None
    is_modern: bool | None = None
    """Declared for every backend; None: not known, or to be found out."""


Dial = Callable[[Backend], Transport]


class Pool:
    """``dial`` makes the transport to a backend, which the pool closes. ``clock`` is that of ``sweep``."""

    __slots__ = (
        "_absence", "_backends", "_departures", "_dial", "_ejector", "_is_stateful", "_is_told", "_now",
        "_roster", "_tasks", "_transports", "affinity", "authorization", "hashes", "is_stateless", "name",
        "on_change", "on_ejected", "on_overdue", "on_stranger", "policy", "reinitializes", "streams", "tap",
    )  # fmt: skip

    def __init__(
        self, name: str, policy: PoolPolicy, dial: Dial, tasks: Spawner, clock: Callable[[], float] = now
    ) -> None:
        self.name = name
        self.is_stateless = False
        """Every ``initialize`` so far was answered without a session id: requests may go
        anywhere, and a session id that a client makes up means nothing."""
        self._is_stateful = False
        self.streams = 0
        # whoever wants to know
        self.on_change: Callable[[Pool], None] = _nothing
        """Backends have come."""
        self.on_ejected: Callable[[Pool], None] = _nothing
        self.on_overdue: Callable[[Backend], None] = _nothing
        """Its time to drain is over: its streams have to end."""
        self.on_stranger: Callable[[Pool], bool] = _everybody
        """Somebody else knows a backend that is not known here. False: whoever names backends cannot be asked
        at present, so nothing follows from that."""
        # backends
        self._is_told = False
        """Somebody has said which backends there are."""
        self._backends: dict[str, Backend] = {}
        self._transports: dict[str, Transport] = {}
        self._absence = Absence()
        self._departures = Departures()
        self._tasks = tasks
        self._dial = dial
        self._now = clock
        self._follow(policy)

    def configure(self, policy: PoolPolicy) -> None:
        """Change everything but the backends and the way to them."""
        before = self.policy
        self._follow(policy)
        for backend in self._backends.values():
            self._ejector.adopt(backend)
            if policy.is_modern is not before.is_modern:
                backend.is_modern = policy.is_modern
            self._settle(backend)

    def _follow(self, policy: PoolPolicy) -> None:
        self.policy = policy
        self.affinity = policy.affinity
        self.authorization = policy.authorization
        self.reinitializes = policy.reinitializes
        self.tap = policy.tap
        self.hashes = policy.balance == "hash"
        """Affinity decides about every request that no session binds."""
        self._ejector = Ejector(policy.eject)
        self._roster = Roster(self.name, policy.balance, slow_start_s=policy.slow_start_s)

    def __repr__(self) -> str:
        return f"<Pool {self.name} {list(self._backends.values())}>"

    # --- who there is ----------------------------------------------------------------

    @property
    def backends(self) -> tuple[Backend, ...]:
        return tuple(self._backends.values())

    def find(self, backend_id: str) -> Backend | None:
        return self._backends.get(backend_id)

    def transport(self, backend: Backend) -> Transport:
        return self._transports[backend.id]

    def update(self, endpoints: Iterable[Endpoint], by: str) -> None:
        """These are the backends now. New ones are taken in, those that are missing are drained, as ``by``
        (``discovery`` or ``reload``). What an operator drains stays so."""
        self._is_told = True
        at_s = None if not self._backends else self._now()
        wanted: set[str] = set()
        closing: set[str] = set()
        for endpoint in endpoints:
            backend = endpoint.backend()
            wanted.add(backend.id)
            if backend.id not in self._backends:
                self._take_in(backend, at_s)
            known = self._backends[backend.id]
            known.weight = endpoint.weight
            if not endpoint.is_open:
                closing.add(known.id)
                self.drain(known, by)
            elif known.drain is not None and known.drain.by != "operator":
                self._stay(known)
            else:
                self._settle(known)
        self._departures.wanted = frozenset(wanted)
        self._departures.closing = frozenset(closing)
        for known in self.backends:
            if known.id not in wanted:
                self.drain(known, by)
        self.on_change(self)

    def _take_in(self, backend: Backend, at_s: float | None) -> None:
        """``at_s``: None for the first backends of a pool, which need not be started slowly."""
        backend.is_modern = self.policy.is_modern
        backend.warm_from_s = at_s
        self._backends[backend.id] = backend
        self._transports[backend.id] = self._dial(backend)
        self._departures.come(backend.id)
        if at_s is not None:
            self._say(backend, "has come")

    def reconnect(self, dial: Dial) -> list[Transport]:
        """Use other transports from now on. The caller closes the old ones, when they are idle."""
        self._dial = dial
        old = list(self._transports.values())
        self._transports = {id: self._dial(backend) for id, backend in self._backends.items()}
        return old

    @property
    def is_empty(self) -> bool:
        """It has no backends left, and nothing is in progress."""
        return not self._backends and not self.streams

    # --- who is next -----------------------------------------------------------------

    def next(
        self,
        tried: Sequence[str] = (),
        affinity: bytes | None = None,
        *,
        opens_session: bool = False,
        is_modern: bool = False,
    ) -> Backend | None:
        """The backend for a request that no session binds, other than those tried. Requests with the
        same ``affinity`` get the same one while it can serve."""
        backend = self._roster.next(tried, affinity, opens_session=opens_session, is_modern=is_modern)
        if backend is not None and backend.ejection is Ejection.DUE:
            self._say(backend, "may show that it works", logging.DEBUG)
            self._ejector.probed(backend, self._now())
            self._settle(backend)
        return backend

    def has_other(self, tried: Sequence[str], *, is_modern: bool = False) -> bool:
        """``next(tried)`` would find a backend."""
        return self._roster.has_other(tried, is_modern=is_modern)

    def recount(self, backend: Backend) -> None:
        """Its sessions have changed, or the number of those that are being opened."""
        self._roster.recount(backend)

    def learn_sessions(self, has_sessions: bool) -> None:
        """An ``initialize`` succeeded with or without a session id. One that issued an id
        settles it: an answer without may be an error inside a 200."""
        self._is_stateful = self._is_stateful or has_sessions
        self.is_stateless = not self._is_stateful

    # --- what is found out -----------------------------------------------------------

    def answered(self, backend: Backend, status: int) -> None:
        """It sent a response head. Good news need not be told of a backend that is not suspect."""
        at_s = self._now()
        is_back = self._absence.reached(backend, at_s)
        if status >= 500:
            self._fail(backend, f"status {status}", at_s)
        elif self._ejector.succeeded(backend, at_s):
            is_back = True
        if is_back:
            self._come_back(backend, at_s)
        self._settle(backend)

    def failed(self, backend: Backend, error: UpstreamError) -> None:
        """A request to it failed."""
        if error.kind in ("unresolved", "exhausted") or error.stale:
            return  # not its fault
        at_s = self._now()
        if error.phase is Phase.CONNECT:
            self._refuse(backend, error.detail, at_s)
        self._fail(backend, error.detail, at_s)
        self._settle(backend)

    def reached(self, backend: Backend) -> None:
        """A connection could be opened."""
        at_s = self._now()
        if self._absence.reached(backend, at_s):
            self._come_back(backend, at_s, "can be reached again")
            self._settle(backend)

    def refused(self, backend: Backend) -> None:
        """A connection could not be opened, and no request waited for it."""
        self._refuse(backend, "cannot connect", self._now())
        self._settle(backend)

    def checked(self, backend: Backend, is_healthy: bool) -> None:
        """Active checks have made up their mind."""
        if backend.is_healthy is is_healthy:
            return
        backend.is_healthy = is_healthy
        if is_healthy:
            self._come_back(backend, self._now(), "is healthy again")
        else:
            self._say(backend, "is unhealthy: its checks fail", logging.WARNING)
        self._settle(backend)

    def learn_era(self, backend: Backend, is_modern: bool) -> None:
        """A probe found out whether it speaks 2026-07-28."""
        if backend.is_modern is not is_modern:
            backend.is_modern = is_modern
            self._say(backend, f"{'speaks' if is_modern else 'does not speak'} 2026-07-28", logging.DEBUG)
            self._settle(backend)

    def _fail(self, backend: Backend, why: str, at_s: float) -> None:
        if self._ejector.failed(backend, at_s, len(self._backends)):
            seconds = backend.released_s - at_s
            self._say(backend, f"is ejected for {seconds:.0f} s: {why}", logging.WARNING)
            self.on_ejected(self)

    def _come_back(self, backend: Backend, at_s: float, how: str = "works again") -> None:
        backend.warm_from_s = at_s
        self._say(backend, how)

    def _refuse(self, backend: Backend, why: str, at_s: float) -> None:
        if backend.unreachable_since_s is None:  # one that leaves is expected to go
            level = logging.WARNING if backend.drain is None else logging.INFO
            self._say(backend, f"is down: {why}", level)
        self._absence.refused(backend, at_s)

    def _settle(self, backend: Backend) -> None:
        backend.is_suspect = (
            backend.unreachable_since_s is not None
            or backend.failures > 0
            or backend.ejection is not Ejection.NONE
        )
        self._roster.put(backend)

    # --- what is over ----------------------------------------------------------------

    def is_lost(self, backend: Backend) -> bool:
        """Its sessions are over: it could not be reached for too long, or at all when it was said to
        leave, or its time to drain is over. Once ``on_overdue`` was told, that stays so."""
        drain, since_s = backend.drain, backend.unreachable_since_s
        if drain is not None and (self._now() >= drain.deadline_s or self._departures.is_over(backend)):
            return True
        if since_s is None:
            return False
        is_leaving = drain is not None and drain.by != "operator"
        return is_leaving or self._now() - since_s >= self.policy.lost_after_s

    def has_left(self, backend_id: str) -> bool:
        """A backend that ``find`` does not know is gone for good. One that was never known here may be
        news from another replica; whether it is cannot be told for ``unknown_after``."""
        at_s = self._now()
        if self._departures.has_left(backend_id, at_s):
            return True
        if not self.on_stranger(self) or not self._is_told:
            return False
        return self._departures.is_unheard_of(backend_id, at_s, self.policy.unknown_after_s)

    def drain(self, backend: Backend, by: str, seconds: float | None = None) -> None:
        """Nothing new for it; what it has may go on for ``seconds``, or as the configuration says. What
        drains already goes on as it began, unless an operator says otherwise."""
        if backend.drain is not None and by != "operator":
            return
        at_s = self._now()
        deadline_s = at_s + (self.policy.drain_s if seconds is None else seconds)
        self._departures.drain(backend, Drain(at_s, deadline_s, by, backend.sessions))
        self._absence.watch(backend, at_s)
        self._say(backend, f"is draining for {deadline_s - at_s:.0f} s ({by})")
        self._settle(backend)

    def undrain(self, backend: Backend) -> bool:
        """It stays after all. False: it leaves, because whoever names backends says so."""
        if backend.id not in self._departures.wanted - self._departures.closing:
            return False
        if backend.drain is not None:
            self._stay(backend)
        return True

    def _stay(self, backend: Backend) -> None:
        self._departures.stay(backend)
        backend.warm_from_s = self._now()
        self._say(backend, "stays")
        self._settle(backend)

    # --- time ------------------------------------------------------------------------

    def sweep(self, at_s: float) -> None:
        """Fire due deadlines; a job for the Ticker."""
        for transport in self._transports.values():
            transport.sweep(at_s)
        for backend in self._ejector.sweep(at_s):
            self._settle(backend)
        self._roster.sweep(at_s)
        for backend in self._departures.overdue(self.is_lost):
            rest = f"; sessions left: {backend.sessions}" if backend.sessions else ""
            self._say(backend, f"is drained{rest}")
            self.on_overdue(backend)
        for backend in self._departures.parted(at_s):
            self._forget(backend)
        for backend in self._absence.due(at_s):
            self._tasks.spawn(self._look(backend))

    async def _look(self, backend: Backend) -> None:
        """Look for a backend that could not be reached, or that leaves: when it is gone, its sessions need
        not wait. A failure counts only if nothing has reached it meanwhile."""
        try:
            is_there = await self.transport(backend).probe()
        finally:
            self._absence.looked(backend)
        if self._backends.get(backend.id) is not backend:
            return
        if is_there:
            self.reached(backend)
        elif backend.unreachable_since_s is not None or (is_there is False and backend.drain is not None):
            self.refused(backend)
        elif backend.drain is not None:
            self._absence.watch(backend, self._now())

    def _forget(self, backend: Backend) -> None:
        del self._backends[backend.id]
        self._absence.drop(backend)
        self._ejector.drop(backend)
        self._roster.drop(backend)
        self._tasks.spawn(self._transports.pop(backend.id).aclose())
        self._say(backend, "has left")

    def _say(self, backend: Backend, what: str, level: int = logging.INFO) -> None:
        """In the log. Never for every request."""
        fields = {"pool": self.name, "backend": backend.id}
        logger.log(level, "pool %s: backend %s %s", self.name, backend.id, what, extra=fields)

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        for transport in list(self._transports.values()):  # a backend may part meanwhile
            await transport.aclose()


def _nothing(_: object) -> None: ...


def _everybody(_: object) -> bool:
    return True
