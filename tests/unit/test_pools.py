"""A pool at run time: who is in it, who serves next, what is found out, and how a backend leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import structs

from mcp_proxy import clock
from mcp_proxy.backends import Backend, Standing
from mcp_proxy.backends.absence import LOOK_S
from mcp_proxy.backends.departures import MEMORY_S
from mcp_proxy.backends.ejection import Rule
from mcp_proxy.errors import Phase, UpstreamError
from mcp_proxy.pools import Pool
from mcp_proxy.tasks import Tasks
from mcp_proxy.upstream import Call, Outgoing, Receiver
from tests.unit.fakes import settle
from tests.unit.poolside import endpoint, pool_of, unreachable

LOST = UpstreamError(Phase.HEAD, "lost", "gone", sent=True)
REFUSED = UpstreamError(Phase.CONNECT, "refused", "cannot connect", sent=False)


class IdleTransport:
    """Implements Transport for tests that send nothing."""

    def __init__(self) -> None:
        self.closed = 0
        self.is_there: bool | None = True
        self.probed = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    open_connections = 0
    is_idle = True

    def send(self, outgoing: Outgoing, receiver: Receiver, *, fresh: bool = False) -> Call:
        raise AssertionError("nothing is sent here")

    async def probe(self) -> bool | None:
        self.probed += 1
        await self.may_answer.wait()
        return self.is_there

    def sweep(self, at_s: float) -> None: ...

    async def aclose(self) -> None:
        self.closed += 1


class Poolside:
    """A pool of backends with the names in ``hosts``, and everything that it said."""

    def __init__(self, hosts: str = "ab", **policy: Any) -> None:
        self.transports: dict[str, list[IdleTransport]] = {}
        self.tasks = Tasks()
        self.said: list[object] = []
        self.pool: Pool = pool_of(self.dial, *hosts, tasks=self.tasks, **policy)
        self.pool.on_change = lambda pool: self.said.append("change")
        self.pool.on_ejected = lambda pool: self.said.append("ejected")
        self.pool.on_overdue = lambda backend: self.said.append(("overdue", backend.host))
        self.can_be_told = True
        self.pool.on_stranger = self.met_stranger

    def dial(self, backend: Backend) -> IdleTransport:
        self.transports.setdefault(backend.host, []).append(IdleTransport())
        return self.transports[backend.host][-1]

    def met_stranger(self, pool: Pool) -> bool:
        self.said.append("stranger")
        return self.can_be_told

    def __getitem__(self, host: str) -> Backend:
        return next(backend for backend in self.pool.backends if backend.host == host)

    @property
    def hosts(self) -> str:
        return "".join(sorted(backend.host for backend in self.pool.backends))

    def update(self, hosts: str, closing: str = "", by: str = "discovery") -> None:
        self.pool.update([*map(endpoint, hosts), *(endpoint(host, is_open=False) for host in closing)], by)

    def chosen(self, **how: bool) -> str:
        """Who is chosen in some turns."""
        found = {self.pool.next((), None, **how) for _ in range(12)}
        return "".join(sorted(backend.host for backend in found if backend is not None))

    async def pass_time(self, seconds: float = 0.0) -> None:
        """Sweep as if it were so much later, and let what that began end."""
        self.pool.sweep(clock.now() + seconds)
        await settle()


# --- who there is ------------------------------------------------------------------------------


def test_a_pool_begins_with_what_is_configured_and_nothing_learnt() -> None:
    side = Poolside(authorization=b"Bearer pool")

    assert (side.pool.name, side.hosts, side.pool.authorization) == ("pool", "ab", b"Bearer pool")
    assert not side.pool.is_stateless
    assert side.pool.streams == 0
    assert side["a"].warm_from_s is None


def test_a_backend_is_found_by_its_id_only() -> None:
    side = Poolside()

    assert side.pool.find("http://a:8000/mcp") is side["a"]
    assert side.pool.find("http://a:8000/other") is None
    assert side.pool.find("") is None
    assert side.pool.transport(side["b"]) is side.transports["b"][0]


def test_a_backend_that_comes_is_taken_in_and_starts_slowly() -> None:
    side = Poolside("a")

    side.update("ab")

    assert side.hosts == "ab"
    assert side["b"].warm_from_s is not None
    assert side["a"].warm_from_s is None
    assert side.chosen() == "ab"
    assert side.said == ["change"]


def test_a_known_backend_stays_the_same_when_only_its_weight_changes() -> None:
    side = Poolside()
    backend = side["a"]

    side.pool.update([endpoint("a", weight=3), endpoint("b")], "reload")

    assert side["a"] is backend
    assert backend.weight == 3
    assert len(side.transports["a"]) == 1


async def test_a_backend_that_is_not_named_any_more_is_drained_and_leaves_when_its_time_is_over() -> None:
    side = Poolside(drain_s=0.0)
    gone = side["b"]
    gone.inflight = 1

    side.update("a")
    assert gone.standing is Standing.CLOSED
    assert side.chosen() == "a"
    await side.pass_time()
    assert side.said == ["change", ("overdue", "b")]
    assert side.hosts == "ab", "something is still in progress there"

    gone.inflight = 0
    await side.pass_time()
    assert side.hosts == "a"
    assert side.transports["b"][0].closed == 1
    assert side.pool.find(gone.id) is None
    assert side.pool.has_left(gone.id)


async def test_a_backend_that_is_drained_keeps_its_sessions_until_its_time_is_over() -> None:
    side = Poolside(drain_s=3600.0)
    side.update("a")

    await side.pass_time()

    assert side.hosts == "ab"
    assert not side.pool.is_lost(side["b"])
    assert side.pool.find("http://b:8000/mcp") is side["b"]


async def test_a_backend_that_leaves_and_cannot_be_reached_is_lost_at_once() -> None:
    side = Poolside(drain_s=3600.0, lost_after_s=3600.0)
    side.update("a")
    unreachable(side.pool, side["b"])

    assert side.pool.is_lost(side["b"])
    await side.pass_time()
    assert side.hosts == "a"


def test_a_backend_that_comes_back_in_time_stays() -> None:
    side = Poolside()
    backend = side["b"]
    side.update("a")

    side.update("ab")

    assert side["b"] is backend
    assert backend.drain is None
    assert side.chosen() == "ab"


def test_a_terminating_backend_is_drained_though_it_is_still_named() -> None:
    side = Poolside()

    side.update("a", closing="b")

    assert side["b"].drain is not None
    assert side["b"].drain.by == "discovery"
    assert side.chosen() == "a"
    side.update("ab")
    assert side.chosen() == "ab"


async def test_a_terminating_backend_is_remembered_for_as_long_as_it_is_named() -> None:
    side = Poolside(drain_s=0.0)
    side.update("a", closing="b")

    await side.pass_time()
    assert side.hosts == "ab"
    assert side.pool.is_lost(side["b"])
    side.update("a")
    await side.pass_time()
    assert side.hosts == "a"


def test_a_pool_that_loses_all_its_backends_has_nobody_to_choose() -> None:
    side = Poolside()

    side.update("")

    assert side.chosen() == ""
    assert not side.pool.has_other([])


# --- draining by hand --------------------------------------------------------------------------


def test_what_an_operator_drains_stays_drained_whatever_discovery_says() -> None:
    side = Poolside()
    side.pool.drain(side["b"], "operator", 60.0)

    side.update("ab")

    assert side["b"].drain is not None
    assert side.chosen() == "a"
    assert side.pool.undrain(side["b"])
    assert side.chosen() == "ab"


def test_a_backend_that_nobody_names_any_more_cannot_be_made_to_stay() -> None:
    side = Poolside()
    side.update("a")

    assert not side.pool.undrain(side["b"])
    assert side.chosen() == "a"


def test_an_operator_may_change_how_long_a_drain_takes() -> None:
    side = Poolside(drain_s=3600.0)
    side.update("a")
    backend = side["b"]
    assert not side.pool.is_lost(backend)

    side.pool.drain(backend, "operator", 0.0)

    assert side.pool.is_lost(backend)


async def test_a_backend_that_was_drained_by_hand_is_still_there_afterwards() -> None:
    side = Poolside()
    side["b"].sessions = 7
    side.pool.drain(side["b"], "operator", 0.0)
    drain = side["b"].drain

    await side.pass_time()
    await side.pass_time()

    assert side.hosts == "ab"
    assert side.said == [("overdue", "b")]
    assert drain is not None
    assert drain.sessions == 7


def test_a_drained_backend_that_cannot_be_reached_may_come_back_until_it_is_lost() -> None:
    side = Poolside(lost_after_s=30.0)
    side.pool.drain(side["b"], "operator")
    unreachable(side.pool, side["b"], 29.0)
    assert not side.pool.is_lost(side["b"])
    unreachable(side.pool, side["b"], 31.0)
    assert side.pool.is_lost(side["b"])


# --- strangers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("unknown_after_s", "has_left"), [(3600.0, False), (0.0, True)])
def test_a_backend_that_only_others_know_is_given_time_to_be_found(
    unknown_after_s: float, has_left: bool
) -> None:
    side = Poolside(unknown_after_s=unknown_after_s)

    assert side.pool.has_left("http://c:8000/mcp") is has_left
    assert side.said == ["stranger"]


def test_nothing_is_concluded_while_nobody_can_say_which_backends_there_are() -> None:
    side = Poolside(unknown_after_s=0.0)
    side.can_be_told = False
    assert not side.pool.has_left("http://c:8000/mcp")
    side.can_be_told = True
    assert side.pool.has_left("http://c:8000/mcp")


async def test_an_address_that_was_given_up_long_ago_may_be_that_of_another_backend() -> None:
    time = [1000.0]
    pool = pool_of(lambda _: IdleTransport(), "a", "b", clock=lambda: time[0], drain_s=0.0)
    pool.update([endpoint("a")], "discovery")
    pool.sweep(time[0])
    assert pool.has_left("http://b:8000/mcp")
    time[0] += MEMORY_S
    assert not pool.has_left("http://b:8000/mcp")
    time[0] += pool.policy.unknown_after_s
    assert pool.has_left("http://b:8000/mcp")
    await settle()


async def test_a_backend_that_leaves_is_looked_for_and_lost_as_soon_as_it_is_gone() -> None:
    side = Poolside(drain_s=3600.0)
    side.update("a")
    await side.pass_time(LOOK_S)
    assert side.hosts == "ab"
    side.transports["b"][0].is_there = False

    await side.pass_time(2 * LOOK_S)
    await side.pass_time()

    assert side.hosts == "a"
    assert side.said == ["change", ("overdue", "b")]
    assert [transports[0].probed for transports in side.transports.values()] == [0, 2]


def test_a_backend_that_is_about_to_leave_cannot_be_made_to_stay() -> None:
    side = Poolside()
    side.pool.drain(side["b"], "operator")
    side.update("a", closing="b")
    assert not side.pool.undrain(side["b"])
    side.update("ab")
    assert side.pool.undrain(side["b"])


async def test_a_backend_that_has_left_and_come_back_is_as_good_as_any() -> None:
    side = Poolside(drain_s=0.0)
    side.update("a")
    await side.pass_time()
    assert side.pool.has_left("http://b:8000/mcp")

    side.update("ab")

    assert side.chosen() == "ab"
    assert not side.pool.has_left("http://b:8000/mcp") or side.pool.find("http://b:8000/mcp") is not None


# --- other settings --------------------------------------------------------------------------------


def test_other_settings_leave_backends_as_they_are() -> None:
    side = Poolside(eject=Rule(1, 60.0, 0.5))
    backend = side["a"]
    side.pool.failed(backend, LOST)
    side.pool.drain(side["b"], "operator")
    assert side.chosen() == "a", "nobody better is left"

    policy = structs.replace(side.pool.policy, balance="least_inflight", authorization=b"other")
    side.pool.configure(policy)

    assert side["a"] is backend
    assert side["a"].standing is Standing.POOR
    assert side["b"].standing is Standing.CLOSED
    assert side.pool.authorization == b"other"


def test_new_connections_are_made_with_new_settings_and_the_old_ones_handed_out() -> None:
    side = Poolside("a")

    old = side.pool.reconnect(side.dial)

    assert old == [side.transports["a"][0]]
    assert side.pool.transport(side["a"]) is side.transports["a"][1]
    assert side.transports["a"][0].closed == 0


# --- who is next -----------------------------------------------------------------------------------


def test_the_next_backend_is_one_that_was_not_tried() -> None:
    side = Poolside()
    a, b = side["a"], side["b"]

    assert side.chosen() == "ab"
    assert {side.pool.next([a.id]) for _ in range(3)} == {b}
    assert side.pool.next((a.id, b.id)) is None


def test_a_backend_that_was_just_refused_comes_last() -> None:
    side = Poolside()
    side.pool.failed(side["a"], REFUSED)

    assert side.chosen() == "b"
    assert side.pool.next([side["b"].id]) is side["a"]


def test_asking_for_another_backend_takes_no_turn() -> None:
    side = Poolside()
    a, b = side["a"], side["b"]
    first = side.pool.next()

    assert side.pool.has_other([])
    assert side.pool.has_other([a.id])
    assert side.pool.has_other((b.id,))
    assert not side.pool.has_other([a.id, b.id])
    assert side.pool.next() is not first


def test_modern_requests_go_to_those_that_speak_it() -> None:
    side = Poolside("abc")
    side.pool.learn_era(side["b"], True)
    side.pool.learn_era(side["c"], False)

    assert side.chosen(is_modern=True) == "b"
    assert side.chosen() == "abc"


@pytest.mark.parametrize(
    ("answers", "is_stateless"),
    [([], False), ([False], True), ([True], False), ([False, True], False), ([True, False], False)],
)
def test_one_session_id_settles_that_the_backends_keep_sessions(
    answers: list[bool], is_stateless: bool
) -> None:
    side = Poolside()

    for has_sessions in answers:
        side.pool.learn_sessions(has_sessions)

    assert side.pool.is_stateless is is_stateless


# --- what is found out --------------------------------------------------------------------------------


def test_a_backend_that_fails_again_and_again_is_ejected_and_tried_by_one_request_later() -> None:
    side = Poolside(eject=Rule(2, 0.0, 0.5))
    a = side["a"]
    side.pool.failed(a, LOST)
    assert (a.standing, a.is_suspect) == (Standing.GOOD, True)
    side.pool.answered(a, 503)
    assert side.said == ["ejected"]
    assert side.chosen() == "b"

    side.pool.sweep(clock.now() + 60.0)
    assert a.standing is Standing.TRIAL
    assert side.pool.next() is a
    assert side.chosen() == "b", "one request is enough to find out"
    side.pool.answered(a, 200)
    assert (a.standing, a.is_suspect) == (Standing.GOOD, False)
    assert side.chosen() == "ab"


@pytest.mark.parametrize(
    "error",
    [
        UpstreamError(Phase.CONNECT, "unresolved", "no name", sent=False),
        UpstreamError(Phase.CONNECT, "exhausted", "no descriptor", sent=False),
        UpstreamError(Phase.HEAD, "lost", "closed while idle", sent=True, stale=True),
    ],
)
def test_what_is_not_the_fault_of_a_backend_does_not_count(error: UpstreamError) -> None:
    side = Poolside(eject=Rule(1, 60.0, 0.5))

    side.pool.failed(side["a"], error)

    assert side["a"].standing is Standing.GOOD
    assert side["a"].unreachable_since_s is None


def test_an_error_of_a_server_is_still_an_answer() -> None:
    side = Poolside()
    unreachable(side.pool, side["a"], 60.0)

    side.pool.answered(side["a"], 500)

    assert side["a"].unreachable_since_s is None


def test_checks_decide_about_the_unbound_only() -> None:
    side = Poolside()
    side.pool.checked(side["a"], False)
    assert side.chosen() == "b"
    assert side.pool.find(side["a"].id) is side["a"]
    assert not side.pool.is_lost(side["a"])
    side.pool.checked(side["a"], True)
    assert side.chosen() == "ab"


@pytest.mark.parametrize(("lost_after_s", "is_lost"), [(3600.0, False), (45.0, True), (30.0, True)])
def test_a_backend_is_lost_when_it_was_unreachable_for_long(lost_after_s: float, is_lost: bool) -> None:
    side = Poolside(lost_after_s=lost_after_s)
    unreachable(side.pool, side["a"], 45.0)

    assert side.pool.is_lost(side["a"]) is is_lost
    assert not side.pool.is_lost(side["b"])
    side.pool.reached(side["a"])
    assert not side.pool.is_lost(side["a"])


# --- looking for those that are away ---------------------------------------------------------------------


async def test_absent_backends_are_looked_for_at_intervals_and_one_look_at_a_time() -> None:
    side = Poolside()
    transport = side.transports["a"][0]
    transport.is_there = False
    transport.may_answer.clear()
    unreachable(side.pool, side["a"])

    await side.pass_time()
    assert transport.probed == 0
    await side.pass_time(LOOK_S)
    assert transport.probed == 1
    side.pool.refused(side["a"])
    await side.pass_time(9 * LOOK_S)
    assert transport.probed == 1, "the look is still on its way"
    transport.may_answer.set()
    await settle()
    await side.pass_time(2 * LOOK_S)
    assert transport.probed == 2
    assert side.transports["b"][0].probed == 0


async def test_a_look_that_gets_through_ends_the_absence() -> None:
    side = Poolside()
    unreachable(side.pool, side["a"], 60.0)

    await side.pass_time(LOOK_S)

    assert side["a"].unreachable_since_s is None
    assert side.chosen() == "ab"
    await side.pass_time(9 * LOOK_S)
    assert side.transports["a"][0].probed == 1


@pytest.mark.parametrize("is_there", [False, None])
async def test_a_look_that_fails_late_does_not_undo_that_the_backend_was_reached(
    is_there: bool | None,
) -> None:
    side = Poolside()
    transport = side.transports["a"][0]
    transport.is_there = is_there
    transport.may_answer.clear()
    unreachable(side.pool, side["a"])
    await side.pass_time(LOOK_S)

    side.pool.answered(side["a"], 200)
    transport.may_answer.set()
    await settle()

    assert side["a"].unreachable_since_s is None


@pytest.mark.parametrize("is_there", [False, None])
async def test_a_look_that_finds_nothing_prolongs_the_absence(is_there: bool | None) -> None:
    side = Poolside(lost_after_s=30.0)
    unreachable(side.pool, side["a"], 60.0)
    since_s = side["a"].unreachable_since_s
    side.transports["a"][0].is_there = is_there

    await side.pass_time(LOOK_S)

    assert side["a"].unreachable_since_s == since_s
    assert side.pool.is_lost(side["a"])
    await side.pass_time(2 * LOOK_S)
    assert side.transports["a"][0].probed == 2


async def test_a_look_at_a_backend_that_has_left_meanwhile_changes_nothing() -> None:
    side = Poolside(drain_s=0.0)
    transport = side.transports["b"][0]
    transport.may_answer.clear()
    gone = side["b"]
    unreachable(side.pool, gone)
    await side.pass_time(LOOK_S)
    side.update("a")
    await side.pass_time()
    assert side.hosts == "a"

    transport.may_answer.set()
    await settle()

    assert side.chosen() == "a"
    assert gone.unreachable_since_s is not None


# --- the end --------------------------------------------------------------------------------------------


async def test_closing_closes_every_transport() -> None:
    side = Poolside()

    await side.pool.aclose()

    assert [transports[0].closed for transports in side.transports.values()] == [1, 1]


class SlowToClose(IdleTransport):
    async def aclose(self) -> None:
        await self.may_answer.wait()
        await super().aclose()


async def test_a_backend_that_leaves_while_its_pool_is_closed_keeps_nobody_from_it() -> None:
    side = Poolside(drain_s=0.0)
    slow = [SlowToClose(), SlowToClose()]
    slow[0].may_answer.clear()
    dialled = iter(slow)
    side.pool.reconnect(lambda backend: next(dialled))
    side.update("a")
    closing = asyncio.ensure_future(side.pool.aclose())
    await settle()
    await side.pass_time()
    assert side.hosts == "a"

    slow[0].may_answer.set()
    await closing

    assert [transport.closed > 0 for transport in slow] == [True, True]


def test_a_pool_describes_itself_and_its_backends() -> None:
    side = Poolside()

    assert repr(side.pool) == f"<Pool pool [{side['a']!r}, {side['b']!r}]>"
