"""One id for a request, in both directions."""

from __future__ import annotations

import re
from ipaddress import ip_network

import pytest

from mcp_proxy.admission import Admitted, Porter
from mcp_proxy.correlation import given, id_of, new
from mcp_proxy.forwarding import Forwarder
from mcp_proxy.policy.origin import OriginGuard
from mcp_proxy.wire import Rejection, Request, fields_of
from tests.unit.actors import StrictReply
from tests.unit.gatehouse import Client, Gatehouse, legacy, modern

MINTED = re.compile("[0-9a-f]{32}")


def told(client: Client) -> str:
    """What the client is told."""
    ((_, value),) = fields_of(client.reply.own)
    return value.decode()


def sent(house: Gatehouse, at: int = -1) -> str:
    """What the backend is told."""
    ((_, value),) = [
        pair for pair in fields_of(house.attempts[at].outgoing.own) if pair[0] == b"x-request-id"
    ]
    return value.decode()


def test_ids_have_nothing_in_common() -> None:
    ids = [id_of(new()) for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(MINTED.fullmatch(each) for each in ids)
    assert len({each[:8] for each in ids}) > 90


@pytest.mark.parametrize(
    "value",
    [b"", b"a" * 129, b"a b", b"a,b", b'a"b', b"a\\b", "ä".encode(), b"a\x7f", b"<script>", b"a\tb"],
)
def test_an_id_that_could_do_harm_in_a_log_is_not_taken(value: bytes) -> None:
    assert given([(b"x-request-id", value)]) == b""


def test_two_ids_are_none() -> None:
    assert given([(b"x-request-id", b"a"), (b"x-request-id", b"b")]) == b""


@pytest.mark.parametrize("value", [b"a", b"a" * 128, b"0af7651916cd43dd-1.2~_+/=:@"])
def test_a_plain_id_is_taken_as_it_is(value: bytes) -> None:
    assert id_of(given([(b"x-request-id", value)])).encode() == value


@pytest.mark.parametrize(("peer", "taken"), [("192.0.2.7", b"theirs"), ("192.0.3.7", b"")])
def test_only_a_trusted_proxy_names_a_request(peer: str, taken: bytes) -> None:
    forwarder = Forwarder([ip_network("192.0.2.0/24")])
    porter = Porter({b"/mcp": "main"}, OriginGuard("0.0.0.0", None), forwarder)
    headers = [(b"host", b"mcp.example"), (b"x-request-id", b"theirs")]
    admitted = porter.admit(Request(b"GET", b"/mcp", headers, peer, "http"))
    assert isinstance(admitted, Admitted)
    assert id_of(admitted.own).encode() == taken


async def test_client_backend_and_record_get_the_same_id() -> None:
    house = Gatehouse(1)
    client = house.ask(*modern("tools/call"))
    house.attempts[0].answer()
    assert MINTED.fullmatch(told(client))
    assert told(client) == sent(house) == house.record.request_id


async def test_another_attempt_has_the_same_id_and_another_request_has_not() -> None:
    house = Gatehouse(2)
    client = house.ask(*modern("server/discover"))
    house.attempts[0].fail("refused")
    house.attempts[1].answer()
    assert sent(house, 0) == sent(house, 1) == told(client)
    assert told(house.ask(*modern("server/discover"))) != told(client)


async def test_an_id_of_a_client_that_nobody_vouches_for_is_replaced() -> None:
    house = Gatehouse(1)
    body, *fields = modern("tools/call")
    client = house.ask(body, *fields, (b"x-request-id", b"mine"))
    assert told(client) != "mine"
    assert all(name != b"x-request-id" for name, _ in house.attempts[0].outgoing.headers)


async def test_a_refusal_of_the_proxy_has_an_id_too() -> None:
    house = Gatehouse(1)
    client = house.ask(legacy("tools/call"), (b"mcp-session-id", b"nobody"))
    assert client.reply.status == 404
    assert told(client) == house.record.request_id


def test_a_request_without_a_head_has_an_id_too() -> None:
    house = Gatehouse(1)
    reply = StrictReply()
    house.gateway.refuse(Request(b"", b"", [], "192.0.2.1", "http"), Rejection("bad_request"), reply)
    ((_, value),) = fields_of(reply.own)
    assert value.decode() == house.record.request_id
