"""What backends are told about the proxy and its client, and whose word is taken for it."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.forwarding import WALK_LIMIT, Forwarder, plain_address
from mcp_proxy.headers import RequestHead, read_request
from mcp_proxy.wire import Header, Request

TRUSTED = Forwarder([ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")])
ALONE = Forwarder([])


def arrive(*lines: Header, peer: str = "203.0.113.9", scheme: str = "http") -> tuple[Request, RequestHead]:
    headers = [(b"host", b"mcp.example.com"), *lines]
    return Request(b"POST", b"/mcp", headers, peer, scheme), read_request(headers)


def sent(
    forwarder: Forwarder, *lines: Header, peer: str = "203.0.113.9", scheme: str = "http"
) -> list[Header]:
    return list(forwarder.headers(*arrive(*lines, peer=peer, scheme=scheme), None))


def values(headers: list[Header], name: bytes) -> list[bytes]:
    return [value for each, value in headers if each == name]


# --- headers towards the backend ------------------------------------------------------------------


def test_a_backend_learns_who_came_how_and_through_whom() -> None:
    headers = sent(ALONE, (b"accept", b"*/*"), scheme="https")

    assert headers[0] == (b"accept", b"*/*")
    assert sorted(headers[1:]) == [
        (b"via", b"1.1 " + ALONE.pseudonym),
        (b"x-forwarded-for", b"203.0.113.9"),
        (b"x-forwarded-host", b"mcp.example.com"),
        (b"x-forwarded-proto", b"https"),
    ]


def test_a_peer_without_an_address_leaves_no_x_forwarded_for() -> None:
    assert values(sent(ALONE, peer=""), b"x-forwarded-for") == []


@pytest.mark.parametrize("forwarder", [ALONE, TRUSTED])
def test_claims_of_a_stranger_are_replaced_by_what_is_known(forwarder: Forwarder) -> None:
    headers = sent(
        forwarder,
        (b"x-forwarded-for", b"127.0.0.1"),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-host", b"admin.internal"),
        (b"x-real-ip", b"127.0.0.1"),
        (b"forwarded", b"for=127.0.0.1;proto=https"),
    )

    assert values(headers, b"x-forwarded-for") == [b"203.0.113.9"]
    assert values(headers, b"x-forwarded-proto") == [b"http"]
    assert values(headers, b"x-forwarded-host") == [b"mcp.example.com"]
    assert values(headers, b"x-real-ip") == values(headers, b"forwarded") == []


def test_claims_of_a_trusted_proxy_are_kept_and_extended() -> None:
    headers = sent(
        TRUSTED,
        (b"x-forwarded-for", b"198.51.100.1"),
        (b"x-forwarded-for", b"10.0.0.2"),
        (b"x-forwarded-proto", b"https"),
        (b"via", b"1.1 edge"),
        peer="10.0.0.1",
    )

    assert values(headers, b"x-forwarded-for") == [b"198.51.100.1, 10.0.0.2, 10.0.0.1"]
    assert values(headers, b"x-forwarded-proto") == [b"https"]
    assert values(headers, b"via") == [b"1.1 edge, 1.1 " + TRUSTED.pseudonym]


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ((b"x-forwarded-for", b"198.51.100.1"), b"x-forwarded-proto", b"http"),
        ((b"x-forwarded-proto", b"https"), b"x-forwarded-for", b"fd00::1"),
        ((b"via", b"2 edge"), b"x-forwarded-for", b"fd00::1"),
    ],
)
def test_what_a_trusted_proxy_leaves_out_is_filled_in(line: Header, name: bytes, value: bytes) -> None:
    assert values(sent(TRUSTED, line, peer="fd00::1"), name) == [value]


def test_a_received_via_is_appended_to_whoever_sent_it() -> None:
    # a loop over two proxies shows only in the entries of others
    headers = sent(ALONE, (b"via", b"1.1 other"))

    assert values(headers, b"via") == [b"1.1 other, 1.1 " + ALONE.pseudonym]


def test_the_credentials_of_the_pool_replace_those_of_the_client() -> None:
    request, head = arrive((b"authorization", b"Bearer client"), (b"accept", b"*/*"))

    headers = TRUSTED.headers(request, head, b"Bearer pool")

    assert values(headers, b"authorization") == [b"Bearer pool"]
    assert values(headers, b"accept") == [b"*/*"]
    assert head.authorization == b"Bearer client"
    assert (b"authorization", b"Bearer client") in head.forward


def test_without_credentials_of_the_pool_the_client_s_pass() -> None:
    assert values(sent(ALONE, (b"authorization", b"Bearer client")), b"authorization") == [b"Bearer client"]


def test_building_the_headers_leaves_the_head_as_it_was() -> None:
    request, head = arrive((b"accept", b"*/*"))

    first, second = ALONE.headers(request, head, None), ALONE.headers(request, head, None)

    assert first == second
    assert head.forward == [(b"accept", b"*/*")]


# --- loops ----------------------------------------------------------------------------------------


def test_a_request_that_was_here_before_is_a_loop() -> None:
    headers = sent(ALONE)
    back = read_request(headers)

    assert ALONE.is_loop(back)
    assert not TRUSTED.is_loop(back)


def test_a_loop_over_two_proxies_is_seen() -> None:
    other = Forwarder([])
    first = sent(ALONE)
    second = [(name, value) for name, value in sent(other, *first)]

    assert ALONE.is_loop(read_request(second))


def test_every_instance_has_a_name_of_its_own() -> None:
    names = {Forwarder([]).pseudonym for _ in range(8)}

    assert len(names) == 8
    assert all(name.startswith(b"mcp-proxy-") for name in names)


# --- the address of the client --------------------------------------------------------------------


def client(forwarded_for: bytes, peer: str = "10.0.0.1", forwarder: Forwarder = TRUSTED) -> str:
    return forwarder.client(*arrive((b"x-forwarded-for", forwarded_for), peer=peer))


def test_without_claims_the_peer_is_the_client() -> None:
    assert TRUSTED.client(*arrive(peer="10.0.0.1")) == "10.0.0.1"


@pytest.mark.parametrize("peer", ["203.0.113.9", "", "unix:", "fe80::1"])
def test_a_stranger_cannot_say_who_it_is(peer: str) -> None:
    assert client(b"127.0.0.1", peer=peer) == peer
    assert client(b"127.0.0.1", peer=peer, forwarder=ALONE) == peer


@pytest.mark.parametrize(
    ("forwarded_for", "address"),
    [
        (b"198.51.100.1", "198.51.100.1"),
        (b"6.6.6.6, 198.51.100.1", "198.51.100.1"),
        (b"6.6.6.6, 198.51.100.1, 10.0.0.7,fd00::7", "198.51.100.1"),
        (b"2001:db8::1", "2001:db8::1"),
        (b"10.0.0.9, 10.0.0.8", "10.0.0.9"),
        (b" 198.51.100.1\t", "198.51.100.1"),
    ],
)
def test_the_walk_goes_from_the_right_over_trusted_proxies(forwarded_for: bytes, address: str) -> None:
    assert client(forwarded_for) == address


@pytest.mark.parametrize(
    "entry",
    [b"unknown", b"", b"_hidden", b"198.51.100.1:1234", b"[2001:db8::1]", b"a\xff", b"1.2.3.4.5", b"1"],
)
def test_the_walk_ends_at_what_is_no_address(entry: bytes) -> None:
    assert client(b"6.6.6.6, " + entry) == "10.0.0.1"
    assert client(b"6.6.6.6, " + entry + b", 10.0.0.7") == "10.0.0.7"


@pytest.mark.parametrize("entry", [b'fe80::1%"><script>', b"fe80::1%" + b"a" * 100])
def test_an_address_has_no_room_for_text(entry: bytes) -> None:
    assert client(entry + b", 10.0.0.7") == "10.0.0.7"


def test_the_walk_is_bounded() -> None:
    chain = b", ".join(b"10.0.1.%d" % number for number in range(WALK_LIMIT + 4))

    assert client(b"6.6.6.6, " + chain) == "10.0.1.4"


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.1"),
        ("::1", "::1"),
        ("::ffff:a00:1", "::ffff:a00:1"),
        ("2001:db8::ffff:10.0.0.1", "2001:db8::ffff:10.0.0.1"),
        ("", ""),
    ],
)
def test_an_ipv4_peer_of_a_dual_stack_socket_has_its_ipv4_address(address: str, plain: str) -> None:
    assert plain_address(address) == plain


def test_a_trusted_proxy_is_recognised_on_a_dual_stack_listener() -> None:
    line = (b"x-forwarded-for", b"6.6.6.6, 198.51.100.1, ::ffff:10.0.0.7")
    request, head = arrive(line, peer="::ffff:10.0.0.1")

    assert TRUSTED.client(request, head) == "198.51.100.1"
    chain = values(list(TRUSTED.headers(request, head, None)), b"x-forwarded-for")
    assert chain == [b"6.6.6.6, 198.51.100.1, ::ffff:10.0.0.7, 10.0.0.1"]
    assert ALONE.client(request, head) == "10.0.0.1"
    assert values(list(ALONE.headers(request, head, None)), b"x-forwarded-for") == [b"10.0.0.1"]


_entries = st.sampled_from(
    ["6.6.6.6", "10.0.0.7", "fd00::7", "2001:db8::1", "unknown", "", " ", "::ffff:1.2.3.4"]
)


@settings(deadline=None)
@given(st.lists(_entries, max_size=24))
def test_whatever_the_left_end_says_the_right_end_decides(entries: list[str]) -> None:
    honest = "198.51.100.1, 10.0.0.3"

    assert client(", ".join([*entries, honest]).encode()) == "198.51.100.1"
