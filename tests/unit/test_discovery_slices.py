"""What EndpointSlices say: as tables."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy.discovery import LookError
from mcp_proxy.discovery.slices import Member, Port, Slice, endpoints_of

HTTP = Port(8000, "http")
METRICS = Port(9090, "metrics")


def found(*slices: Slice, port: int | str | None = None) -> list[tuple[str, int, bool]]:
    return [
        (endpoint.host, endpoint.port, endpoint.is_open)
        for endpoint in endpoints_of(slices, port, path="/mcp", tls=False)
    ]


@pytest.mark.parametrize(
    ("ready", "serving", "terminating", "is_open"),
    [
        (True, True, False, True),
        (None, None, None, True),
        (True, None, None, True),
        (None, True, False, True),
        (False, True, True, False),
        (False, None, True, False),
        (None, None, True, False),
        (False, False, True, None),
        (False, False, False, None),
        (False, None, None, None),
        (False, True, False, None),
        # publishNotReadyAddresses: everybody is ready until the end
        (True, False, False, True),
        (True, True, True, False),
        (True, False, True, None),
    ],
)
def test_conditions_decide_whether_a_pod_is_open_drains_or_has_left(
    ready: bool | None, serving: bool | None, terminating: bool | None, is_open: bool | None
) -> None:
    member = Member("10.0.0.1", ready, serving, terminating)
    wanted = [] if is_open is None else [("10.0.0.1", 8000, is_open)]
    assert found(Slice("IPv4", (HTTP,), (member,))) == wanted


@pytest.mark.parametrize(
    ("ports", "wanted", "number"),
    [
        ((HTTP,), None, 8000),
        ((HTTP, METRICS), "http", 8000),
        ((METRICS, HTTP), "http", 8000),
        ((HTTP, METRICS), 9090, 9090),
        ((), 8000, 8000),
    ],
)
def test_a_port_is_found_by_number_by_name_or_because_it_is_the_only_one(
    ports: tuple[Port, ...], wanted: int | str | None, number: int
) -> None:
    assert found(Slice("IPv4", ports, (Member("10.0.0.1"),)), port=wanted) == [("10.0.0.1", number, True)]


@pytest.mark.parametrize(
    ("ports", "wanted", "sentence"),
    [
        ((HTTP, METRICS), None, "its Service has several ports: say which with discover.port"),
        ((HTTP, METRICS), 80, "its endpoints have no port 80, only 8000 (http), 9090 (metrics)"),
        ((Port(8000),), "http", "its endpoints have no port http, only 8000"),
        ((), None, "its endpoints name no port: say which with discover.port"),
        ((), "http", "its endpoints name no port: say which with discover.port"),
    ],
)
def test_a_port_that_is_not_there_is_said_with_those_that_are(
    ports: tuple[Port, ...], wanted: int | str | None, sentence: str
) -> None:
    with pytest.raises(LookError) as raised:
        found(Slice("IPv4", ports, (Member("10.0.0.1"),)), port=wanted)
    assert str(raised.value) == sentence


def test_pods_that_give_a_port_another_number_have_slices_of_their_own() -> None:
    old = Slice("IPv4", (Port(8000, "http"),), (Member("10.0.0.1"),))
    new = Slice("IPv4", (Port(8080, "http"),), (Member("10.0.0.2"),))
    without = Slice("IPv4", (METRICS,), (Member("10.0.0.3"),))
    assert found(old, new, without, port="http") == [("10.0.0.1", 8000, True), ("10.0.0.2", 8080, True)]


def test_a_service_without_endpoints_has_none_whatever_its_ports() -> None:
    assert found() == []
    assert found(Slice("IPv4", (), ()), Slice("IPv4", (METRICS,), ()), port="http") == []


def test_names_are_no_addresses() -> None:
    assert found(Slice("FQDN", (HTTP,), (Member("weather.example.com"),))) == []


def test_a_pod_with_addresses_of_both_families_is_one_backend() -> None:
    v4 = Slice("IPv4", (HTTP,), (Member("10.0.0.1", pod="a"), Member("10.0.0.2", pod="b")))
    v6 = Slice("IPv6", (HTTP,), (Member("fd00::1", pod="a"), Member("fd00::3", pod="c"), Member("fd00::4")))
    assert [host for host, _, _ in found(v6, v4)] == ["10.0.0.1", "10.0.0.2", "fd00::3", "fd00::4"]


def test_an_endpoint_that_is_being_moved_between_slices_is_open_if_one_says_so() -> None:
    before = Slice("IPv4", (HTTP,), (Member("10.0.0.1", False, True, True),))
    after = Slice("IPv4", (HTTP,), (Member("10.0.0.1"),))
    assert found(before, after) == found(after, before) == [("10.0.0.1", 8000, True)]


members = st.builds(
    Member,
    st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
    *[st.none() | st.booleans()] * 3,
    st.none() | st.sampled_from(["a", "b"]),
)


@given(
    st.lists(
        st.builds(Slice, st.sampled_from(["IPv4", "IPv6"]), st.just((HTTP,)), st.lists(members).map(tuple))
    )
)
def test_the_order_of_slices_means_nothing_and_no_address_comes_twice(slices: list[Slice]) -> None:
    endpoints = endpoints_of(slices, None, path="/mcp", tls=True)
    shuffled = random.Random(1).sample(slices, len(slices))
    assert endpoints_of(shuffled, None, path="/mcp", tls=True) == endpoints
    assert len({endpoint.host for endpoint in endpoints}) == len(endpoints)
    assert all(endpoint.tls for endpoint in endpoints)
