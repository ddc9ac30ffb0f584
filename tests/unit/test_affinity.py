"""What of a request keeps it with a backend."""

from __future__ import annotations

import pytest

from mcp_proxy.affinity import Affinity

HEADERS = [(b"accept", b"*/*"), (b"x-tenant", b"acme"), (b"x-empty", b""), (b"x-two", b"1"), (b"x-two", b"1")]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("principal", b"0123abcd"),
        ("client", b"192.0.2.1"),
        ("header:x-tenant", b"acme"),
        ("header:x-absent", None),
        ("header:x-empty", None),
        ("header:x-two", None),
    ],
)
def test_affinity_follows_the_setting(setting: str, value: bytes | None) -> None:
    assert Affinity(setting).value("0123abcd", "192.0.2.1", HEADERS) == value


@pytest.mark.parametrize("setting", ["principal", "client", "header:x-tenant"])
def test_a_caller_of_whom_nothing_is_known_has_no_affinity(setting: str) -> None:
    assert Affinity(setting).value("", "", []) is None


@pytest.mark.parametrize(
    "setting", ["", "Principal", "header", "header:", "header:X-Tenant", "header:a b", "header:é", "x-tenant"]
)
def test_other_settings_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match="affinity is principal, client or header"):
        Affinity(setting)
