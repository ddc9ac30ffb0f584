"""Pools that find their backends, packages that are not there, and what is worth a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mcp_proxy.config import ConfigErrors, PoolConfig, SessionsConfig, read
from mcp_proxy.config.pool_checks import of

SRV: Mapping[str, Any] = {"discover": {"srv": "_mcp._tcp.example.com"}}
KUBERNETES: Mapping[str, Any] = {"discover": {"kubernetes": {"service": "weather"}}}
DNS: Mapping[str, Any] = {"discover": {"dns": "weather", "port": 8000}}


def missing(pool: Mapping[str, Any], *installed: str) -> list[tuple[object, ...]]:
    config = PoolConfig.model_validate(pool)
    return [tuple(issue) for issue in of("a", dict(config), SessionsConfig(), installed.__contains__)]


def warnings(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "proxy.yaml"
    file.write_text(text)
    return [str(each).replace(f"{tmp_path}/proxy.yaml:", "") for each in read(file, {}, {}).warnings]


def test_a_package_that_is_not_installed_is_named_with_what_brings_it() -> None:
    assert missing(SRV) == [
        (
            ("pools", "a", "discover", "srv"),
            "srv needs the package dnspython, which is not installed",
            "pip install 'mcp-reverse-proxy[dns]'",
        )
    ]
    assert missing(KUBERNETES) == [
        (
            ("pools", "a", "discover", "kubernetes"),
            "kubernetes needs the package lightkube, which is not installed",
            "pip install 'mcp-reverse-proxy[kubernetes]'",
        )
    ]


def test_nothing_is_missing_when_it_is_installed_or_not_needed() -> None:
    assert missing(SRV, "dns") == missing(KUBERNETES, "lightkube") == missing(DNS) == []


@pytest.mark.parametrize(
    "port", ["", ", port: 8000", ", port: http"], ids=["no port", "by number", "by name"]
)
def test_a_service_of_kubernetes_needs_a_port_only_if_it_has_several(tmp_path: Path, port: str) -> None:
    pytest.importorskip("lightkube")
    text = f"pools: {{a: {{discover: {{kubernetes: {{service: weather, namespace: mcp}}{port}}}}}}}\n"

    assert warnings(tmp_path, text) == []


def test_a_broken_discovery_is_no_pool_without_backends(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text("pools:\n  a:\n    discover: {dns: '', port: 1}\n    colour: blue\n")

    with pytest.raises(ConfigErrors) as errors:
        read(file, {}, {})

    assert [problem.line for problem in errors.value.problems] == [3, 4]


def test_what_a_pool_may_do_and_should_not_is_a_warning_with_its_line(tmp_path: Path) -> None:
    found = warnings(
        tmp_path,
        """\
pools:
  a:
    discover: {dns: a, port: 1, every: 5ms}
    tls: {}
    balance: hash
    health:
      active: {every: 100ms, timeout: 50ms}
    transport: httpx
    proxy: http://proxy:3128
""",
    )

    assert [each.partition(" (")[0] for each in sorted(found)] == [
        "3: pools.a.discover.every: names are looked up very often",
        "4: pools.a.tls: the backends that are found are not https",
        "5: pools.a.balance: there is no auth, so no request has a principal to hash",
        "7: pools.a.health.active.check: tcp connects directly, not by way of the pool's proxy",
        "7: pools.a.health.active.every: checks are very frequent",
    ]
    assert all(each.endswith(")") for each in found)


def test_a_pace_of_what_comes_by_itself_is_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("lightkube")
    text = "pools: {a: {discover: {kubernetes: {service: a}, every: 9s}}}\n"

    (warning,) = warnings(tmp_path, text)

    assert "with kubernetes changes come by themselves (remove it)" in warning


def test_limits_that_cannot_be_reached_or_stop_everything_are_warnings(tmp_path: Path) -> None:
    found = warnings(
        tmp_path,
        "pools: {a: {backends: [http://a]}}\n"
        "limits:\n  streams: 100\n  memory: 256\n"
        "  per_client:\n    streams: 101\n    requests: 100\n  per_principal: {streams: 1}\n",
    )

    assert [each.partition(" (")[0] for each in sorted(found)] == [
        "4: limits.memory: a process alone needs 64MiB, so it would take no streams",
        "6: limits.per_client.streams: limits.streams is 100 for all of them together",
        "8: limits.per_principal: there is no auth, so no request has a principal",
    ]


def test_a_pool_that_is_well_set_up_gets_no_advice(tmp_path: Path) -> None:
    text = (
        "pools: {a: {discover: {dns: a, port: 1, tls: true}, tls: {}, balance: hash, "
        "affinity: {key: 'header:x-tenant'}, health: {active: {check: /healthz}}}}\n"
    )

    assert warnings(tmp_path, text) == []
