"""The commands, as they are typed: what they print, where, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mcp_proxy import __version__
from mcp_proxy.cli.main import COMMANDS, commands
from mcp_proxy.config.layers import CONFIG_VARIABLE, LOG_LEVEL_VARIABLE, LOG_LEVELS, SETTINGS

URL = "http://localhost:3000/mcp"


def run(*args: str, **environ: str) -> Result:
    """A command in this process, with no other variables of ours than ``environ``."""
    names = [*(setting.variable for setting in SETTINGS), CONFIG_VARIABLE, LOG_LEVEL_VARIABLE]
    cleared: dict[str, str | None] = dict.fromkeys(names)
    return CliRunner().invoke(commands, args, prog_name="mcp-proxy", env=cleared | environ)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "proxy.yaml"
    path.write_text(f"workers: 2\nlimts: {{}}\npools: {{a: {{backends: [{URL}]}}}}\n")
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "proxy.yaml"
    path.write_text(f"admin: {{token: hunter2}}\npools: {{a: {{backends: [{URL}, http://b]}}}}\n")
    return path


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_command_with_an_example_of_the_shortest_form(flag: str) -> None:
    result = run(flag)

    assert result.exit_code == 0
    assert all(f"\n  {name} " in result.output for name in COMMANDS)
    assert f"mcp-proxy {URL}" in result.output
    assert "Exit codes" in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    result = run(name, "--help")

    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: mcp-proxy {name}")


def test_the_help_of_serve_names_every_flag_variable_and_level() -> None:
    output = run("serve", "--help").output

    for setting in SETTINGS:
        assert setting.variable in output
        assert setting.flag in output
    assert CONFIG_VARIABLE in output
    assert LOG_LEVEL_VARIABLE in output
    assert all(level in output for level in LOG_LEVELS)


@pytest.mark.parametrize(
    ("args", "cure"),
    [
        (["serv"], "Did you mean 'serve'?"),
        (["localhost:3000"], "mcp-proxy http://localhost:3000"),
        (["proxy.yaml"], "mcp-proxy serve --config proxy.yaml"),
        (["xyzzy"], "Commands: serve, demo, sessions, backends, drain, tap, report, log-level, check,"),
        (["serve", "--lisen", ":1"], "--listen"),
        (["--lisen", ":1", URL], "--listen"),
        (["check", "--jsn"], "--json"),
        (["serve", URL, "--workers", "many"], "not a valid integer"),
        (["serve"], f"mcp-proxy {URL}"),
        (["serve", "--listen", ":1"], f"mcp-proxy {URL}"),
        ([], f"mcp-proxy {URL}"),
    ],
)
def test_bad_usage_ends_with_2_and_the_cure_on_stderr(args: list[str], cure: str) -> None:
    result = run(*args)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert cure in result.stderr


def test_serve_prints_every_problem_to_stderr_and_starts_nothing(broken: Path) -> None:
    result = run("serve", "--config", str(broken), "--listen", "nowhere")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert [line.partition(": ")[0] for line in result.stderr.splitlines()] == [
        "--listen", f"{broken}:1", f"{broken}:2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "args",
    [
        ["ftp://a"],
        ["--path", "mcp", URL],
        ["serve", URL, "--workers", "2"],
        ["--sessions", "redis://r/x", URL],
    ],
)
def test_a_url_or_a_flag_of_serve_means_serve(args: list[str]) -> None:
    result = run(*args)

    assert result.exit_code == 2
    assert "Usage:" not in result.stderr, "it was understood, and refused as configuration"
    assert len(result.stderr.splitlines()) == 1


def test_variables_alone_mean_serve() -> None:
    result = run(MCP_PROXY_BACKENDS="localhost:3000")

    assert result.exit_code == 2
    assert result.stderr.startswith("MCP_PROXY_BACKENDS: ")


def test_workers_with_memory_are_refused_with_what_to_use_instead() -> None:
    result = run("serve", URL, "--workers", "2")

    assert result.exit_code == 2
    assert "--sessions signed or --sessions redis://..." in result.stderr


def test_check_prints_every_problem_with_its_line(broken: Path) -> None:
    result = run("check", "--config", str(broken))

    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{broken}:1: workers: ")
    assert lines[1] == f"{broken}:2: limts: unknown key 'limts' (did you mean 'limits'?)"
    assert lines[2:] == ["2 errors, no warnings"]


def test_check_prints_the_same_for_machines(broken: Path) -> None:
    result = run("check", "--config", str(broken), "--json")

    assert result.exit_code == 2
    report = json.loads(result.stdout)
    assert report["ok"] is False
    assert report["warnings"] == []
    assert report["errors"][1] == {
        "source": str(broken), "line": 2, "key": "limts",
        "message": "unknown key 'limts'", "hint": "did you mean 'limits'?",
    }  # fmt: skip


def test_check_of_a_usable_file_ends_with_0_a_summary_and_its_warnings(good: Path) -> None:
    result = run("check", "--config", str(good))

    assert result.exit_code == 0
    warning, count, *summary = result.stdout.splitlines()
    assert warning.startswith(f"{good}:1: admin.token: a secret stands in the configuration")
    assert count == "no errors, 1 warning"
    assert summary == [
        "listen 127.0.0.1:8080, admin 127.0.0.1:9901, sessions memory",
        "/mcp -> a: 2 backends",
    ]
    assert "hunter2" not in result.output


def test_check_without_a_file_judges_the_variables(good: Path) -> None:
    assert run("check").exit_code == 2
    assert run("check", MCP_PROXY_BACKENDS=URL).exit_code == 0
    assert run("check", MCP_PROXY_BACKENDS=URL, MCP_PROXY_LISTEN="x").exit_code == 2
    assert f"{good}:1:" in run("check", MCP_PROXY_CONFIG=str(good)).stdout


def test_schema_is_a_json_schema() -> None:
    result = run("schema")

    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert "pools" in schema["properties"]


def test_version_for_people_and_for_machines() -> None:
    assert run("version").stdout == run("--version").stdout == f"mcp-proxy {__version__}\n"
    facts = json.loads(run("version", "--json").stdout)
    assert facts["version"] == __version__
    assert facts["libraries"]["uvicorn"]
