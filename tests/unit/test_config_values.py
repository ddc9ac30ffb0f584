"""What one value may look like, and that what is written comes back."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy.config import Address
from mcp_proxy.config.values import (
    SESSION_KEY_CHARS,
    DefaultedUrl,
    Invalid,
    address,
    affinity_key,
    backend_identity,
    backend_url,
    duration,
    egress_proxy_url,
    external_url,
    format_duration,
    format_size,
    network,
    optional_address,
    optional_duration,
    optional_size,
    positive_duration,
    route_path,
    session_key,
    size,
)

YEAR_MS = 366 * 86_400_000


@given(st.integers(min_value=1, max_value=YEAR_MS))
def test_a_duration_of_whole_milliseconds_survives_being_written_and_read(milliseconds: int) -> None:
    text = format_duration(milliseconds / 1000)

    assert round(positive_duration(text) * 1000) == milliseconds


@given(st.integers(min_value=1, max_value=1 << 40))
def test_a_size_survives_being_written_and_read(count: int) -> None:
    assert size(format_size(count)) == count


@given(st.text(max_size=12))
def test_any_text_is_a_duration_and_size_or_refused_with_a_cure(text: str) -> None:
    for reader in (optional_duration, size):
        value: object = None
        refusal = None
        try:
            value = reader(text)
        except Invalid as error:
            refusal = error
        assert value or text == "none" or (refusal is not None and refusal.message and refusal.hint)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("5s", 5.0),
        ("10m", 600.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        ("1.5s", 1.5),
        ("0s", 0.0),
    ],
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert duration(text) == seconds


def test_no_limit_is_written_none_and_back() -> None:
    assert optional_duration("none") is None
    assert optional_duration(None) is None
    assert format_duration(None) == "none"
    assert format_duration(0) == "0s"


@pytest.mark.parametrize(
    "value",
    ["5", "5 s", "-5s", "s", "5S", "5sec", "1e3s", "", True, None, [], "400d", "\u0665s", float("nan"), -1],
)
def test_what_is_not_a_duration_is_refused_with_examples(value: object) -> None:
    with pytest.raises(Invalid) as error:
        duration(value)

    assert "500ms" in error.value.hint or "366d" in error.value.hint


@pytest.mark.parametrize(
    ("value", "count"), [("64KiB", 65536), ("4MiB", 4 << 20), ("1GiB", 1 << 30), ("7B", 7), ("7", 7), (8, 8)]
)
def test_sizes_are_binary_or_plain_bytes(value: object, count: int) -> None:
    assert size(value) == count


@pytest.mark.parametrize("value", ["4MB", "4 MiB", "1.5MiB", "", "-1", 0, "0B", True, 1.5, None, "4096GiB"])
def test_what_is_not_a_size_is_refused(value: object) -> None:
    with pytest.raises(Invalid, match=r"not a size|out of range"):
        size(value)


@pytest.mark.parametrize(
    ("text", "host", "port", "written"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080, "127.0.0.1:8080"),
        (":8080", "0.0.0.0", 8080, "0.0.0.0:8080"),
        ("[::1]:8080", "::1", 8080, "[::1]:8080"),
        ("localhost:0", "localhost", 0, "localhost:0"),
        ("my-host.example:65535", "my-host.example", 65535, "my-host.example:65535"),
    ],
)
def test_listen_addresses(text: str, host: str, port: int, written: str) -> None:
    assert address(text) == Address(host, port)
    assert str(address(text)) == written


@pytest.mark.parametrize(
    "value",
    ["8080", "localhost", "localhost:", "::1:8080", "[::1]", "[x]:1", "a b:1", "h:65536", "h:-1", 80, None],
)
def test_what_is_not_an_address_is_refused_with_a_cure(value: object) -> None:
    with pytest.raises(Invalid) as error:
        address(value)

    assert error.value.hint


@pytest.mark.parametrize("value", ["off", False, None])
def test_off_is_no_listener_however_yaml_reads_it(value: object) -> None:
    assert optional_address(value) is None


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        (":1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("myhost:1", False),
    ],
)
def test_only_loopback_counts_as_private(text: str, loopback: bool) -> None:
    assert address(text).is_loopback is loopback


def test_a_wildcard_collides_with_every_address_of_its_port_but_never_port_zero() -> None:
    assert address(":80").collides_with(address("127.0.0.1:80"))
    assert not address(":80").collides_with(address("127.0.0.1:81"))
    assert not address("127.0.0.1:0").collides_with(address("127.0.0.1:0"))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://LocalHost:3000/MCP", "http://localhost:3000/MCP"),
        ("HTTPS://example.com/a/b", "https://example.com/a/b"),
        ("http://[::1]:80/", "http://[::1]:80/"),
        ("http://h:1/", "http://h:1/"),
    ],
)
def test_a_backend_url_keeps_its_path(text: str, url: str) -> None:
    assert backend_url(text) == url
    assert not isinstance(backend_url(text), DefaultedUrl)


def test_a_backend_url_without_a_path_gets_mcp_and_remembers_it() -> None:
    url = backend_url("http://localhost:3000")

    assert url == "http://localhost:3000/mcp"
    assert isinstance(url, DefaultedUrl)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("localhost:3000", "does not begin with http"),
        ("localhost", "does not begin with http"),
        ("ftp://h/x", "does not begin with http"),
        ("http:/h/x", "does not begin with http"),
        ("http:///mcp", "has no host"),
        ("http://", "has no host"),
        ("http://h:99999/", "cannot be read"),
        ("http://h:x/", "cannot be read"),
        ("http://[::1/", "cannot be read"),
        ("http://h:0/", "cannot have"),
        ("http://a b/", "cannot have"),
        ("http://h/ä", "cannot have"),
        ("http://h/a\nb", "cannot have"),
        ("http://user:hunter2@h/", "user or password"),
        ("user:hunter2@h", "does not begin with http"),
        ("http://h/mcp?hunter2=1", "query or a fragment"),
        ("http://h/mcp#x", "query or a fragment"),
        ("http://h/mcp?", "query or a fragment"),
        (3000, "a number is not a URL"),
        (None, "an empty value is not a URL"),
    ],
)
def test_what_cannot_be_a_backend_is_refused_without_repeating_a_password(text: object, cause: str) -> None:
    with pytest.raises(Invalid, match=cause) as error:
        backend_url(text)

    assert "hunter2" not in str(error.value)
    assert error.value.hint


def test_two_spellings_of_a_backend_are_the_same_one() -> None:
    assert backend_identity(backend_url("http://A/mcp")) == backend_identity(backend_url("http://a:80"))
    assert backend_identity(backend_url("http://a/mcp")) != backend_identity(backend_url("https://a/mcp"))


def test_an_external_url_may_have_a_prefix_and_loses_its_last_slash() -> None:
    assert external_url("https://MCP.example.com/") == "https://mcp.example.com"
    assert external_url("https://example.com/tools/") == "https://example.com/tools"


def test_an_egress_proxy_may_hold_a_password_but_no_path() -> None:
    assert egress_proxy_url("http://u:p@h:3128/") == "http://u:p@h:3128"
    with pytest.raises(Invalid, match="no path"):
        egress_proxy_url("http://h/x")


@pytest.mark.parametrize("path", ["/", "/mcp", "/a/b-c_d.e~f", "/a:b@c", "/mcp/"])
def test_route_paths(path: str) -> None:
    assert route_path(path) == path


@pytest.mark.parametrize(
    "path", ["mcp", "", "/a b", "/a?b", "/a#b", "/%61", "//a", "/a//b", "/a/../b", "/.", "/ä", 7]
)
def test_a_path_that_no_client_could_match_is_refused(path: object) -> None:
    with pytest.raises(Invalid) as error:
        route_path(path)

    assert error.value.hint


def test_a_network_may_be_one_address_but_has_no_bits_behind_its_prefix() -> None:
    assert network("10.0.0.0/8") == ipaddress.ip_network("10.0.0.0/8")
    assert network("::1") == ipaddress.ip_network("::1/128")
    with pytest.raises(Invalid, match=r"did you mean '10\.0\.0\.0/8'"):
        network("10.0.0.1/8")
    with pytest.raises(Invalid, match="not a network"):
        network("everyone")
    with pytest.raises(Invalid, match="not a network"):
        network(10)


@pytest.mark.parametrize("count", [0, 1, SESSION_KEY_CHARS - 1])
def test_a_session_key_that_could_be_guessed_is_refused_without_being_repeated(count: int) -> None:
    key = "k3Y" * count
    with pytest.raises(Invalid, match="too few") as error:
        session_key(key[:count])

    assert not count or key[:count] not in str(error.value) or count == 1
    assert "openssl rand" in error.value.hint


def test_a_session_key_is_taken_as_it_is() -> None:
    assert session_key(" " * SESSION_KEY_CHARS) == " " * SESSION_KEY_CHARS
    assert session_key("x" * 1000) == "x" * 1000


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("principal", "principal"),
        ("client", "client"),
        ("header:x-tenant", "header:x-tenant"),
        ("header:X-Tenant", "header:x-tenant"),
    ],
)
def test_affinity_is_kept_by_who_asks_or_by_a_header(text: str, meaning: str) -> None:
    assert affinity_key(text) == meaning


@pytest.mark.parametrize(
    "value",
    [
        "", "header", "header:", "header:x tenant", "header:x:y", "header:x\n", "principal:", "client:x",
        "Client", "cookie:x", None, 7, ["client"],
    ],
)  # fmt: skip
def test_what_cannot_keep_a_caller_with_a_backend_is_refused(value: object) -> None:
    with pytest.raises(Invalid, match="not a key of affinity") as error:
        affinity_key(value)

    assert "header:x-tenant" in error.value.hint


def test_a_size_may_be_off_however_yaml_reads_it() -> None:
    for value in ("off", False, None):
        assert optional_size(value) is None
    assert optional_size("64KiB") == 65536
    with pytest.raises(Invalid, match="not a size") as error:
        optional_size("some")
    assert "or off" in error.value.hint


def test_an_admin_address_that_is_none_may_be_off() -> None:
    with pytest.raises(Invalid, match="or off"):
        optional_address("nowhere")
