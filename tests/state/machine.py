"""Anything that may happen to sessions, in any order, and what must hold after every step.

Rules of this file: every rule is an event of the world that clients have no part in. The invariants look
at Redis, at backends and at the replicas' counters; ``clients.py`` judges answers.
"""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import ENDED, SessionRecord
from tests.state.clients import ANY_REPLICA, PICK, Clients
from tests.state.model import DEAD_S, HALF_ENDED, KEPT_S, Session
from tests.state.registry import PREFIX
from tests.state.replica import CACHE_TTL_S, ROUTES, TTL_S, Replica

TIMES_S: Final = (5.0, 60.0, 120.0, 300.0, 700.0, 900.0, 1600.0)

_registry = precondition(lambda self: self.has_registry)
_well = precondition(lambda self: self.has_registry and self.server.answers)
_frozen = precondition(lambda self: self.server.is_frozen)
_dead = precondition(lambda self: self.has_registry and not self.server.is_up)
_letters = st.sampled_from("abcd")


class AnyHistory(Clients):
    # --- time ------------------------------------------------------------------------

    @rule(seconds=st.sampled_from(TIMES_S))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)
        self.model.time_passed()

    # --- replicas --------------------------------------------------------------------

    @rule(replica=ANY_REPLICA)
    def a_replica_dies(self, replica: int) -> None:
        dead = self.world.replace(replica % len(self.world.replicas))
        if not self.world.shape.has_registry and not self.world.shape.has_seal:
            self.model.lost_data("died")
            for session in self.model.sessions:
                session.ended, session.ended_s = "died", self.world.at_s
        for session in self.model.sessions:
            session.streams = [client for client in session.streams if client.replica is not dead]
        self._reconnected()

    # --- Redis -----------------------------------------------------------------------

    @_well
    @rule()
    def redis_freezes(self) -> None:
        self.server.freeze()

    @_frozen
    @rule()
    def redis_thaws(self) -> None:
        self.server.thaw()
        self._returned()

    @_registry
    @precondition(lambda self: self.server.is_up)
    @rule()
    def redis_dies(self) -> None:
        self.server.kill()
        self.world.settle()

    @_dead
    @rule(with_data=st.booleans())
    def redis_starts_again(self, with_data: bool) -> None:
        self.model.lost_data("restarted")
        self.server.restart(with_data=with_data and self.server.has_saved)
        self._returned()

    @_well
    @rule()
    def somebody_flushes(self) -> None:
        self.model.lost_data("flushed")
        self.server.flush()

    @_well
    @rule(event=st.sampled_from(["saves", "cuts off subscribers", "is heard again"]))
    def redis(self, event: str) -> None:
        if event == "saves":
            self.server.save()
        elif event == "cuts off subscribers":
            self.world.deafen()
        else:
            self._reconnected()

    def _returned(self) -> None:
        """What was claimed before Redis went must not be waited for in real time."""
        self._reconnected()
        self.time_passes(20.0)

    def _reconnected(self) -> None:
        self.world.reconnect()
        if not self.has_registry or self.server.answers:
            self.model.reconnected()

    # --- backends --------------------------------------------------------------------

    @rule(letter=_letters, event=st.sampled_from(["goes", "returns", "restarts", "reissues"]))
    def a_backend(self, letter: str, event: str) -> None:
        """Ids that seal, or stand for other ids, cannot show that a backend issues one again."""
        backend = self.world.backends.get(letter)
        if backend is None:
            return
        can_show = not self.world.shape.has_seal and letter in ROUTES["/end"]
        if event == "goes":
            backend.stop()
        elif event == "returns":
            backend.is_up = True
        else:
            backend.restart(reissues=event == "reissues" and can_show)
        self.world.settle()

    # --- operators -------------------------------------------------------------------

    @rule(replica=ANY_REPLICA, session=PICK)
    def an_operator_ends_a_session(self, replica: int, session: int) -> None:
        asked, target = self._replica(replica), self._session(session)
        found = self.model.found(target, asked)
        name = target.key.name
        try:
            ended = self.world.call(asked.store.end, name)
        except StoreError:
            assert not self.model.is_well(asked)
            ended = found == {"yes"} and self.model.is_recent(target.known, asked.name)
            if not ended:
                target.doubt = HALF_ENDED
        if found == {"yes"} and self.model.is_well(asked) and not self.world.shape.has_seal:
            assert ended, "a session that is there could not be ended"
        if ended:
            assert "yes" in found, "ended what was not there"
            is_known = self.model.is_recent(target.known, asked.name) or not self.has_registry
            self.model.over(target, asked, "operator", by_itself=is_known)

    @rule(replica=ANY_REPLICA, restores=st.booleans())
    def an_operator_copies(self, replica: int, restores: bool) -> None:
        asked = self._replica(replica)
        if restores:
            self._import(asked)
        else:
            self._export(asked)

    def _export(self, asked: Replica) -> None:
        try:
            page = self.world.call(asked.store.page, "", 1000)
        except StoreError:
            assert not self.model.is_well(asked)
            return
        assert not page.cursor
        self.backup = page.sessions

    def _import(self, asked: Replica) -> None:
        before = {session.key.name for session in self.model.sessions if self._is_there(session, asked)}
        try:
            self.world.call(asked.store.restore, self.backup)
        except StoreError:
            assert not self.model.is_well(asked)
            return
        listed = {one.name for one in self.backup}
        for session in self.model.sessions:
            if session.key.name in listed - before and self._is_there(session, asked):
                assert not session.ended or session.doubt, "a backup brought back what was ended"
                session.doubt, session.late_s = "restored", self.world.at_s

    def _is_there(self, session: Session, replica: Replica) -> bool:
        if self.has_registry:
            return self.server.answers and isinstance(self.server.stored(session.key), SessionRecord)
        return self.world.call(replica.store.show, session.key.name) is not None

    # --- what always holds -----------------------------------------------------------

    @invariant()
    def all_holds(self) -> None:
        self.nobody_was_served_as_somebody_else()
        self.nothing_is_counted_below_zero()
        self.every_key_in_redis_expires()
        self.redis_holds_what_history_says()
        self.the_streams_of_what_ended_end()

    def nobody_was_served_as_somebody_else(self) -> None:
        for backend in self.world.backends.values():
            assert backend.offences == []

    def nothing_is_counted_below_zero(self) -> None:
        for replica in self.world.replicas:
            for backend in replica.backends():
                assert min(backend.sessions, backend.inflight, backend.streams) >= 0, backend
            open_streams = sum(
                client.replica is replica for one in self.model.sessions for client in one.open_streams
            )
            assert replica.gateway.quotas.streams == open_streams == len(replica.gateway.live)

    def every_key_in_redis_expires(self) -> None:
        if self.has_registry and self.server.answers:
            for key, left_ms in self.server.entries():
                assert key.startswith((f"{PREFIX}session:", f"{PREFIX}claim:")), key
                assert 0 <= left_ms <= 1000 * (TTL_S + CACHE_TTL_S), (key, left_ms)

    def redis_holds_what_history_says(self) -> None:
        if self.has_registry and self.server.answers:
            for session in self.model.sessions:
                self._is_right(session)

    def _is_right(self, session: Session) -> None:
        held = self.server.stored(session.key)
        at_s = self.world.at_s
        if session.doubt:
            return
        if session.ended:
            is_remembered = session.is_told and at_s - session.ended_s < TTL_S
            assert held is ENDED or not is_remembered, ("forgotten", session, held)
        elif at_s - session.late_s > DEAD_S:
            assert held is None, ("immortal", session, held)
        elif at_s - session.used_s < KEPT_S and not self.world.shape.has_seal:
            assert isinstance(held, SessionRecord), ("lost", session, held)
            route = (held.backend, held.upstream_id or session.key.session_id)
            assert route == session.routes[-1], (session, held)

    def the_streams_of_what_ended_end(self) -> None:
        for session in self.model.sessions:
            if session.ended and session.is_told and not session.doubt:
                for client in session.open_streams:
                    is_deaf = client.replica.name in session.stale or client.replica.link != "well"
                    assert is_deaf or not self.has_registry, session

    # --- the end ---------------------------------------------------------------------

    def teardown(self) -> None:
        """All is well again, nobody comes any more: nothing may be left."""
        try:
            self._rest()
            self._nothing_is_left()
        finally:
            self.world.close()

    def _rest(self) -> None:
        for backend in self.world.backends.values():
            backend.is_up = True
        if self.server.is_frozen:
            self.redis_thaws()
        elif self.has_registry and not self.server.is_up:
            self.redis_starts_again(with_data=False)
        self._reconnected()
        for session in self.model.sessions:
            for client in session.open_streams:
                client.leave()
        self.world.pass_time(2 * DEAD_S)

    def _nothing_is_left(self) -> None:
        for replica in self.world.replicas:
            assert not replica.gateway.live
            assert len(replica.journal.records) == replica.requests, "a record for every exchange"
            for backend in replica.backends():
                assert (backend.sessions, backend.inflight, backend.streams) == (0, 0, 0), backend
            assert sum(replica.store.count(route) for route in replica.pools) == 0
            assert all(not wire.lines for wire in replica.wires)
        if self.has_registry:
            assert [key for key, _ in self.server.entries()] == []
