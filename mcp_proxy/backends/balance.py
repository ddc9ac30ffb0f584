"""Who is next of backends that are equally good: the ways of balancing.

Rules of this file: pure. A decision is O(1) or O(log n) in backends, and O(tried) when a request is tried
again. A backend that joins takes part from now on: it has missed nothing that it would have to
make up for. ``weight`` is the effective one: less than ``backend.weight`` while a backend is warming up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, Protocol

from mcp_proxy.backends import Backend
from mcp_proxy.backends.levels import Levels
from mcp_proxy.backends.urn import Urn

ROUNDS: Final = 8.0
"""So far ahead of or behind the others a backend may be when ties are decided. Among equals nobody gets
near; but one that was busy, or quick, for an hour is not paid back for an hour."""

Random = Callable[[], float]


class Balance(Protocol):
    """Some backends and who of them is next."""

    def put(self, backend: Backend, weight: float) -> None:
        """Take it in, or note that its weight or load has changed."""

    def drop(self, backend: Backend) -> None:
        """Forget it, if it is known."""

    def recount(self, backend: Backend) -> None:
        """The sessions of one that is known have changed."""

    def next(self, tried: Collection[str], *, opens_session: bool) -> Backend | None:
        """Whose id is not in ``tried``; None if there is none."""


class LeastInflight:
    """The better of two that are drawn by weight: fewer requests in flight by weight. That is nearly as even
    as the best of all (Mitzenmacher 2001), costs two looks, and replicas of the proxy that know nothing of
    each other do not all run after the same backend. Ties go to the one that was chosen less by weight, so
    idle backends are used evenly."""

    __slots__ = ("_present", "_share_of", "_shares", "_turn_of", "_urn", "_weight_of")

    def __init__(self, random: Random) -> None:
        self._urn = Urn(random)
        self._weight_of: dict[Backend, float] = {}
        self._turn_of: dict[Backend, float] = {}
        """Choices by weight so far."""
        self._present = 0.0
        """Where all would stand if every choice had been shared by weight."""
        self._share_of: dict[Backend, int] = {}
        self._shares = 0

    def put(self, backend: Backend, weight: float) -> None:
        self._urn.put(backend)
        self._weight_of[backend] = weight
        self._turn_of.setdefault(backend, self._present)
        self._shares += backend.weight - self._share_of.get(backend, 0)
        self._share_of[backend] = backend.weight

    def drop(self, backend: Backend) -> None:
        if backend in self._weight_of:
            self._urn.drop(backend)
            del self._weight_of[backend], self._turn_of[backend]
            self._shares -= self._share_of.pop(backend)

    def recount(self, backend: Backend) -> None:
        pass

    def next(self, tried: Collection[str], *, opens_session: bool) -> Backend | None:
        drawn = self._urn.draw(tried)
        if drawn is None:
            return None
        one, other = drawn
        weight_of, turn_of = self._weight_of, self._turn_of
        load = one.inflight / weight_of[one]
        other_load = other.inflight / weight_of[other]
        if other_load < load or (other_load == load and turn_of[other] < turn_of[one]):
            one = other
        present = self._present
        turn = min(max(turn_of[one], present - ROUNDS), present + ROUNDS)
        turn_of[one] = turn + 1 / weight_of[one]
        self._present = present + 1 / self._shares
        return one


class LeastSessions:
    """A new session goes to where there are fewest by weight, counting those that are being opened and the
    one to come; ties in turn. All other requests are balanced by what is in flight: where no session
    binds them, sessions say nothing about load."""

    __slots__ = ("_cold", "_levels", "_requests")

    def __init__(self, random: Random) -> None:
        self._levels = Levels()
        self._requests = LeastInflight(random)
        self._cold: dict[Backend, float] = {}
        """The weight of those where it is not ``backend.weight``: few, so that looking there costs little."""

    def put(self, backend: Backend, weight: float) -> None:
        if weight == backend.weight:
            self._cold.pop(backend, None)
        else:
            self._cold[backend] = weight
        self._requests.put(backend, weight)
        self.recount(backend)

    def drop(self, backend: Backend) -> None:
        self._levels.drop(backend)
        self._requests.drop(backend)
        self._cold.pop(backend, None)

    def recount(self, backend: Backend) -> None:
        weight = self._cold.get(backend) or backend.weight
        self._levels.put(backend, (backend.sessions + backend.opening + 1) / weight)

    def next(self, tried: Collection[str], *, opens_session: bool) -> Backend | None:
        if not opens_session:
            return self._requests.next(tried, opens_session=False)
        backend = self._levels.first(tried)
        if backend is not None:
            self._levels.defer(backend)
        return backend


class _Turns:
    """When it is somebody's turn, in rounds: counted from a start, not added up, because thirds add up to
    less than one."""

    __slots__ = ("start", "taken", "weight")

    def __init__(self, start: float, weight: float) -> None:
        self.start = start
        self.taken = 0
        self.weight = weight

    @property
    def due(self) -> float:
        return self.start + (self.taken + 1) / self.weight

    def weigh(self, weight: float, present: float) -> None:
        """What is left to wait shrinks or grows with the weight."""
        wait = max(0.0, self.due - present) * self.weight
        self.start = present + (wait - 1) / weight
        self.taken = 0
        self.weight = weight


class RoundRobin:
    """In turn, smooth by weight: a backend of weight n is due n times a round, at even intervals."""

    __slots__ = ("_levels", "_present", "_turns_of")

    def __init__(self, random: Random) -> None:
        self._levels = Levels()
        self._turns_of: dict[Backend, _Turns] = {}
        self._present = 0.0

    def put(self, backend: Backend, weight: float) -> None:
        turns = self._turns_of.get(backend)
        if turns is None:
            turns = self._turns_of[backend] = _Turns(self._present, weight)
        elif turns.weight != weight:
            turns.weigh(weight, self._present)
        self._levels.put(backend, turns.due)

    def drop(self, backend: Backend) -> None:
        self._levels.drop(backend)
        self._turns_of.pop(backend, None)

    def recount(self, backend: Backend) -> None:
        pass

    def next(self, tried: Collection[str], *, opens_session: bool) -> Backend | None:
        backend = self._levels.first(tried)
        if backend is not None:
            turns = self._turns_of[backend]
            self._present = max(self._present, turns.due)
            turns.taken += 1
            self._levels.put(backend, turns.due)
        return backend


BALANCES: Final[dict[str, Callable[[Random], Balance]]] = {
    "least_sessions": LeastSessions,
    "least_inflight": LeastInflight,
    "round_robin": RoundRobin,
    "hash": LeastInflight,  # what has nothing to hash
}
