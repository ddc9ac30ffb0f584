"""Flags over file over variables over defaults, and what a few URLs mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from mcp_proxy.config import Config, ConfigErrors, load, read
from mcp_proxy.config.layers import SETTINGS

URL = "http://a:1/mcp"
VARIABLES = {
    "MCP_PROXY_BACKENDS": "http://env:1/mcp http://env:2/mcp,http://env:3/mcp",
    "MCP_PROXY_LISTEN": "127.0.0.1:1001",
    "MCP_PROXY_ADMIN": "127.0.0.1:1002",
    "MCP_PROXY_ADMIN_TOKEN": "secret",
    "MCP_PROXY_METRICS_TOKEN": "another",
    "MCP_PROXY_PATH": "/env",
    "MCP_PROXY_SESSIONS": "memory",
    "MCP_PROXY_WORKERS": "1",
    "MCP_PROXY_EXTERNAL_URL": "https://env.example.com",
    "MCP_PROXY_TRUSTED_PROXIES": "10.0.0.0/8, 127.0.0.1",
}
FILE = """
listen: 127.0.0.1:2001
admin: {listen: 127.0.0.1:2002}
external_url: https://file.example.com
pools: {file: {backends: [http://file:1/mcp]}}
routes: [{path: /file, pool: file}]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "proxy.yaml"
    path.write_text(FILE)
    return path


def backends(config: Config) -> dict[str, list[str]]:
    return {name: [backend.url for backend in pool.backends] for name, pool in config.pools.items()}


def paths(config: Config) -> list[tuple[str, str]]:
    return [(route.path, route.pool) for route in config.routes]


def messages(environ: Mapping[str, str], flags: Mapping[str, object], path: Path | None = None) -> list[str]:
    with pytest.raises(ConfigErrors) as errors:
        load(path, environ, flags)
    return str(errors.value).splitlines()


def test_a_url_is_enough() -> None:
    config = load(None, {}, {"backends": [URL]})

    assert backends(config) == {"default": [URL]}
    assert paths(config) == [("/mcp", "default")]


def test_every_variable_sets_its_value() -> None:
    config = load(None, VARIABLES, {})

    assert set(VARIABLES) == {setting.variable for setting in SETTINGS}
    assert backends(config) == {"default": ["http://env:1/mcp", "http://env:2/mcp", "http://env:3/mcp"]}
    assert paths(config) == [("/env", "default")]
    assert (str(config.listen), str(config.admin.listen)) == ("127.0.0.1:1001", "127.0.0.1:1002")
    assert config.admin.token is not None
    assert config.admin.token.value == "secret"
    assert config.external_url == "https://env.example.com"
    assert [str(network) for network in config.trusted_proxies] == ["10.0.0.0/8", "127.0.0.1/32"]


def test_the_file_wins_over_variables(file: Path) -> None:
    config = load(file, VARIABLES, {})

    assert backends(config) == {"file": ["http://file:1/mcp"]}
    assert paths(config) == [("/file", "file")]
    assert (str(config.listen), str(config.admin.listen)) == ("127.0.0.1:2001", "127.0.0.1:2002")
    assert config.external_url == "https://file.example.com"
    assert config.admin.token is not None, "the file is silent about it, so the variable stays"


def test_flags_win_over_the_file(file: Path) -> None:
    flags = {"listen": ":3001", "admin": "off", "backends": (URL,), "path": "/flag", "workers": None}

    config = load(file, VARIABLES, flags)

    assert backends(config) == {"default": [URL]}
    assert paths(config) == [("/flag", "default")]
    assert (str(config.listen), config.admin.listen) == ("0.0.0.0:3001", None)
    assert config.external_url == "https://file.example.com"


def test_a_path_moves_the_only_route_of_a_file(file: Path) -> None:
    assert paths(load(file, {}, {"path": "/flag"})) == [("/flag", "file")]
    assert paths(load(file, {"MCP_PROXY_PATH": "/env"}, {})) == [("/file", "file")]


def test_a_path_for_a_file_with_several_routes_is_ambiguous(file: Path) -> None:
    file.write_text("pools: {p: {backends: [http://a]}}\nroutes: [{path: /a, pool: p}, {path: /b, pool: p}]")

    assert messages({}, {"path": "/c"}, file) == [
        "--path: the file has 2 routes, it is not clear which one is meant (write the path into the file)"
    ]


def test_a_file_with_one_pool_and_no_route_is_reached_at_the_path(file: Path) -> None:
    file.write_text("pools: {only: {backends: [http://a]}}")

    assert paths(load(file, {}, {})) == [("/mcp", "only")]
    assert paths(load(file, {"MCP_PROXY_PATH": "/env"}, {})) == [("/env", "only")]
    assert paths(load(file, {"MCP_PROXY_PATH": "/env"}, {"path": "/flag"})) == [("/flag", "only")]


def test_a_file_without_pools_takes_backends_from_the_variable(file: Path) -> None:
    file.write_text("listen: 127.0.0.1:5\n")

    assert backends(load(file, {"MCP_PROXY_BACKENDS": URL}, {})) == {"default": [URL]}


def test_the_file_is_found_through_its_variable_unless_a_flag_names_one(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("pools: {other: {backends: [http://b]}}")
    environ = {"MCP_PROXY_CONFIG": str(file)}

    assert list(load(None, environ, {}).pools) == ["file"]
    assert list(load(other, environ, {}).pools) == ["other"]


@pytest.mark.parametrize("admin", ["off", "{listen: off}"])
def test_an_admin_listener_that_the_file_turns_off_can_be_turned_on_by_a_flag(file: Path, admin: str) -> None:
    file.write_text(f"admin: {admin}\npools: {{a: {{backends: [http://a]}}}}")

    assert load(file, VARIABLES, {}).admin.listen is None
    assert str(load(file, {}, {"admin": "127.0.0.1:7"}).admin.listen) == "127.0.0.1:7"


def test_a_mistake_names_the_variable_or_flag_it_came_from() -> None:
    environ = {
        "MCP_PROXY_LISTEN": "nowhere",
        "MCP_PROXY_WORKERS": "many",
        "MCP_PROXY_BACKENDS": "localhost:3000",
    }
    found = messages(environ, {"admin": "0.0.0.0:1", "path": "mcp", "log_level": "loud"})

    assert [line.partition(":")[0] for line in sorted(found)] == [
        "--admin", "--log-level", "--path", "MCP_PROXY_BACKENDS", "MCP_PROXY_LISTEN", "MCP_PROXY_WORKERS",
    ]  # fmt: skip
    assert any("set admin.token or MCP_PROXY_ADMIN_TOKEN" in line for line in found)
    assert messages({}, {"backends": ["localhost:3000"]}) == [
        "URL: 'localhost:3000' does not begin with http:// or https:// (write http://localhost:3000/mcp)"
    ]


def test_an_empty_variable_is_not_set() -> None:
    config = load(None, {"MCP_PROXY_LISTEN": "", "MCP_PROXY_BACKENDS": URL, "MCP_PROXY_LOG_LEVEL": ""}, {})

    assert str(config.listen) == "127.0.0.1:8080"


def test_variables_that_an_orchestrator_sets_for_its_own_purposes_are_ignored() -> None:
    environ = {"MCP_PROXY_SERVICE_HOST": "10.1.2.3", "MCP_PROXY_PORT": "tcp://10.1.2.3:80"}

    assert read(None, environ, {"backends": [URL]}).warnings == []


def test_a_variable_that_is_nearly_right_is_warned_about() -> None:
    (warning,) = read(None, {"MCP_PROXY_BACKEND": URL}, {"backends": [URL]}).warnings

    assert "did you mean MCP_PROXY_BACKENDS?" in str(warning)


def test_the_log_level_comes_from_flag_then_variable_then_info() -> None:
    environ = {"MCP_PROXY_LOG_LEVEL": "DEBUG"}

    assert read(None, environ, {"backends": [URL], "log_level": "error"}).log_level == "error"
    assert read(None, environ, {"backends": [URL]}).log_level == "debug"
    assert read(None, {}, {"backends": [URL]}).log_level == "info"
    assert "MCP_PROXY_LOG_LEVEL: 'inf' is not a level (did you mean 'info'?)" in messages(
        {"MCP_PROXY_LOG_LEVEL": "inf"}, {"backends": [URL]}
    )


def test_nothing_at_all_says_what_to_give() -> None:
    (problem,) = messages({}, {})

    assert "there is no backend" in problem
    assert "mcp-proxy http://localhost:3000/mcp" in problem


def test_a_flag_does_not_hide_that_its_section_of_the_file_is_broken(file: Path) -> None:
    file.write_text("admin: 7\npools: {a: {backends: [http://a]}}")

    (problem,) = messages({}, {"admin": "127.0.0.1:1"}, file)
    assert problem.startswith(f"{file}:1: admin: must be keys with values")


def test_a_secret_in_a_variable_is_no_literal_but_one_on_the_command_line_is(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text(f"pools: {{a: {{backends: [{URL}]}}}}\n")
    registry = "redis://:hunter2@redis:6379/0"
    environ = {
        "MCP_PROXY_SESSIONS": registry,
        "MCP_PROXY_ADMIN_TOKEN": "hunter2",
        "MCP_PROXY_METRICS_TOKEN": "hunter22",
    }

    assert read(file, environ, {}).warnings == []
    (warning,) = read(file, environ, {"sessions": registry}).warnings
    assert str(warning).startswith("--sessions: a secret stands in the configuration")
    file.write_text(f"pools: {{a: {{backends: [{URL}]}}}}\nsessions: {{store: redis, url: '{registry}'}}\n")
    (warning,) = read(file, environ, {}).warnings
    assert str(warning).startswith(f"{file}:2: sessions.url: a secret stands in the configuration")
