"""Connections to backends over all transports: idle ones give way, those in use never do."""

from __future__ import annotations

from mcp_proxy.upstream.berths import Berths
from tests.tools.recording import Conn, Seen
from tests.unit.fakes import until
from tests.unit.uplink import answer, never, uplink


class Quay:
    """A transport that has ``idle`` connections."""

    def __init__(self, idle: int = 0) -> None:
        self.idle = idle

    def close_idle(self) -> bool:
        self.idle -= 1
        return self.idle >= 0


def test_nothing_is_closed_below_the_limit() -> None:
    berths, one = Berths(2), Quay(idle=2)
    assert [berths.take(one) for _ in range(2)] == [False, False]
    assert (one.idle, berths.taken) == (2, 2)


def test_above_the_limit_one_idle_connection_is_closed_for_each_that_is_opened() -> None:
    berths, busy, idle, other = Berths(3), Quay(), Quay(idle=2), Quay()
    for transport in (busy, idle, idle):
        berths.take(transport)
    assert [berths.take(other) for _ in range(3)] == [True, True, False]


def test_a_connection_that_is_closed_makes_room() -> None:
    berths, one, other = Berths(1), Quay(idle=1), Quay()
    berths.take(one)
    berths.leave(one)
    assert (berths.take(other), berths.taken, one.idle) == (False, 1, 1)


def test_who_has_no_connection_is_not_asked() -> None:
    berths, gone, other = Berths(1), Quay(idle=1), Quay()
    berths.take(gone)
    berths.leave(gone)
    assert [berths.take(other) for _ in range(2)] == [False, False]
    assert gone.idle == 1


async def test_an_idle_connection_of_another_transport_is_closed_for_a_new_one() -> None:
    async with uplink() as rig:
        berths = Berths(1)
        one, other = (rig.to("127.0.0.1", rig.backend.port, berths=berths) for _ in range(2))
        assert (await rig.ask(transport=one)).body == b"ok"
        assert (await rig.ask(transport=other)).body == b"ok"
        await rig.closed(one)
        assert (other.open_connections, berths.taken) == (1, 1)
        await other.aclose()
        await rig.closed(other)
        assert berths.taken == 0


async def test_a_connection_in_use_stays_and_the_new_one_is_opened_all_the_same() -> None:
    async with uplink() as rig:
        berths = Berths(1)
        one, other = (rig.to("127.0.0.1", rig.backend.port, berths=berths) for _ in range(2))
        met: list[Seen] = []

        async def slow_at_first(request: Seen, conn: Conn) -> None:
            met.append(request)
            await (answer if len(met) > 1 else never)(request, conn)

        rig.backend.handler = slow_at_first
        _, call = rig.send(transport=one)
        await until(lambda: bool(met))
        assert (await rig.ask(transport=other)).body == b"ok"
        assert (one.open_connections, berths.taken) == (1, 2)
        call.cancel()
        for transport in (one, other):
            await transport.aclose()
            await rig.closed(transport)
        assert berths.taken == 0


async def test_a_dial_that_fails_or_is_cancelled_takes_no_berth() -> None:
    async with uplink() as rig:
        berths = Berths(1)
        await rig.backend.refuse()
        nobody = rig.to("127.0.0.1", rig.backend.port, berths=berths)
        assert (await rig.ask(transport=nobody)).error is not None
        _, call = rig.send(transport=nobody)
        await until(lambda: berths.taken == 1)
        call.cancel()
        await until(lambda: berths.taken == 0)
