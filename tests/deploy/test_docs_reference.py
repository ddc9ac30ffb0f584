"""docs/configuration.md is what the program says about itself, and it says something about every key.

Rules of this file: the page is compared as a whole, the models are asked one key at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from click.testing import CliRunner

from mcp_proxy.cli.main import commands
from mcp_proxy.cli.reference import keys, page
from mcp_proxy.config.layers import SETTINGS
from tests.tools.documents import ROOT, blocks

COMMITTED = (ROOT / "docs/configuration.md").read_text()
KEYS = {key.path: key for key in keys()}


def test_the_page_is_up_to_date() -> None:
    assert page() == COMMITTED, "docs/configuration.md is not what it is made of: run `make docs`"


def test_the_command_prints_the_page() -> None:
    result = CliRunner().invoke(commands, ["schema", "--markdown"])

    assert (result.exit_code, result.output) == (0, COMMITTED)


def test_every_key_of_the_schema_has_its_line() -> None:
    schema = json.loads(CliRunner().invoke(commands, ["schema"]).output)
    names = {name for model in (schema, *schema["$defs"].values()) for name in model.get("properties", {})}

    assert {path.rpartition(".")[2] for path in KEYS} == names


def test_every_key_has_a_description() -> None:
    assert [path for path, key in KEYS.items() if not key.meaning.strip()] == []
    assert [
        path for path, key in KEYS.items() if not re.fullmatch(r"(?s)[^a-z].*\.|`.*\.", key.meaning)
    ] == []


def test_the_schema_for_editors_says_the_same() -> None:
    schema = json.loads(CliRunner().invoke(commands, ["schema"]).output)
    sections = schema["$defs"]
    said = {
        # Left out where a section says the same of itself.
        field.get("description") or sections[field["$ref"].rpartition("/")[2]]["description"]
        for model in (schema, *sections.values())
        for field in model.get("properties", {}).values()
    }

    assert {key.meaning for key in KEYS.values()} == said


def test_what_a_key_may_be_is_said() -> None:
    assert [path for path, key in KEYS.items() if not key.value] == []


def paths(document: Any, at: str = "") -> Iterator[str]:
    """Every key of an example, as the reference calls it."""
    if isinstance(document, list):
        for each in document:
            yield from paths(each, f"{at}[]")
    elif isinstance(document, dict):
        for name, value in document.items():
            # A pool may have any name; the headers of a collector have no lines of their own.
            path = at + ".*" if at == "pools" else f"{at}.{name}".lstrip(".")
            yield path
            yield from paths(value, path)


def test_every_key_has_an_example() -> None:
    shown: set[str] = set()
    for block in blocks("configuration.md", COMMITTED, "yaml"):
        shown |= set(paths(yaml.safe_load(block.text)))

    assert KEYS.keys() - shown == set()


def test_every_flag_and_variable_is_named() -> None:
    for setting in SETTINGS:
        assert f"`{setting.variable}`" in COMMITTED
        assert not setting.flag or f"`{setting.flag}`" in COMMITTED


def test_only_what_a_reload_takes_over_says_so() -> None:
    """Spot checks from both sides; the table itself is tested in test_config_changes.py."""
    assert {KEYS[path].reload for path in ("listen", "sessions.ttl", "tls.client_ca")} == {"restart"}
    assert {KEYS[path].reload for path in ("limits.body", "tls.certificate", "pools.*.balance")} == {"yes"}
