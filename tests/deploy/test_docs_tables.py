"""Tables of the documentation that repeat what the code says: they are compared with it.

Rules of this file: the words of the code are the list; a page has neither fewer nor more.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from mcp_proxy.exchange import _MOVES
from mcp_proxy.replies import _MAYBE_EXECUTED, TABLE
from mcp_proxy.routing import HANDSHAKE_VERSIONS, MODERN_VERSIONS
from tests.tools.documents import ROOT

OPERATIONS = (ROOT / "docs/operations.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
PROTOCOL = (ROOT / "docs/protocol.md").read_text()


def section(text: str, heading: str) -> str:
    return text.partition(f"\n{heading}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """Cells of all rows that begin with code, in order."""
    found = re.findall(r"^\| (`.*) \|$", text, re.M)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in found]


# --- incidents by Mcp-Proxy-Reason ---------------------------------------------------------------------

INCIDENTS = {row[0].strip("`"): row for row in rows(section(OPERATIONS, "## When the proxy itself answers"))}
RULES = yaml.safe_load((ROOT / "k8s/monitoring/prometheus-rules.yaml").read_text())
ALERTS = {
    rule["alert"]: rule["expr"]
    for group in RULES["spec"]["groups"]
    for rule in group["rules"]
    if "alert" in rule
}


def test_there_is_one_row_for_every_word() -> None:
    assert list(INCIDENTS) == list(TABLE)


@pytest.mark.parametrize("word", TABLE)
def test_a_row_has_the_status_and_the_code(word: str) -> None:
    template = TABLE[word]
    code = "plain text" if template.code is None else str(template.code)

    assert INCIDENTS[word][1] == f"{template.status}, {code}"


@pytest.mark.parametrize("word", TABLE)
def test_a_row_says_when_it_may_have_run_and_when_to_come_again(word: str) -> None:
    why = INCIDENTS[word][2]

    assert ("maybe executed" in why) == (word in _MAYBE_EXECUTED)
    assert ("`Retry-After: 1`" in why) == (dict(TABLE[word].headers).get(b"retry-after") == b"1")


@pytest.mark.parametrize("word", TABLE)
def test_a_row_is_whole(word: str) -> None:
    assert len(INCIDENTS[word]) == 6
    assert all(INCIDENTS[word])


@pytest.mark.parametrize("word", TABLE)
def test_a_row_names_an_alert_that_counts_the_word(word: str) -> None:
    anchors = re.findall(r"telemetry\.md#(\w+)\)", INCIDENTS[word][5])
    names = [name for name in ALERTS if name.lower() in anchors]
    counted = "mcp_proxy_rejections_total"

    assert len(names) == len(anchors) > 0
    for name in names:
        matcher = re.search(rf'{counted}\{{reason(=|=~|!~)"([^"]*)"', ALERTS[name])
        if matcher is not None:
            is_named = re.fullmatch(matcher[2], word) is not None
            assert is_named != (matcher[1] == "!~")


# --- architecture --------------------------------------------------------------------------------------


def layers() -> list[list[str]]:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = document["tool"]["importlinter"]["contracts"]
    (layers,) = (each["layers"] for each in contracts if each["id"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in layers]


def test_the_layers_are_those_of_the_import_contract() -> None:
    table = [re.findall(r"`(\w+)`", row[0]) for row in rows(section(ARCHITECTURE, "## Layers"))]

    assert table == layers()


def test_every_folder_of_tests_is_explained() -> None:
    folders = {row[0].strip("`") for row in rows(section(ARCHITECTURE, "## Tests"))}
    there = {f"tests/{path.name}" for path in (ROOT / "tests").iterdir() if list(path.glob("*.py"))}

    assert folders == there


def test_the_states_are_those_of_an_exchange() -> None:
    table = {
        row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1]))
        for row in rows(section(ARCHITECTURE, "## States"))
    }

    assert table == {state.name: {each.name for each in moves} for state, moves in _MOVES.items()}


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_module_that_is_named_exists(page: Path) -> None:
    """``mcp_proxy.a.b``, with or without an attribute behind a colon. Metrics have no dot in front."""
    named = re.findall(r"\bmcp_proxy((?:\.[a-z_0-9]+)+)(?::(\w+))?", page.read_text())
    for dotted, attribute in named:
        place = ROOT / "mcp_proxy" / dotted.strip(".").replace(".", "/")
        file = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
        if attribute or file.exists():
            assert attribute in file.read_text()


# --- protocol ------------------------------------------------------------------------------------------


def test_every_revision_that_is_routed_has_a_row() -> None:
    table = set(re.findall(r"^\| (\d{4}-\d\d-\d\d) \|", section(PROTOCOL, "## Revisions"), re.M))

    assert table == {version.decode() for version in HANDSHAKE_VERSIONS | MODERN_VERSIONS}


# --- performance ---------------------------------------------------------------------------------------

PERFORMANCE = (ROOT / "docs/performance.md").read_text()


def figures(text: str) -> dict[str, list[str]]:
    """Rows of tables by what is measured."""
    found = re.findall(r"^\| ([^|\n]+?) \| (.*) \|$", text, re.M)
    return {name: [cell.strip(" *") for cell in row.split("|")] for name, row in found}


def numbers(text: str) -> list[float]:
    return [float(each.replace(",", "")) for each in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


def test_the_readme_has_the_same_figures() -> None:
    readme = figures(section((ROOT / "README.md").read_text(), "## Performance"))
    whole = figures(PERFORMANCE)

    assert len(readme) == 4
    assert {name: whole[name][:3] for name in readme} == readme


def test_rules_for_sizing_follow_from_the_figures() -> None:
    measured = figures(section(PERFORMANCE, "## Figures")).values()
    known = [(*numbers(cells[0]), *numbers(cells[2])) for cells in measured if "µs" in cells[0]]
    rules = figures(section(PERFORMANCE, "## Sizing")).values()
    derived = [cells for cells in rules if cells[0].startswith("1 s / (")]

    assert len(derived) == 3
    for arithmetic, result in derived:
        _, cost_us, ratio = numbers(arithmetic)
        assert (cost_us, ratio) in known
        assert numbers(result)[0] == pytest.approx(1e6 / (cost_us * ratio), rel=0.02)
