"""The header rules of responses: what passes, what is refused, and where a redirect may lead."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.headers import (
    HOP_BY_HOP,
    HeaderError,
    check_fields,
    read_facts,
    read_response,
    rewrite_location,
)
from mcp_proxy.wire import Fields, Header

# --- responses ------------------------------------------------------------------------------------


def test_a_response_keeps_what_is_end_to_end_and_tells_its_length() -> None:
    kept = [
        (b"content-type", b"application/json"),
        (b"mcp-session-id", b"s1"),
        (b"cache-control", b"no-cache, no-transform"),
        (b"x-twice", b"1"),
        (b"x-twice", b"2"),
        (b"www-authenticate", b"Bearer"),
        (b"x-city", b"M\xfcnchen"),
    ]
    block = [*kept[:3], (b"content-length", b"0042"), *kept[3:]]

    assert read_response(block) == (kept, 42)


def test_a_response_without_length_has_none() -> None:
    assert read_response([]) == ([], None)


@pytest.mark.parametrize(
    "name",
    [
        *sorted(HOP_BY_HOP),
        b"server",
        b"set-cookie",
        b"alt-svc",
        b"access-control-allow-origin",
        b"access-control-expose-headers",
    ],
)
def test_what_speaks_for_the_backend_or_its_connection_stays_behind(name: bytes) -> None:
    assert read_response([(name, b"close"), (b"x-a", b"1")]) == ([(b"x-a", b"1")], None)


@pytest.mark.parametrize(
    "value", [b"", b"+5", b"-1", b"0x5", b"5, 5", b"0_5", b"5 5", b"\xb2", b"1" * 19, b"1e3", b"5;"]
)
def test_a_content_length_that_is_not_one_plain_number_is_refused(value: bytes) -> None:
    with pytest.raises(HeaderError, match="Content-Length"):
        read_response([(b"content-length", value)])


@pytest.mark.parametrize("second", [b"5", b"6"])
def test_a_second_content_length_is_refused_even_if_equal(second: bytes) -> None:
    with pytest.raises(HeaderError, match="Content-Length"):
        read_response([(b"content-length", b"5"), (b"content-length", second)])


def test_a_content_length_of_zero_also_counts_as_one() -> None:
    with pytest.raises(HeaderError, match="Content-Length"):
        read_response([(b"content-length", b"0"), (b"content-length", b"0")])


def test_headers_nominated_by_the_backend_stay_behind() -> None:
    block = [
        (b"x-foo", b"1"),
        (b"connection", b"close"),
        (b"connection", b"X-Foo, Keep-Alive"),
        (b"x-bar", b"2"),
    ]

    assert read_response(block) == ([(b"x-bar", b"2")], None)


@pytest.mark.parametrize("name", [b"mcp-session-id", b"content-type"])
def test_the_backend_cannot_nominate_away_what_the_client_needs(name: bytes) -> None:
    assert read_response([(b"connection", name), (name, b"v")]) == ([(name, b"v")], None)


@pytest.mark.parametrize("name", [b"mcp-session-id", b"content-type"])
def test_a_response_header_that_decides_must_not_occur_twice(name: bytes) -> None:

    with pytest.raises(HeaderError):
        read_response([(name, b"a"), (name, b"b")])


@pytest.mark.parametrize(
    ("content_type", "is_stream"),
    [
        (b"text/event-stream", True),
        (b"Text/Event-Stream; charset=utf-8", True),
        (b"text/event-stream;charset=utf-8", True),
        (b"application/json", False),
        (b"", False),
        (b"text/event-streams", False),
    ],
)
def test_the_media_type_tells_a_stream(content_type: bytes, is_stream: bool) -> None:
    assert read_facts(Fields([(b"content-type", content_type)])).is_stream is is_stream


def test_a_stream_asks_proxies_in_front_not_to_hold_its_events_back() -> None:
    received = Fields([(b"content-type", b"text/event-stream"), (b"mcp-session-id", b"s1")])

    facts = read_facts(received)

    assert facts.changed == [*received, (b"x-accel-buffering", b"no")]
    assert facts.session_id == b"s1"
    assert len(received) == 2, "the block may be delivered again with another response"


def test_what_the_backend_says_about_buffering_stays() -> None:
    received = Fields([(b"x-accel-buffering", b"yes"), (b"content-type", b"text/event-stream")])

    assert read_facts(received).changed is None


def test_an_answer_that_is_no_stream_passes_as_it_is() -> None:
    received = Fields([(b"content-type", b"application/json")])

    facts = read_facts(received)

    assert facts.changed is None
    assert facts.session_id is None


# --- fields of transports whose parser promises nothing -------------------------------------------


@pytest.mark.parametrize(
    "pair",
    [
        (b"x-a", b"1\r\nset-cookie: a"),
        (b"x-a", b"1\n"),
        (b"x-a", b"\r"),
        (b"x-a", b"\x00"),
        (b"x-a", b"\x0b"),
        (b"x-a", b"\x7f"),
        (b"", b"1"),
        (b"x a", b"1"),
        (b"x:a", b"1"),
        (b"X-A", b"1"),
        (b"x\xe9", b"1"),
        (b"x-a\n", b"1"),
    ],
)
def test_a_field_that_could_split_a_message_is_refused(pair: Header) -> None:
    with pytest.raises(HeaderError, match="no header may hold"):
        check_fields([(b"x-ok", b"1"), pair])


def test_tabs_obs_text_and_every_token_character_are_fine() -> None:
    check_fields([(b"!#$%&'*+-.^_`|~09az", b"a\tb \xff~"), (b"x", b"")])


# --- Location -------------------------------------------------------------------------------------

BACKEND = "http://10.0.0.1:8000/mcp"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (b"/mcp", b"/weather/mcp"),
        (b"mcp", b"/weather/mcp"),
        (b"", b"/weather/mcp"),
        (b"?x=1", b"/weather/mcp?x=1"),
        (b"/mcp?x=http://10.0.0.2/&y", b"/weather/mcp?x=http://10.0.0.2/&y"),
        (b"/mcp#fragment", b"/weather/mcp"),
        (b"/x/../mcp", b"/weather/mcp"),
        (b"//10.0.0.1:8000/mcp", b"/weather/mcp"),
        (b"http://10.0.0.1:8000/mcp", b"/weather/mcp"),
        (b"HTTP://10.0.0.1:8000/mcp?b", b"/weather/mcp?b"),
    ],
)
def test_a_redirect_to_the_endpoint_itself_points_to_the_route(location: bytes, expected: bytes) -> None:
    assert rewrite_location(location, BACKEND, "/weather/mcp") == expected


@pytest.mark.parametrize(
    "location",
    [
        b"http://10.0.0.2:8000/mcp",
        b"http://10.0.0.1:8001/mcp",
        b"http://10.0.0.1/mcp",
        b"https://10.0.0.1:8000/mcp",
        b"http://user@10.0.0.1:8000/mcp",
        b"http://@10.0.0.1:8000/mcp",
        b"http://10.0.0.1:8000@evil.com/mcp",
        b"http://10.0.0.1:8000.evil.com/mcp",
        b"http://10.0.0.1:evil/mcp",
        b"http://[::1/mcp",
        b"//evil.com/mcp",
        b"//evil.com",
        b"/\\evil.com",
        b"/",
        b"/mcp/",
        b"/mcp/evil.com",
        b"/mcp//evil.com",
        b"/mcp-admin",
        b"/mcp/../admin",
        b"/mcp/%2e%2E/admin",
        b"/%6dcp",
        b"/MCP",
        b"other",
        b"javascript:alert(1)",
        b"/m\xe9p",
    ],
)
def test_a_redirect_to_anywhere_else_is_none(location: bytes) -> None:
    assert rewrite_location(location, BACKEND, "/weather/mcp") is None


@pytest.mark.parametrize(
    ("backend", "location"),
    [
        ("http://h:80/mcp", b"http://h/mcp"),
        ("http://h:80/mcp", b"http://H:80/mcp"),
        ("https://h:443/mcp", b"https://h/mcp"),
        ("http://[2001:db8::1]:80/mcp", b"http://[2001:DB8::1]/mcp"),
    ],
)
def test_the_default_port_may_be_left_out(backend: str, location: bytes) -> None:
    assert rewrite_location(location, backend, "/mcp") == b"/mcp"


_pieces = st.sampled_from(
    ["http:", "https:", "/", "//", "10.0.0.1", ":8000", "@", "/mcp", "..", "?", "#", "evil.com", "\\", "x"]
)


@settings(deadline=None)
@given(st.lists(_pieces, max_size=8).map("".join), st.sampled_from(["/", "/mcp", "/weather/mcp"]))
def test_a_redirect_keeps_nothing_but_its_query(location: str, route: str) -> None:
    target = rewrite_location(location.encode(), BACKEND, route)

    assert target is None or target.partition(b"?")[0] == route.encode()
