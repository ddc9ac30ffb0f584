"""The header rules of requests: what passes, what goes, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.headers import (
    HOP_BY_HOP,
    HeaderError,
    read_request,
)
from mcp_proxy.wire import Header, Headers

END_TO_END: Headers = [
    (b"accept", b"application/json, text/event-stream"),
    (b"user-agent", b"curl/8"),
    (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"mcp-param-region", b"eu"),
    (b"x-custom", b"one"),
    (b"x-custom", b"two"),
    (b"authorization", b"Bearer t"),
    (b"content-type", b"application/json"),
    (b"content-encoding", b"identity"),
    (b"mcp-protocol-version", b"2026-07-28"),
    (b"mcp-method", b"tools/call"),
    (b"mcp-name", b"echo"),
    (b"mcp-session-id", b"s1"),
    (b"last-event-id", b"7"),
]

DECIDING = (
    *(b"host", b"origin", b"authorization", b"content-type", b"content-encoding", b"mcp-protocol-version"),
    *(b"mcp-method", b"mcp-name", b"mcp-session-id", b"last-event-id"),
)

CLAIMS = (
    *(b"forwarded", b"x-real-ip", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-prefix"),
    *(b"x-forwarded-server", b"x-client-cert", b"x-original-url", b"x-rewrite-url"),
)


# --- requests: what passes ------------------------------------------------------------------------


def test_end_to_end_headers_pass_in_order_with_duplicates_and_values() -> None:
    head = read_request([(b"host", b"localhost"), *END_TO_END])

    assert head.forward == END_TO_END


def test_headers_that_decide_are_read_as_received() -> None:
    head = read_request([(b"host", b"localhost:80"), (b"origin", b"http://localhost"), *END_TO_END])

    assert head.host == b"localhost:80"
    assert head.origin == b"http://localhost"
    assert head.authorization == b"Bearer t"
    assert head.content_type == b"application/json"
    assert head.content_encoding == b"identity"
    assert head.version == b"2026-07-28"
    assert head.method == b"tools/call"
    assert head.name == b"echo"
    assert head.session_id == b"s1"
    assert head.last_event_id == b"7"


def test_absent_headers_are_none_and_absent_lists_are_empty() -> None:
    head = read_request([])

    assert head.forward == []
    slots = (head.host, head.origin, head.authorization, head.content_type, head.content_encoding)
    assert slots == (None,) * 5
    slots = (head.version, head.method, head.name, head.session_id, head.last_event_id)
    assert slots == (None,) * 5
    assert (head.via, head.forwarded_for, head.forwarded_proto) == (b"", b"", b"")


def test_host_and_origin_are_read_but_never_forwarded() -> None:
    # Python SDK servers refuse any Host or Origin but their own (421, 403).
    assert read_request([(b"host", b"localhost"), (b"origin", b"http://localhost")]).forward == []


def test_lists_that_the_proxy_extends_are_joined_in_order_and_taken_out() -> None:
    head = read_request(
        [
            (b"x-forwarded-for", b"1.1.1.1"),
            (b"via", b"1.1 a"),
            (b"x-forwarded-for", b"2.2.2.2, 3.3.3.3"),
            (b"x-forwarded-proto", b"https"),
            (b"via", b"1.1 b"),
        ]
    )

    assert head.forward == []
    assert head.via == b"1.1 a, 1.1 b"
    assert head.forwarded_for == b"1.1.1.1, 2.2.2.2, 3.3.3.3"
    assert head.forwarded_proto == b"https"


# --- requests: what goes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*sorted(HOP_BY_HOP - {b"connection"}), b"content-length", b"expect", b"cookie"]
)
def test_a_hop_by_hop_or_framing_header_never_passes(name: bytes) -> None:
    assert read_request([(name, b"x"), (b"x-custom", b"1")]).forward == [(b"x-custom", b"1")]


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_about_client_or_site_never_passes(name: bytes) -> None:
    assert read_request([(name, b"6.6.6.6")]).forward == []


@pytest.mark.parametrize(
    "name",
    [
        b"x-forwarded-user",
        b"x-forwarded-client-cert",
        b"x-forwarded-ssl",
        b"x-auth-request-email",
        b"x-ssl-client-verify",
        b"x-client-cert-chain",
        b"x-remote-user",
        b"remote-user",
        b"x-client-ip",
        b"true-client-ip",
        b"cf-connecting-ip",
    ],
)
def test_a_client_cannot_forge_what_sidecars_say_about_identities(name: bytes) -> None:
    assert read_request([(name, b"admin")]).forward == []


@pytest.mark.parametrize(
    "name",
    [
        b"content_length",
        b"transfer_encoding",
        b"mcp_session_id",
        b"mcp_param_region",
        b"mcp-session_id",
        b"mcp-protocol_version",
        b"mcp_session-id",
        b"last_event_id",
        b"content_type",
        b"x_forwarded_for",
        b"x_forwarded-user",
        b"x_real_ip",
        b"x_client_cert",
        b"proxy_authorization",
    ],
)
def test_an_underscore_alias_of_a_header_that_decides_never_passes(name: bytes) -> None:
    # WSGI- and CGI-like backends see one variable for both spellings.
    assert read_request([(name, b"x")]).forward == []


def test_other_names_with_underscores_pass() -> None:
    assert read_request([(b"my_header", b"1")]).forward == [(b"my_header", b"1")]


def test_what_other_clients_have_sent_does_not_change_what_passes() -> None:

    pair = (b"x_seen_before", b"1")
    first = read_request([pair]).forward
    read_request([(b"y-seen-before", b"1")])
    other = (b"y_seen_before", b"1")

    assert first == [pair]
    assert read_request([other]).forward == [other]


def test_names_are_classified_alike_however_long_and_however_many() -> None:
    long = b"x-" + b"a" * 100
    for number in range(1100):
        assert read_request([(b"x-flood-%d" % number, b"1")]).forward == [(b"x-flood-%d" % number, b"1")]

    assert read_request([(long, b"1")]).forward == [(long, b"1")]
    assert read_request([(b"mcp_" + b"a" * 100, b"1")]).forward == []


# --- requests: Connection -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [b"keep-alive", b"Keep-Alive", b"close", b"", b"close, TE", b"Upgrade, HTTP2-Settings"]
)
def test_connection_itself_never_passes(value: bytes) -> None:
    head = read_request(
        [(b"connection", value), (b"upgrade", b"h2c"), (b"http2-settings", b"AAM"), (b"x-a", b"1")]
    )

    assert head.forward == [(b"x-a", b"1")]


def test_a_nominated_header_never_passes_wherever_it_stands() -> None:
    head = read_request(
        [(b"x-foo", b"1"), (b"connection", b"close, X-Foo"), (b"x-foo", b"2"), (b"x-bar", b"3")]
    )

    assert head.forward == [(b"x-bar", b"3")]


def test_every_connection_line_nominates() -> None:
    # CVE-2021-33197: only the first line was read, and it was empty
    lines = [(b"connection", b""), (b"connection", b"x-foo"), (b"connection", b" ,\tx-bar ,")]

    assert read_request([*lines, (b"x-foo", b"1"), (b"x-bar", b"1")]).forward == []


@pytest.mark.parametrize(
    "name",
    [
        *DECIDING,
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"content-length",
        b"accept",
        b"expect",
        b"mcp-param-region",
        b"mcp-anything",
    ],
)
def test_a_protected_header_cannot_be_nominated_away(name: bytes) -> None:
    with pytest.raises(HeaderError, match="nominates") as refusal:
        read_request([(b"connection", b"close, " + name.title()), (name, b"1")])

    assert refusal.value.reason == "bad_request"


# --- requests: what is refused --------------------------------------------------------------------


@pytest.mark.parametrize("name", DECIDING)
def test_a_header_that_decides_must_not_occur_twice_even_with_one_value(name: bytes) -> None:
    with pytest.raises(HeaderError, match="more than once") as refusal:
        read_request([(name, b"a"), (b"x-between", b""), (name, b"a")])

    assert refusal.value.reason == "bad_request"
    assert refusal.value.detail == f"the header {name.decode()} occurs more than once"


def test_an_empty_deciding_header_still_counts_as_one() -> None:
    with pytest.raises(HeaderError):
        read_request([(b"mcp-session-id", b""), (b"mcp-session-id", b"x")])


@pytest.mark.parametrize(
    "name",
    [
        b"mcp-param-city",
        b"mcp-future",
        b"mcp-name",
        b"mcp-method",
        b"mcp-session-id",
        b"mcp-protocol-version",
    ],
)
def test_mcp_headers_are_ascii(name: bytes) -> None:
    with pytest.raises(HeaderError, match="ASCII"):
        read_request([(name, b"M\xc3\xbcnchen")])


@pytest.mark.parametrize("pair", [(b"x-city", b"M\xfcnchen"), (b"last-event-id", b"7_\xc3\xa9")])
def test_other_headers_may_hold_obs_text(pair: Header) -> None:
    # WHATWG HTML 9.2.4: Last-Event-ID is the server's own string in UTF-8
    assert read_request([pair]).forward == [pair]


# --- requests: properties -------------------------------------------------------------------------

_names = st.one_of(
    st.sampled_from(sorted(HOP_BY_HOP)),
    st.sampled_from([name for name, _ in END_TO_END]),
    st.sampled_from([b"x-forwarded-for", b"via", b"content-length", b"cookie", b"forwarded", b"x_foo"]),
    st.from_regex(rb"x-[a-z]{1,3}", fullmatch=True),
)
_values = st.from_regex(rb"[!-~](?:[ -~]{0,12}[!-~])?", fullmatch=True)
_tokens = st.one_of(
    st.from_regex(rb"[xX]-[a-zA-Z]{1,3}", fullmatch=True), st.sampled_from([b"close", b"", b"TE"])
)
_connection = st.lists(_tokens, max_size=3).map(lambda tokens: (b"connection", b" , ".join(tokens)))
_blocks = st.lists(st.one_of(st.tuples(_names, _values), _connection), max_size=12)


@settings(deadline=None)
@given(_blocks)
def test_no_request_header_block_gets_a_hop_by_hop_header_through(block: list[Header]) -> None:
    try:
        head = read_request(block)
    except HeaderError:
        return
    nominated = {
        token.strip().lower() for name, value in block if name == b"connection" for token in value.split(b",")
    }
    names = {name for name, _ in head.forward}

    assert names.isdisjoint(HOP_BY_HOP)
    assert names.isdisjoint(nominated)
    assert names.isdisjoint(
        (b"host", b"origin", b"cookie", b"content-length", b"expect", b"via", b"forwarded")
    )


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.from_regex(rb"x-[a-z]{1,4}", fullmatch=True), st.binary(max_size=20)), max_size=12)
)
def test_what_is_end_to_end_comes_out_as_it_went_in(block: list[Header]) -> None:
    interleaved = [pair for each in block for pair in (each, (b"keep-alive", b"timeout=5"))]

    assert read_request(interleaved).forward == block
