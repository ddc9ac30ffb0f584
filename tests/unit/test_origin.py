"""The guard against DNS rebinding: which Host and Origin may talk to which listener."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.policy.origin import OriginGuard, cors_headers, is_loopback, preflight_headers

EXTERNAL = "https://mcp.example.com/base"

LOOPBACK = OriginGuard("127.0.0.1", None)
PROXIED = OriginGuard("127.0.0.1", EXTERNAL)
PUBLIC = OriginGuard("0.0.0.0", EXTERNAL)
BARE = OriginGuard("0.0.0.0", None)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.255.0.9", "::1", "0:0:0:0:0:0:0:1"])
def test_loopback_is_localhost_and_literal_addresses(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "0.0.0.0",
        "::",
        "127.1",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "localhost.evil.com",
        "10.0.0.1",
    ],
)
def test_nothing_else_is_loopback_and_nothing_is_resolved(host: str) -> None:
    assert not is_loopback(host)


# --- Host -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"localhost:8080",
        b"LOCALHOST:1",
        b"localhost.",
        b"127.0.0.1",
        b"127.0.0.1.:80",
        b"127.9.9.9:65535",
        b"[::1]",
        b"[::1]:8080",
        b"[0:0:0:0:0:0:0:1]",
    ],
)
def test_a_loopback_listener_serves_loopback_hosts_on_any_port(host: bytes) -> None:
    assert LOOPBACK.judge_host(host) is None


@pytest.mark.parametrize(
    "host",
    [
        b"evil.com",
        b"localhost.evil.com",
        b"127.0.0.1.evil.com",
        b"127.0.0.1.nip.io",
        b"a.localhost",
        b"localhost..",
        b"localhost-",
        b"127.1",
        b"2130706433",
        b"0.0.0.0",
        b"[::]",
        b"10.0.0.1",
        b"mcp.example.com",
    ],
)
def test_a_loopback_listener_serves_no_other_host(host: bytes) -> None:
    assert LOOPBACK.judge_host(host) in ("misdirected", "bad_request")


def test_a_rebound_name_is_misdirected_and_not_malformed() -> None:
    assert LOOPBACK.judge_host(b"evil.com:8080") == "misdirected"


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"localhost:evil",
        b"localhost:80:80",
        b"localhost:99999",
        b"user@localhost",
        b"evil.com@localhost",
        b"localhost,evil.com",
        b"localhost evil.com",
        b"localhost\\evil.com",
        b"localhost/evil.com",
        b"::1",
        b"[::1",
        b"[::1].evil.com",
        b"[::1]evil",
        b"[localhost]",
        b"loc\xe4lhost",
        b"localhost\x00",
    ],
)
def test_a_host_that_is_no_authority_is_a_bad_request_everywhere(host: bytes) -> None:
    for guard in (LOOPBACK, PROXIED, PUBLIC, BARE):
        assert guard.judge_host(host) == "bad_request"


@pytest.mark.parametrize(
    "host", [b"mcp.example.com", b"MCP.Example.COM:443", b"mcp.example.com.", b"mcp.example.com:80"]
)
def test_the_host_of_external_url_is_served(host: bytes) -> None:
    assert PROXIED.judge_host(host) is None
    assert PUBLIC.judge_host(host) is None


@pytest.mark.parametrize("host", [b"evil.mcp.example.com", b"mcp.example.com.evil.com", b"xmcp.example.com"])
def test_a_host_that_resembles_external_url_is_not_served_locally(host: bytes) -> None:
    assert PROXIED.judge_host(host) == "misdirected"


def test_a_listener_for_others_serves_every_valid_host() -> None:
    # its names are not known here; browsers are stopped by their Origin
    assert BARE.judge_host(b"anything.example") is None


# --- Origin ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        b"http://localhost",
        b"http://localhost:5173",
        b"https://localhost",
        b"HTTP://LocalHost:3000",
        b"http://localhost.:3000",
        b"http://127.0.0.1:6274",
        b"http://127.8.8.8",
        b"http://[::1]",
        b"https://[::1]:3000",
    ],
)
def test_pages_of_this_machine_may_use_a_loopback_listener(origin: bytes) -> None:
    assert LOOPBACK.allows_origin(origin)
    assert not BARE.allows_origin(origin)


HOSTILE = [
    b"",
    b"null",
    b"Null",
    b"http://evil.com",
    b"https://localhost.evil.com",
    b"http://127.0.0.1.evil.com",
    b"http://localhost:evil",
    b"http://localhost:80:evil.com",
    b"http://localhost:99999",
    b"http://localhost:+80",
    b"http://localhost:8_0",
    b"http://localhost:\xb2",
    b"http://localhost..",
    b"http://user@localhost",
    b"http://@localhost",
    b"http://user:password@localhost",
    b"http://localhost@evil.com",
    b"http://localhost:80@evil.com",
    b"http://localhost\\@evil.com",
    b"http://evil.com\\.localhost",
    b"http://[::1",
    b"http://::1",
    b"http://[::ffff:7f00:2].evil.com",
    b"http://0.0.0.0",
    b"http://[::]",
    b"http://2130706433",
    b"http://0x7f.1",
    b"http://loc\xc3\xa4lhost",
    b"http://localhost, http://evil.com",
    b"http://localhost http://evil.com",
    b"http://evil.com http://localhost",
    b"http://",
    b"http:///localhost",
    b"//localhost",
    b"localhost",
    b"localhost:8080",
    b"http:localhost",
    b"file://localhost",
    b"chrome-extension://localhost",
    b"ws://localhost",
    b"http://[::1].evil.com",
    b"http://[::1]evil",
    b"http://evil.com[::1]",
    b"http://[::1%25eth0]",
    b"http://localhost/path",
    b"http://localhost/",
    b"http://localhost?query",
    b"http://localhost#@evil.com",
    b"http://local\thost",
    b"http://localhost:",
]


@pytest.mark.parametrize("origin", HOSTILE)
def test_no_other_page_may_use_any_listener(origin: bytes) -> None:
    for guard in (LOOPBACK, PROXIED, PUBLIC, BARE):
        assert not guard.allows_origin(origin)


@pytest.mark.parametrize(
    "origin",
    [
        b"https://mcp.example.com",
        b"https://mcp.example.com:443",
        b"https://MCP.example.com",
        b"https://mcp.example.com.",
    ],
)
def test_pages_of_external_url_may_use_any_listener(origin: bytes) -> None:
    assert PROXIED.allows_origin(origin)
    assert PUBLIC.allows_origin(origin)


@pytest.mark.parametrize(
    "origin",
    [
        b"http://mcp.example.com",
        b"https://mcp.example.com:8443",
        b"https://evil.mcp.example.com",
        b"https://mcp.example.com.evil.com",
        b"https://mcp.example.com:0",
    ],
)
def test_an_origin_is_scheme_host_and_port_of_external_url(origin: bytes) -> None:
    assert not PROXIED.allows_origin(origin)
    assert not PUBLIC.allows_origin(origin)


def test_external_url_may_have_a_port_and_an_address() -> None:
    guard = OriginGuard("0.0.0.0", "http://[2001:db8::1]:8080")

    assert guard.allows_origin(b"http://[2001:db8::1]:8080")
    assert not guard.allows_origin(b"http://[2001:db8::1]")
    assert guard.judge_host(b"[2001:DB8::1]:8080") is None


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_any_origin_gets_a_verdict(origin: bytes) -> None:
    assert not BARE.allows_origin(origin)
    assert LOOPBACK.allows_origin(b"http://localhost" + origin) in (True, False)


# --- CORS -----------------------------------------------------------------------------------------


def test_an_answer_names_the_one_origin_and_what_scripts_may_read() -> None:
    headers = dict(cors_headers(b"http://localhost:3000"))

    assert headers[b"access-control-allow-origin"] == b"http://localhost:3000"
    assert headers[b"vary"] == b"Origin"
    exposed = headers[b"access-control-expose-headers"].split(b", ")
    assert {b"mcp-session-id", b"www-authenticate"} <= set(exposed)
    assert b"access-control-allow-credentials" not in headers


def _granted(requested: bytes) -> list[bytes]:
    return dict(preflight_headers(b"http://localhost", requested))[b"access-control-allow-headers"].split(
        b", "
    )


def test_row_28_a_preflight_grants_what_both_eras_send() -> None:
    headers = dict(preflight_headers(b"http://localhost:3000", b""))

    assert headers[b"access-control-allow-origin"] == b"http://localhost:3000"
    assert headers[b"access-control-allow-methods"] == b"GET, POST, DELETE"
    assert headers[b"access-control-max-age"].isdigit()
    assert headers[b"vary"] == b"Origin, Access-Control-Request-Headers"
    assert set(_granted(b"")) == {
        *(b"authorization", b"content-type", b"accept", b"mcp-protocol-version", b"mcp-session-id"),
        *(b"mcp-method", b"mcp-name", b"last-event-id"),
    }


def test_row_28_a_preflight_reflects_parameters_of_tools_and_nothing_else() -> None:
    granted = _granted(b"X-Admin, Mcp-Param-Region,mcp-param-b , cookie, *, mcp-other")

    assert granted[-2:] == [b"mcp-param-region", b"mcp-param-b"]
    assert len(granted) == len(_granted(b"")) + 2


def test_a_preflight_does_not_grow_with_what_it_is_asked() -> None:
    many = b",".join(b"mcp-param-%d" % number for number in range(1000))

    assert len(_granted(many)) == len(_granted(b"")) + 32
    assert _granted(b"mcp-param-" + b"a" * 100) == _granted(b"")


@pytest.mark.parametrize("name", [b"mcp-param-a b", b'mcp-param-"', b"mcp-param-\xe9", b"mcp-param-"])
def test_a_preflight_reflects_names_only(name: bytes) -> None:

    assert _granted(name) == _granted(b"")
