"""``check`` looks at files only: no name is looked up, and what is found later is not counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mcp_proxy.cli.check import check


def run(tmp_path: Path, text: str, *options: str) -> Result:
    file = tmp_path / "proxy.yaml"
    file.write_text(text)
    return CliRunner().invoke(check, ["--config", str(file), *options])


def test_a_name_that_nobody_knows_is_no_mistake_before_the_start(tmp_path: Path) -> None:
    result = run(tmp_path, "pools: {a: {discover: {dns: nowhere.invalid, port: 8000}}}\n")

    assert result.exit_code == 0
    assert "no errors, no warnings" in result.stdout
    assert "/mcp -> a: found in DNS as nowhere.invalid" in result.stdout


def test_backends_that_are_found_by_service_are_said_to_be(tmp_path: Path) -> None:
    pytest.importorskip("lightkube")
    result = run(tmp_path, "pools: {a: {discover: {kubernetes: {service: weather}}}}\n")

    assert "/mcp -> a: found as endpoints of the Service weather" in result.stdout


def test_backends_that_are_written_down_are_counted(tmp_path: Path) -> None:
    assert "a: 1 backend\n" in run(tmp_path, "pools: {a: {backends: [http://a]}}\n").stdout
    assert "a: 2 backends\n" in run(tmp_path, "pools: {a: {backends: [http://a, http://b]}}\n").stdout


def test_every_problem_has_its_place_for_machines_too(tmp_path: Path) -> None:
    result = run(tmp_path, "pools:\n  a:\n    discover: {dns: b}\n", "--json")

    assert result.exit_code == 2
    (error,) = json.loads(result.stdout)["errors"]
    assert (error["line"], error["key"]) == (3, "pools.a.discover.port")
    assert error["hint"]
