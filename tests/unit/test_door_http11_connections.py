"""How many connections one client address may have, and what those above that are told."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from msgspec import structs

from mcp_proxy.downstream.settings import SHED_CONNECTIONS, SHED_OF_ONE
from tests.unit.doorway import Door, ScriptedHandler, post, settings
from tests.unit.fakes import FakeTransport, settle


class Front:
    """A process that clients of several addresses connect to."""

    def __init__(self, limit: int | None, *trusted: str, connections: int = 1000) -> None:
        self.handler = ScriptedHandler()
        self.process = settings(self.handler, connections_limit=connections, client_connections=limit)
        self.trust(*trusted)

    def trust(self, *networks: str) -> None:
        self.follow(trusted_proxies=tuple(ipaddress.ip_network(network) for network in networks))

    def follow(self, **limits: Any) -> None:
        self.process.follow(structs.replace(self.process.limits, **limits))

    def door(self, peer: str | None) -> Door:
        """A connection from ``peer``; None: through a Unix socket."""
        transport = FakeTransport(peername="" if peer is None else (peer, 50000))
        return Door(self.handler, process=self.process, transport=transport)


def told(door: Door) -> tuple[int, str]:
    """Status and reason that the first request gets."""
    door.feed(post(b"x"))
    answer = door.response()
    return answer.status, answer.reason


SERVED = (200, "")
TOO_MANY = (429, "too_many_requests")


async def test_connections_of_one_above_its_limit_are_told_429_and_all_others_are_served() -> None:
    front = Front(2)
    first, second, third = (front.door("192.0.2.1") for _ in range(3))
    other = front.door("192.0.2.2")
    assert told(third) == TOO_MANY
    assert third.transport.has_sent_eof
    assert [told(door) for door in (first, second, other)] == [SERVED] * 3
    assert not any(door.transport.has_sent_eof for door in (first, second, other))


async def test_a_client_that_is_told_429_is_told_when_to_come_back() -> None:
    front = Front(1)
    front.door("192.0.2.1")
    surplus = front.door("192.0.2.1")
    assert told(surplus) == TOO_MANY
    assert b"retry-after: 1\r\n" in surplus.sent
    assert b"connection: close\r\n" in surplus.sent
    assert surplus.served == []


async def test_a_connection_that_ends_makes_room_for_another() -> None:
    front = Front(1)
    for _ in range(3):
        door = front.door("192.0.2.1")
        assert told(door) == SERVED
        surplus = front.door("192.0.2.1")
        assert told(surplus) == TOO_MANY
        for ended in (door, surplus):
            ended.transport.peer_resets()
        await settle()


async def test_a_flood_of_one_client_is_cut_off_and_counted_back() -> None:
    front = Front(1)
    doors = [front.door("192.0.2.1") for _ in range(SHED_OF_ONE + 5)]
    await settle()
    assert [door.transport.fate for door in doors] == [""] * (SHED_OF_ONE + 1) + ["aborted"] * 4
    assert told(front.door("192.0.2.2")) == SERVED
    for door in doors:
        door.transport.peer_resets()
    await settle()
    assert front.process.connections == 1
    assert told(front.door("192.0.2.1")) == SERVED


@pytest.mark.parametrize(
    ("peers", "is_one"),
    [
        (("192.0.2.1", "::ffff:192.0.2.1"), True),
        (("2001:db8:1:1::1", "2001:db8:1:1:ffff::2"), True),
        (("2001:db8:1:1::1", "2001:db8:1:2::1"), False),
        (("192.0.2.1", "192.0.2.2"), False),
    ],
)
async def test_an_ipv6_network_is_one_client(peers: tuple[str, str], is_one: bool) -> None:
    front = Front(1)
    assert [told(front.door(peer)) for peer in peers] == [SERVED, TOO_MANY if is_one else SERVED]


@pytest.mark.parametrize("peer", ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::7", None])
async def test_trusted_proxies_and_local_sockets_have_any_number(peer: str | None) -> None:
    front = Front(1, "10.0.0.0/8", "2001:db8::/32")
    doors = [front.door(peer) for _ in range(SHED_OF_ONE + 10)]
    assert [told(door) for door in doors] == [SERVED] * len(doors)
    assert told(front.door("192.0.2.1")) == SERVED
    assert told(front.door("192.0.2.1")) == TOO_MANY


async def test_without_a_limit_one_client_may_have_them_all() -> None:
    front = Front(None)
    assert [told(front.door("192.0.2.1")) for _ in range(100)] == [SERVED] * 100


async def test_a_trusted_proxy_is_bound_by_the_limit_of_the_process() -> None:
    front = Front(1, "10.0.0.0/8", connections=2)
    doors = [front.door("10.0.0.1") for _ in range(2 + SHED_CONNECTIONS + 1)]
    await settle()
    assert told(doors[1]) == SERVED
    assert told(doors[2]) == (503, "overloaded")
    assert [door.transport.fate for door in doors[-2:]] == ["", "aborted"]


async def test_limit_and_proxies_may_change_while_there_are_connections() -> None:
    front = Front(None)
    doors = [front.door("192.0.2.1") for _ in range(3)]
    front.follow(client_connections=3)
    assert told(front.door("192.0.2.1")) == TOO_MANY
    front.trust("192.0.2.0/24")
    assert told(front.door("192.0.2.1")) == SERVED
    front.trust()
    for door in doors:
        door.transport.peer_resets()
    await settle()
    assert told(front.door("192.0.2.1")) == SERVED
