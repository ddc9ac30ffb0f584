"""Heads that a door knows: of clients that number or trace their calls, and of proxies that mix clients.

Rules of this file: what is served is what a door without a memory serves. Whether a head was parsed is seen
by whether the gateway was asked.
"""

from __future__ import annotations

from ipaddress import ip_network
from random import Random

import pytest

from mcp_proxy.wire import Rejection, Request
from tests.unit.doorway import BODY_LIMIT, Door, ScriptedHandler, post, settings

TRUSTED = [ip_network("192.0.2.7/32")]


class Counting(ScriptedHandler):
    """Counts what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bytes] = []
        self.judge = self._count

    def _count(self, request: Request) -> Rejection | None:
        self.asked.append(request.target)
        return None


def call(number: int, client: int = 0, body: bytes = b"12345") -> bytes:
    return post(
        body,
        b"X-Forwarded-For: 10.0.0.%d" % client,
        b"X-Request-Id: id-%d" % number,
        b"traceparent: 00-%032x-%016x-01" % (number + 1, number + 1),
    )


def told(door: Door) -> list[tuple[bytes, list[tuple[bytes, bytes]]]]:
    return [
        (served.body, [pair for pair in served.request.headers if pair[0] != b"content-length"])
        for served in door.served
    ]


def alone(wire: bytes) -> list[tuple[bytes, list[tuple[bytes, bytes]]]]:
    door = Door()
    door.feed(wire)
    return told(door)


async def test_calls_that_differ_in_their_number_and_trace_are_judged_once_each_with_its_own() -> None:
    handler = Counting()
    door = Door(handler)
    wires = [call(number, body=b"x" * (number + 1)) for number in range(5)]
    for wire in wires:
        door.feed(wire)

    assert len(handler.asked) == 1
    assert told(door) == [each for wire in wires for each in alone(wire)]


async def test_clients_that_a_trusted_proxy_mixes_over_its_connections_are_judged_once() -> None:
    handler = Counting()
    process = settings(handler, trusted_proxies=TRUSTED)
    doors = [Door(handler, process=process) for _ in range(3)]
    for door in doors:  # each connection sees the long way once, to learn how heads are written on it
        door.feed(call(0))
    known = len(handler.asked)
    random, wires = Random(6), []
    for number in range(60):
        wires.append(call(number, client=number % 4))
        random.choice(doors).feed(wires[-1])

    assert len(handler.asked) - known == 3  # the clients that had not been seen
    assert told(doors[0])[3:] == [each for wire in wires for each in alone(wire)]


async def test_clients_that_are_not_trusted_share_nothing() -> None:
    handler = Counting()
    process = settings(handler)
    doors = [Door(handler, process=process) for _ in range(3)]
    for number in range(9):
        doors[number % 3].feed(call(number))

    assert len(handler.asked) == 3


async def test_a_client_that_alternates_between_heads_is_judged_once_for_each() -> None:
    handler = Counting()
    door = Door(handler)
    for number in range(12):
        door.feed(post(b"12345", b"Mcp-Name: tool-%d" % (number % 3)))

    assert len(handler.asked) == 3


async def test_a_known_head_has_the_same_limits() -> None:
    for size, status in ((BODY_LIMIT, 200), (BODY_LIMIT + 1, 413)):
        door = Door()
        door.feed(call(0), call(1, body=b"x" * size))
        assert [answer.status for answer in door.responses()] == [200, status]
    long_id = call(1).replace(b"id-1", b"x" * 128)
    for limit, status in ((len(long_id) - 5, 200), (len(long_id) - 6, 431)):
        door = Door(head=limit)
        door.feed(call(0), long_id)
        assert [answer.status for answer in door.responses()] == [200, status]


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"Content-Length: 5", b"Content-Length: +5", 400),
        (b"Content-Length: 5", b"Content-Length: 5\r\nContent-Length: 5", 400),
        (b"Content-Length: 5", b"Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
        (b"id-1", b"a\0b", 400),
        (b"id-1", b"a\nb", 400),
        (b"id-1", b"a b", 200),
        (b"id-1", b"", 200),
        (b"X-Request-Id: id-1", b"X-Request-Id: id-1\r\nX-Request-Id: id-2", 200),
    ],
)
async def test_what_is_wrong_or_odd_is_what_it_is_the_first_time(old: bytes, new: bytes, status: int) -> None:
    wire = call(1).replace(old, new)
    door = Door()
    door.feed(call(0), wire)
    first, *rest = door.responses()

    assert (first.status, [answer.status for answer in rest]) == (200, [status])
    assert told(door)[1:] == alone(wire)


async def test_a_body_that_comes_in_pieces_or_with_more_behind_it_is_itself() -> None:
    for place in range(1, len(call(1))):
        door = Door()
        door.feed(call(0))
        door.feed(call(1)[:place])
        door.feed(call(1)[place:] + call(2))
        await door.settled()
        assert told(door) == alone(call(0)) + alone(call(1)) + alone(call(2))
