"""Values that decide: which bytes are a Host, and which a session id."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_proxy.headers import is_session_id, parse_authority

# --- Host -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "host", "port"),
    [
        (b"localhost", "localhost", None),
        (b"LocalHost:8080", "localhost", 8080),
        (b"example.com.", "example.com", None),
        (b"example.com.:443", "example.com", 443),
        (b"127.0.0.1:65535", "127.0.0.1", 65535),
        (b"[::1]", "::1", None),
        (b"[::1]:80", "::1", 80),
        (b"[2001:DB8::1.2.3.4]:1", "2001:db8::1.2.3.4", 1),
        (b"my_service", "my_service", None),
        (b"a", "a", None),
        (b"a" * 254, "a" * 254, None),
    ],
)
def test_a_valid_host_is_read(value: bytes, host: str, port: int | None) -> None:
    assert parse_authority(value) == (host, port)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b".",
        b"localhost:",
        b"localhost:evil",
        b"localhost:65536",
        b"localhost:999999",
        b"localhost:-1",
        b"localhost:80:80",
        b"user@localhost",
        b"localhost, evil.com",
        b"localhost evil.com",
        b"localhost/path",
        b"localhost\\evil",
        b"a b@c/d",
        b"::1",
        b"[::1",
        b"::1]",
        b"[::1]x",
        b"[::1]:x",
        b"[]",
        b"[::1%25eth0]",
        b"[localhost]",
        b"-a",
        b".a",
        b"M\xfcnchen.de",
        b"localhost\x00",
        b"%6cocalhost",
        b"a" * 255,
    ],
)
def test_an_invalid_host_is_none(value: bytes) -> None:
    assert parse_authority(value) is None


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_any_host_is_refused_or_is_plain_text_with_a_port(value: bytes) -> None:
    authority = parse_authority(value)

    if authority is not None:
        host, port = authority
        assert host
        assert host == host.lower()
        assert host.isascii()
        assert not set("@/\\?#[] ,%") & set(host)
        assert port is None or 0 <= port <= 65535


# --- session ids ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"a", b"!", b"~", b"{x}*", b"0" * 512])
def test_visible_ascii_is_a_session_id(value: bytes) -> None:
    assert is_session_id(value)


@pytest.mark.parametrize(
    "value", [b"", b" ", b"a b", b"a\n", b"a\r\nb", b"\x7f", b"\x00", b"\xe9", b"0" * 513]
)
def test_anything_else_is_no_session_id(value: bytes) -> None:
    assert not is_session_id(value)
