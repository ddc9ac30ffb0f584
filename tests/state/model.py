"""What should come of a request, judged by what has happened and by what Redis holds.

Rules of this file: it asks Redis and the scripted backends, never the proxy's own memory. Of several
legal outcomes it names all, and no more: after data was lost, or while a replica was deaf, more than
one is right. ``doubt`` says since when.

    routed       the owner of the session answered
    moved        it was lost; the session was made anew elsewhere, and answered there
    disowned     the owner said that it knows no such session: 404
    done         the DELETE of a session whose owner is lost: 204
    gone         404 of the proxy: certainly no such session
    down         503: the owner cannot be reached
    unavailable  503: Redis cannot be asked
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mcp_proxy.sessions import ENDED, SessionKey, SessionRecord, Stored
from tests.state.replica import CACHE_TTL_S, TTL_S, Client, Replica
from tests.state.world import World

KEPT_S: Final = TTL_S - CACHE_TTL_S
"""Unused for so long a session is there for certain."""

DEAD_S: Final = TTL_S + 4 * CACHE_TTL_S
"""Unused for so long it certainly is not."""

REMEMBERED_S: Final = 500.0
"""A replica remembers an end by itself for 600 s."""

HALF_ENDED: Final = "half ended"
"""An operator ended it while Redis could not be asked: perhaps it was known, and Redis is told later."""

Route = tuple[str, bytes]
"""Id of the backend, and how that calls the session."""


@dataclass
class Session:
    key: SessionKey
    owner: str
    routes: list[Route]
    """All so far, the last one is right."""
    used_s: float
    """When it was last used while all was well."""
    late_s: float
    """When its time to live can have begun anew for the last time."""
    ended: str = ""
    """By whom or what."""
    ended_s: float = 0.0
    enders: dict[str, float] = field(default_factory=dict)
    """Replicas that know of the end by themselves, and since when."""
    is_told: bool = False
    """The end has reached Redis."""
    is_again: bool = False
    """Its id has been another session's before, whose end replicas may remember."""
    doubt: str = ""
    """Why history does not tell what Redis holds."""
    known: dict[str, float] = field(default_factory=dict)
    """Replicas that have routed it, and when they did so last."""
    glimpsed: set[str] = field(default_factory=set)
    """Replicas that may know it because somebody else asked for it."""
    holders: dict[str, float] = field(default_factory=dict)
    """Replicas that have written it, and when."""
    stale: set[str] = field(default_factory=set)
    """Replicas that may not have heard of its last change."""
    streams: list[Client] = field(default_factory=list)

    @property
    def moves(self) -> bool:
        return self.key.route == "/again"

    @property
    def open_streams(self) -> list[Client]:
        return [client for client in self.streams if client.is_open]


class Model:
    def __init__(self, world: World) -> None:
        self.world = world
        self.shape = world.shape
        self.sessions: list[Session] = []
        self.haunted: set[SessionKey] = set()
        """Ids that a client was not told of, but that may be stored."""

    @property
    def at_s(self) -> float:
        return self.world.at_s

    def find(self, key: SessionKey) -> Session | None:
        return next((one for one in self.sessions if one.key == key), None)

    def is_well(self, replica: Replica) -> bool:
        """It can ask whom it has to ask."""
        return not self.shape.has_registry or (self.world.redis.answers and replica.link != "down")

    @property
    def all_is_well(self) -> bool:
        return all(self.is_well(replica) and replica.link == "well" for replica in self.world.replicas)

    # --- what a replica finds --------------------------------------------------------

    def stored(self, session: Session) -> Stored:
        return self.world.redis.stored(session.key)

    def found(self, session: Session, replica: Replica) -> set[str]:
        """``yes``, ``no`` and ``cannot`` tell."""
        return self._found(session, replica) | (
            {"no"} if session.is_again and self.shape.has_registry else set()
        )

    def _found(self, session: Session, replica: Replica) -> set[str]:
        if session.doubt == HALF_ENDED:
            return {"yes", "no", "cannot"}
        if replica.name in session.enders:
            if self.at_s - session.enders[replica.name] < REMEMBERED_S:
                return {"no"}
            if not self.is_well(replica):
                return {"yes", "no", "cannot"}
            if not self.shape.has_registry:
                return {"yes", "no"}
        if not self.shape.has_registry:
            return self._found_alone(session)
        return self._stored(session, replica) if self.is_well(replica) else self._cached(session, replica)

    def _found_alone(self, session: Session) -> set[str]:
        if self.shape.has_seal:
            return {"yes"}
        if session.doubt:
            return {"yes", "no"}
        is_over = session.ended or self.at_s - session.used_s >= TTL_S + CACHE_TTL_S
        return {"no"} if is_over else {"yes"}

    def _stored(self, session: Session, replica: Replica) -> set[str]:
        held = self.stored(session)
        name = replica.name
        is_known = name in session.known or name in session.glimpsed
        late = {"yes", "no"} if name in session.stale or (session.doubt and is_known) else {"no"}
        if isinstance(held, SessionRecord):
            is_odd = session.ended or session.doubt == HALF_ENDED
            return {"yes", "no"} if is_odd else {"yes"}
        if held is ENDED:
            return late
        if self.shape.has_seal:
            is_sure = not session.ended and len(session.routes) == 1
            return {"yes"} if is_sure else {"yes", "no"}
        if session.ended or self.at_s - session.late_s > DEAD_S:
            return late
        if self.is_recent(session.holders, name):
            return {"yes"}
        return {"yes", "no"} if is_known else {"no"}

    def _cached(self, session: Session, replica: Replica) -> set[str]:
        """While Redis cannot be asked."""
        name = replica.name
        if session.ended:
            is_possible = self.shape.has_seal or name in session.stale or session.doubt
            return {"no", "cannot", "yes"} if is_possible else {"no", "cannot"}
        if (self.shape.has_seal and len(session.routes) == 1) or self.is_recent(session.known, name):
            return {"yes"} if not session.doubt else {"yes", "no", "cannot"}
        return {"yes", "cannot"}

    def is_recent(self, moments: dict[str, float], name: str) -> bool:
        return name in moments and self.at_s - moments[name] < KEPT_S

    # --- what follows ----------------------------------------------------------------

    def routes(self, session: Session, replica: Replica) -> list[Route]:
        """Where it may be sent."""
        if replica.name in session.stale or session.doubt or session.ended:
            return session.routes
        if self.shape.has_seal and not self.is_well(replica):
            return session.routes
        return session.routes[-1:]

    def outcomes(self, session: Session, replica: Replica, method: str) -> set[str]:
        found = self.found(session, replica)
        outcomes = set()
        if "no" in found:
            outcomes.add("gone")
        if "cannot" in found:
            outcomes.add("unavailable")
        if "yes" in found:
            for route in self.routes(session, replica):
                outcomes |= self._at(session, replica, route, method)
        return outcomes

    def _at(self, session: Session, replica: Replica, route: Route, method: str) -> set[str]:
        backend_id, upstream = route
        backend = next(one for one in self.world.backends.values() if one.id == backend_id)
        if backend.is_up and upstream in backend.owners:
            return {"routed"}
        # A sealed id does not say how to make its session anew.
        is_bare = (
            self.shape.has_seal
            and session.moves
            and (bool(session.doubt or session.ended) or self.at_s - session.used_s >= KEPT_S)
        )
        if backend.is_up and (method == "DELETE" or not session.moves):
            return {"disowned"}
        if not backend.is_up and not self._is_lost(replica, session, backend_id):
            return {"down"}
        if method == "DELETE":
            return {"done"}
        if not session.moves:
            return {"gone"}
        if not self.is_well(replica):
            return {"unavailable", "disowned", "gone"} if is_bare else {"unavailable"}
        others = any(one.is_up for one in self.world.backends.values() if one.letter in "cd")
        outcome = {"moved"} if others else {"down"}
        return outcome | {"disowned" if backend.is_up else "gone"} if is_bare else outcome

    def _is_lost(self, replica: Replica, session: Session, backend_id: str) -> bool:
        pool = replica.pools[session.key.route]
        backend = pool.find(backend_id)
        assert backend is not None
        return pool.is_lost(backend)

    # --- what has happened -----------------------------------------------------------

    def used(self, session: Session, replica: Replica) -> None:
        session.late_s = self.at_s
        if self.is_well(replica) or self.is_recent(session.known, replica.name):
            session.known[replica.name] = self.at_s
        if not self.is_well(replica):
            return
        session.used_s = self.at_s
        if (
            session.doubt not in ("", HALF_ENDED)
            and not session.ended
            and self.all_is_well
            and self._is_settled(session)
        ):
            session.doubt = ""
            session.stale.clear()

    def _is_settled(self, session: Session) -> bool:
        if not self.shape.has_registry:
            return True
        held = self.stored(session)
        if not isinstance(held, SessionRecord):
            return False
        return (held.backend, held.upstream_id or session.key.session_id) == session.routes[-1]

    def moved(self, session: Session, replica: Replica, route: Route) -> None:
        session.routes.append(route)
        session.known = {}
        session.holders = {replica.name: self.at_s}
        self._changed(session, replica)
        self.used(session, replica)

    def over(self, session: Session, replica: Replica, why: str, *, by_itself: bool = True) -> None:
        """Its end, as ``replica`` learnt it. ``by_itself``: and remembers it without Redis."""
        if not session.ended:
            session.ended, session.ended_s, session.is_told = why, self.at_s, False
        if by_itself:
            session.enders[replica.name] = self.at_s
        session.is_told |= self.is_well(replica)
        self._changed(session, replica)

    def _changed(self, session: Session, replica: Replica) -> None:
        is_told = self.is_well(replica)
        session.stale |= {
            other.name
            for other in self.world.replicas
            if other is not replica and (other.link != "well" or not is_told)
        }

    def lost_data(self, why: str) -> None:
        for session in self.sessions:
            if session.doubt != HALF_ENDED:
                session.doubt = why

    def time_passed(self) -> None:
        """And all that was due was done."""
        for session in self.sessions:
            tellers = [one for one in self.world.replicas if one.name in session.enders and self.is_well(one)]
            session.is_told |= bool(session.ended and tellers)
            streams = session.open_streams
            if streams:
                session.late_s = self.at_s
            if any(self.is_well(client.replica) for client in streams):
                session.used_s = self.at_s

    def reconnected(self) -> None:
        """Whoever was deaf has begun to doubt all that it knew, and asks."""
        for session in self.sessions:
            if self.at_s - session.late_s < DEAD_S:
                session.late_s = self.at_s
            if self.all_is_well and (session.is_told or not session.ended):
                session.stale.clear()
