"""What clients may do with sessions, their own and others', as rules of a state machine.

Rules of this file: every rule checks what the client saw and what backends received against ``model.py``.

    I1  no request of a session reaches a backend that is not the session's
    I2  what was ended is not routed any more
    I3  what was begun is found by every replica
    I4  404 means that there certainly is no such session; nothing is ever 500
    I5  nobody reaches, or can tell apart from nothing, somebody else's session
    I6  what has expired stays so
    I7  every key in Redis has the prefix and a time to live
    I8  no answer depends on Redis for longer than its budget
"""

from __future__ import annotations

from typing import ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from mcp_proxy.policy import Principal
from mcp_proxy.sessions import Listed, SessionKey, SessionRecord
from tests.state.backends import SESSION, Seen
from tests.state.model import Model, Session
from tests.state.registry import AgeingRedis
from tests.state.replica import BUDGET_S, ROUTES, SHAPES, Client, Replica
from tests.state.world import World
from tests.unit.gatehouse import initialize as hello
from tests.unit.gatehouse import legacy

USERS: Final = ("alice", "bob")
NOBODY: Final = b"an-id-that-was-never-issued"
PIN_RETRIES_S: Final = 0.5
"""Pauses before a backend that is not there is given up."""

ERRANDS: Final = frozenset({"initialize", "notifications/initialized"})

PICK: Final = st.integers(0, 5)
ANY_REPLICA: Final = st.integers(0, 2)
_CALLS: Final = {"POST": legacy("tools/call"), "GET": b"", "DELETE": b""}


class Clients(RuleBasedStateMachine):
    """Subclasses name their ``shape`` and bring the ``server``."""

    shape: ClassVar[str]
    server: ClassVar[AgeingRedis]

    def __init__(self) -> None:
        super().__init__()
        self.server.reset()
        self.world = World(SHAPES[self.shape], self.server)
        self.model = Model(self.world)
        self.backup: list[Listed] = []

    @property
    def has_registry(self) -> bool:
        return self.world.shape.has_registry

    def _replica(self, number: int) -> Replica:
        return self.world.replicas[number % len(self.world.replicas)]

    def _session(self, number: int) -> Session:
        """The newest first: they are the most likely to be alive."""
        sessions = self.model.sessions
        return sessions[-1 - number % len(sessions)]

    # --- requests --------------------------------------------------------------------

    @initialize(route=st.sampled_from(["/end", "/again"]))
    def somebody_begins(self, route: str) -> None:
        self.begin(0, route, "alice")

    @rule(replica=ANY_REPLICA, route=st.sampled_from(["/end", "/again"]), user=st.sampled_from(USERS))
    def begin(self, replica: int, route: str, user: str) -> None:
        asked = self._replica(replica)
        route = route if route in self.world.shape.routes else "/end"
        before = len(self.world.seen)
        client = self.world.ask(asked, "POST", route, b"", user, hello())
        self._in_time(client)
        verdict = (client.reply.status, client.reply.reason)
        made = [one for one in self.world.seen[before:] if one.what == "initialize"]
        if not any(self.world.backends[letter].is_up for letter in ROUTES[route]):
            assert (*verdict, made) == (503, "backend_unavailable", [])
            return
        assert len(made) == 1, "one initialize reaches one backend, once"
        backend = next(one for one in self.world.backends.values() if one.id == made[0].backend)
        upstream = list(backend.owners)[-1] if backend.owners else b""
        if verdict == (200, ""):
            self._begun(client, route, user, backend.id, upstream)
        elif verdict == (502, "session_conflict"):
            self._conflict(SessionKey(route, upstream), user, backend.owners)
        else:
            assert verdict == (503, "store_unavailable"), verdict
            assert not self.world.shape.has_seal, "the id holds everything"
            assert not self.model.is_well(asked), "Redis was there"
            assert client.reply.one(SESSION) is None, "an id that was not stored"
            farewell = self.world.seen[-1]
            assert farewell.what == "DELETE", "the backend's session was left behind"
            self.model.haunted.add(SessionKey(route, farewell.session))

    def _begun(self, client: Client, route: str, user: str, backend: str, upstream: bytes) -> None:
        issued = client.reply.one(SESSION)
        assert issued is not None
        key = SessionKey(route, issued)
        at_s, name = self.world.at_s, client.replica.name
        made = Session(key, user, [(backend, upstream)], at_s, at_s)
        made.known[name] = made.holders[name] = at_s
        old = self.model.find(key)
        if old is not None or key in self.model.haunted:
            made.is_again, made.doubt, made.holders = True, "issued again", {}
        if old is not None:
            self._replaced(old, made)
        self.model.sessions.append(made)

    def _replaced(self, old: Session, new: Session) -> None:
        """Its backend has forgotten it, and issues its id again."""
        held = self.world.redis.stored(new.key) if self.has_registry else None
        if held is not None:
            assert isinstance(held, SessionRecord), "a new session is not stored"
            assert held.principal == self._digest(new.owner), "stored for somebody else"
        self.model.sessions.remove(old)
        # One id stands for one session at a time, in the model.
        self.backup = [one for one in self.backup if one.name != new.key.name]
        self.server.forget_save()
        if old.owner == new.owner:
            new.streams += old.open_streams

    def _digest(self, user: str) -> str:
        return Principal("test", user).digest

    def _conflict(self, key: SessionKey, user: str, owners: dict[bytes, bytes]) -> None:
        """Legal only for an id that is in use, or may be."""
        old = self.model.find(key)
        assert key in self.model.haunted or old is not None, "a conflict with nobody"
        if old is not None:
            assert old.owner != user or old.doubt or old.ended, "the owner's own id was refused"
        del owners[key.session_id]  # no client has it; what comes next is not an offence of the proxy

    @rule(replica=ANY_REPLICA, session=PICK)
    def call(self, replica: int, session: int) -> None:
        self._request("POST", replica, session)

    @rule(replica=ANY_REPLICA, session=PICK)
    def listen(self, replica: int, session: int) -> None:
        self._request("GET", replica, session)

    @rule(session=PICK)
    def stop_listening(self, session: int) -> None:
        for client in self._session(session).open_streams:
            client.leave()
        self.world.settle()

    @rule(replica=ANY_REPLICA, session=PICK)
    def delete(self, replica: int, session: int) -> None:
        self._request("DELETE", replica, session)

    def _request(self, method: str, replica: int, number: int) -> None:
        asked, session = self._replica(replica), self._session(number)
        expected = self.model.outcomes(session, asked, method)
        routes = self.model.routes(session, asked)
        before = len(self.world.seen)
        client = self.world.ask(
            asked, method, session.key.route, session.key.session_id, session.owner, _CALLS[method]
        )
        self._in_time(client)
        seen = self.world.seen[before:]
        outcome = self._outcome(client, session, seen)
        assert outcome in expected, (outcome, expected, session, self._held(session), seen)
        self._only_its_own(session, seen, routes, outcome)
        self._follow(session, client, outcome, method, seen, expected)

    def _held(self, session: Session) -> object:
        return self.model.stored(session) if self.has_registry and self.server.answers else "?"

    def _in_time(self, client: Client) -> None:
        """I8: by the loop's own time, which passes only while nobody but Redis could answer."""
        limit_s = PIN_RETRIES_S + 0.05
        if self.has_registry and not self.server.answers:
            limit_s += 4 * BUDGET_S
        assert client.reply.has_started or client.reply.outcome, "no answer"
        assert client.took_s <= limit_s, f"answered after {client.took_s} s"

    def _outcome(self, client: Client, session: Session, seen: list[Seen]) -> str:
        reply = client.reply
        verdict = (reply.status, reply.reason)
        assert (reply.status, reply.outcome) not in [(500, "answer"), (200, "abort")], verdict
        if reply.status == 200 and not reply.reason:
            last = [one for one in seen if one.what != "DELETE" or one == seen[-1]][-1]
            is_known = (last.backend, last.session) in session.routes
            return "routed" if is_known else "moved"
        return {
            (204, ""): "done",
            (404, ""): "disowned",
            (404, "session_not_found"): "gone",
            (503, "backend_unavailable"): "down",
            (503, "store_unavailable"): "unavailable",
        }[verdict]

    def _only_its_own(
        self, session: Session, seen: list[Seen], routes: list[tuple[str, bytes]], outcome: str
    ) -> None:
        """I1 and I2: what reached backends in the name of the session."""
        if outcome == "moved":
            new = seen[-1]
            made = [one for one in seen if one.what == "initialize"]
            assert [one.backend for one in made][-1:] == [new.backend], "a session that was not made there"
            routes = [*routes, (new.backend, new.session)]
        for one in seen:
            if one.what not in ERRANDS:
                assert (one.backend, one.session) in routes, (one, routes)
        if outcome in ("gone", "unavailable", "done") and len(session.routes) == 1:
            assert not [one for one in seen if one.what not in ERRANDS and outcome != "unavailable"], seen

    def _follow(
        self,
        session: Session,
        client: Client,
        outcome: str,
        method: str,
        seen: list[Seen],
        expected: set[str],
    ) -> None:
        """What is the case now."""
        model, asked = self.model, client.replica
        if outcome == "moved":
            model.moved(session, asked, (seen[-1].backend, seen[-1].session))
        if outcome in ("routed", "moved"):
            if method == "DELETE":
                model.over(session, asked, "deleted")
            else:
                model.used(session, asked)
            if method == "GET":
                session.streams.append(client)
        elif outcome == "down":
            session.glimpsed.add(asked.name)
        elif outcome in ("disowned", "done"):
            model.over(session, asked, outcome)
        elif outcome == "gone":
            was_found = "no" not in model.found(session, asked)
            if was_found:
                model.over(session, asked, "lost")
            session.known.pop(asked.name, None)
            session.holders.pop(asked.name, None)

    # --- others ----------------------------------------------------------------------

    @rule(replica=ANY_REPLICA, session=PICK, method=st.sampled_from(sorted(_CALLS)))
    def somebody_else_tries(self, replica: int, session: int, method: str) -> None:
        """I5: also nothing of it changes."""
        asked, target = self._replica(replica), self._session(session)
        user = next(user for user in USERS if user != target.owner)
        before, keys = len(self.world.seen), self._keys()
        is_well, all_is_well = self.model.is_well(asked), self.model.all_is_well
        tried = self.world.ask(asked, method, target.key.route, target.key.session_id, user, _CALLS[method])
        target.glimpsed.add(asked.name)
        unknown = self.world.ask(asked, method, target.key.route, NOBODY, user, _CALLS[method])
        self._in_time(tried)
        assert self.world.seen[before:] == [], "somebody else's request was forwarded"
        if is_well:  # else what is known here is 404, and of the rest nobody can tell
            answers = [(one.reply.status, one.reply.headers, one.reply.body) for one in (tried, unknown)]
            assert answers[0] == answers[1], answers
        assert tried.reply.status in (404, 503)
        if all_is_well:  # else whoever begins to listen again refreshes what it knows
            assert all(left <= keys.get(key, left) for key, left in self._keys().items()), "changed"

    def _keys(self) -> dict[str, int]:
        return dict(self.server.entries()) if self.has_registry and self.server.answers else {}
