"""Where something is: what is accepted, and that everything else is refused with a cure."""

from __future__ import annotations

import ipaddress

import pytest

from mcp_proxy.config import Address
from mcp_proxy.config.addresses import (
    DefaultedUrl,
    address,
    backend_identity,
    backend_url,
    check_kind,
    discovery_name,
    egress_proxy_url,
    external_url,
    network,
    optional_address,
    port_reference,
    route_path,
)
from mcp_proxy.config.values import Invalid


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


def test_an_admin_address_that_is_none_may_be_off() -> None:
    with pytest.raises(Invalid, match="or off"):
        optional_address("nowhere")


@pytest.mark.parametrize("name", ["weather", "a.b.svc.cluster.local", "_mcp._tcp.example.com.", "10.0.0.1"])
def test_names_to_be_found_are_taken_as_they_are(name: str) -> None:
    assert discovery_name(name) == name


@pytest.mark.parametrize("value", ["", "a b", "a/b", "a..b", ".a", "http://a", "a:80", "\u00e4", 7, None])
def test_what_is_not_a_name_to_be_found_is_refused_with_a_cure(value: object) -> None:
    with pytest.raises(Invalid, match="not a DNS name") as error:
        discovery_name(value)
    assert "cluster.local" in error.value.hint


@pytest.mark.parametrize("port", [1, 65535, "http", "mcp-http", "a1"])
def test_a_port_is_a_number_or_a_name(port: object) -> None:
    assert port_reference(port) == port


@pytest.mark.parametrize("value", [0, 65536, True, "80", "-a", "a-", "Web", "a" * 16, "", None])
def test_what_is_not_a_port_is_refused_with_a_cure(value: object) -> None:
    with pytest.raises(Invalid, match="not a port") as error:
        port_reference(value)
    assert "65535" in error.value.hint


@pytest.mark.parametrize("check", ["tcp", "discover", "/healthz", "/"])
def test_a_check_is_a_word_or_a_path(check: str) -> None:
    assert check_kind(check) == check


@pytest.mark.parametrize("value", ["ping", "", "healthz", 7, None, "TCP"])
def test_what_is_not_a_check_is_refused_with_a_cure(value: object) -> None:
    with pytest.raises(Invalid, match="not a check") as error:
        check_kind(value)
    assert "/healthz" in error.value.hint
