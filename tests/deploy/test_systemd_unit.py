"""The systemd unit agrees with what it starts: its command, its signals, its times, its exit codes.

Rules of this file: the unit is read as text; what systemd makes of it is in ``test_systemd_booted.py``
(``make image``), where a real one runs it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mcp_proxy.cli.main import commands
from mcp_proxy.cli.serve import EXIT_CONFIGURATION
from mcp_proxy.config import Config, read
from mcp_proxy.downstream.settings import connections_for
from tests.tools.proxy import ROOT

UNIT = (ROOT / "systemd/mcp-proxy.service").read_text()


def values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT, re.MULTILINE)


def value(key: str) -> str:
    (only,) = values(key)
    return only


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """systemd/proxy.yaml, with the secrets where the service has them."""
    text = (ROOT / "systemd/proxy.yaml").read_text()
    (tmp_path / "secret_session-key").write_text("0123456789abcdef" * 4)
    file = tmp_path / "proxy.yaml"
    file.write_text(text.replace("/run/credentials/mcp-proxy.service/", f"{tmp_path}/"))
    loaded = read(file, {}, {})
    assert [str(each) for each in loaded.warnings] == []
    return loaded.config


def test_it_starts_the_command_that_is_installed_where_the_manual_installs_it() -> None:
    program, *arguments = value("ExecStart").split()
    assert program == "/opt/mcp-proxy/bin/mcp-proxy"
    serve = commands.get_command(None, arguments[0])  # type: ignore[arg-type]
    assert serve is not None
    parameters = serve.make_context(arguments[0], arguments[1:]).params
    manual = (ROOT / "docs/container.md").read_text()
    assert f"systemd/proxy.yaml {parameters['config']}" in manual
    assert "python3 -m venv /opt/mcp-proxy" in manual


def test_the_example_configuration_has_no_error_and_its_secret_is_one_that_the_unit_loads(
    config: Config,
) -> None:
    name, folder = value("LoadCredential").split(":")
    path = yaml.safe_load((ROOT / "systemd/proxy.yaml").read_text())["sessions"]["keys"][0]
    assert path.startswith(f"file:/run/credentials/mcp-proxy.service/{name}_")
    secret = path.rpartition(f"{name}_")[2]
    assert f"{folder}/{secret}" in (ROOT / "docs/container.md").read_text()
    assert config.sessions.store == "signed"


def test_it_has_time_to_drain(config: Config) -> None:
    assert int(value("TimeoutStopSec")) > config.limits.drain_delay + config.limits.drain + 10


def test_the_signal_that_drains_goes_to_the_parent_alone() -> None:
    assert (value("KillSignal"), value("KillMode")) == ("SIGTERM", "mixed")


def test_a_wrong_configuration_is_not_tried_again_and_everything_else_is() -> None:
    assert (value("Restart"), value("RestartPreventExitStatus")) == ("on-failure", str(EXIT_CONFIGURATION))


def test_restarts_that_never_help_come_to_an_end() -> None:
    starts, within, pause = (
        int(value(key)) for key in ("StartLimitBurst", "StartLimitIntervalSec", "RestartSec")
    )
    assert starts * (pause + 1) < within


def test_it_may_open_as_many_files_as_the_limits_need(config: Config) -> None:
    assert connections_for(int(value("LimitNOFILE"))) >= config.limits.streams + config.limits.requests


def test_a_variable_of_the_example_is_one_of_the_proxy() -> None:
    named = re.findall(r"^#?(MCP_PROXY_\w+)=", (ROOT / "systemd/environment").read_text(), re.MULTILINE)
    from mcp_proxy.cli.serve import EPILOG

    suffixes = [f"MCP_PROXY_{word}" for word in re.findall(r"[A-Z_]{4,}", EPILOG)]
    assert named
    assert all(name in suffixes or name in EPILOG for name in named)


def test_no_line_is_said_twice_but_lists() -> None:
    keys = re.findall(r"^(\w+)=", UNIT, re.MULTILINE)
    assert {key for key in keys if keys.count(key) > 1} <= {
        "SystemCallFilter",
        "ExecReload",
        "LoadCredential",
    }
