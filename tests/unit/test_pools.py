"""A pool at run time: who serves it, through what, and when one is lost."""

from __future__ import annotations

import pytest

from mcp_proxy import clock
from mcp_proxy.backends import AVOID_S, Backend
from mcp_proxy.backends.balance import RoundRobin
from mcp_proxy.pools import Pool
from mcp_proxy.upstream import Call, Outgoing, Receiver, Transport


class IdleTransport:
    """Implements Transport for tests that send nothing."""

    def __init__(self) -> None:
        self.closed = 0
        self.is_there = True
        self.probed = 0

    @property
    def open_connections(self) -> int:
        return 0

    def send(self, outgoing: Outgoing, receiver: Receiver, *, fresh: bool = False) -> Call:
        raise AssertionError("nothing is sent here")

    async def probe(self) -> bool:
        self.probed += 1
        return self.is_there

    def sweep(self, at_s: float) -> None:
        raise AssertionError("nothing is due here")

    async def aclose(self) -> None:
        self.closed += 1


A, B = (Backend(name, 80, b"/mcp") for name in "ab")


def make(
    *, lost_after_s: float = 3600.0, authorization: bytes | None = None
) -> tuple[Pool, list[IdleTransport]]:
    idle = [IdleTransport(), IdleTransport()]
    transports: dict[str, Transport] = {A.id: idle[0], B.id: idle[1]}
    pool = Pool(
        "main", [A, B], transports, RoundRobin(), lost_after_s=lost_after_s, authorization=authorization
    )
    return pool, idle


@pytest.fixture(autouse=True)
def _reachable() -> None:
    A.reached()
    B.reached()


def test_a_pool_begins_with_what_is_configured_and_nothing_learnt() -> None:
    pool, _ = make(authorization=b"Bearer pool")

    assert (pool.name, pool.backends, pool.authorization) == ("main", (A, B), b"Bearer pool")
    assert not pool.is_stateless
    assert pool.streams == 0


def test_a_backend_is_found_by_its_id_only() -> None:
    pool, _ = make()

    assert pool.find(A.id) is A
    assert pool.find("http://a:80/other") is None
    assert pool.find("") is None


def test_each_backend_has_its_transport() -> None:
    pool, idle = make()

    assert pool.transport(A) is idle[0]
    assert pool.transport(B) is idle[1]


def test_the_next_backend_is_one_that_was_not_tried() -> None:
    pool, _ = make()

    assert {pool.next(), pool.next()} == {A, B}
    assert {pool.next([A.id]) for _ in range(3)} == {B}
    assert pool.next((A.id, B.id)) is None


def test_a_backend_that_was_just_refused_comes_last() -> None:
    pool, _ = make()
    pool.refused(A)

    assert {pool.next() for _ in range(3)} == {B}
    assert pool.next([B.id]) is A


def test_asking_for_another_backend_takes_no_turn() -> None:
    pool, _ = make()
    first = pool.next()

    assert pool.has_other([])
    assert pool.has_other([A.id])
    assert pool.has_other((B.id,))
    assert not pool.has_other([A.id, B.id])
    assert pool.next() is not first


@pytest.mark.parametrize(
    ("answers", "is_stateless"),
    [([], False), ([False], True), ([True], False), ([False, True], False), ([True, False], False)],
)
def test_one_session_id_settles_that_the_backends_keep_sessions(
    answers: list[bool], is_stateless: bool
) -> None:
    pool, _ = make()

    for has_sessions in answers:
        pool.learn_sessions(has_sessions)

    assert pool.is_stateless is is_stateless


@pytest.mark.parametrize(("lost_after_s", "is_lost"), [(3600.0, False), (45.0, True), (30.0, True)])
def test_a_backend_is_lost_when_it_was_unreachable_for_long(lost_after_s: float, is_lost: bool) -> None:
    pool, _ = make(lost_after_s=lost_after_s)
    A.refused(clock.now() - 45.0)
    pool.refused(A)

    assert pool.is_lost(A) is is_lost
    assert not pool.is_lost(B)
    A.reached()
    assert not pool.is_lost(A)


async def test_absent_backends_are_looked_for_at_intervals_and_by_one_probe_at_a_time() -> None:
    pool, transports = make()
    transports[0].is_there = False
    since_s = clock.now()
    A.refused(since_s)

    assert pool.absent(since_s + AVOID_S - 0.1) == []
    assert pool.absent(since_s + AVOID_S) == [A]
    assert pool.absent(since_s + 9 * AVOID_S) == [], "the probe is still on its way"
    await pool.probe(A)
    assert pool.absent(clock.now()) == []
    assert pool.absent(clock.now() + 2 * AVOID_S) == [A]
    A.reached()
    assert pool.absent(clock.now() + 9 * AVOID_S) == []


async def test_a_probe_that_fails_late_does_not_undo_that_the_backend_was_reached() -> None:
    pool, transports = make()
    transports[0].is_there = False

    await pool.probe(A)

    assert A.unreachable_since_s is None


async def test_a_probe_that_gets_through_ends_the_absence() -> None:
    pool, transports = make()
    A.refused(clock.now() - 60.0)

    await pool.probe(A)

    assert A.unreachable_since_s is None
    assert [transport.probed for transport in transports] == [1, 0]


async def test_a_probe_that_fails_prolongs_the_absence() -> None:
    pool, transports = make(lost_after_s=30.0)
    since_s = clock.now() - 60.0
    A.refused(since_s)
    transports[0].is_there = False

    await pool.probe(A)

    assert A.unreachable_since_s == since_s
    assert A.avoid_until_s > clock.now()
    assert pool.is_lost(A)


async def test_closing_closes_every_transport() -> None:
    pool, idle = make()

    await pool.aclose()

    assert [transport.closed for transport in idle] == [1, 1]


def test_a_pool_describes_itself_and_its_backends() -> None:
    pool, _ = make()

    assert repr(pool) == f"<Pool main [{A!r}, {B!r}]>"
