"""What a release is called: scripts/release.py, run as the workflows run it, on copies of this tree.

Rules of this file: the script is run, never imported; every refusal is one sentence and status 2.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_proxy import __version__
from tests.tools import PATIENCE_S

ROOT = Path(__file__).parents[2]

CHANGELOG = """# Changelog

## [Unreleased]

Not yet.

## [1.2.3] - 2026-11-21

### Added

- Something new.

## [1.2.2] - 2026-10-01

- Something old.
"""


class Tree:
    """As much of a tree as the script reads."""

    def __init__(self, folder: Path, version: str, changelog: str) -> None:
        self.script = folder / "scripts/release.py"
        for file in (self.script, folder / "mcp_proxy/__init__.py"):
            file.parent.mkdir()
        shutil.copy(ROOT / "scripts/release.py", self.script)
        (folder / "mcp_proxy/__init__.py").write_text(f'"""Docs."""\n\n__version__ = "{version}"\n')
        (folder / "CHANGELOG.md").write_text(changelog)

    def says(self, *arguments: str) -> str:
        done = self._run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.removesuffix("\n")

    def refuses(self, *arguments: str) -> str:
        done = self._run(*arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        return done.stderr

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # From elsewhere, and without whatever this environment has installed.
        command = [sys.executable, "-I", "-S", str(self.script), *arguments]
        return subprocess.run(
            command, cwd="/", capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, "1.2.3", CHANGELOG)


def test_the_tag_of_this_version_may_be_released(tree: Tree) -> None:
    assert tree.says("tag", "v1.2.3") == "v1.2.3"


@pytest.mark.parametrize("tag", ["v1.2.4", "1.2.3", "v1.2.3 ", "V1.2.3", "v1.2.3rc1", "v1.2", "main", ""])
def test_another_tag_may_not(tag: str, tree: Tree) -> None:
    assert "but the tree says v1.2.3" in tree.refuses("tag", tag)


@pytest.mark.parametrize(
    ("changelog", "complaint"),
    [
        (CHANGELOG.replace("1.2.3", "1.2.1"), "no section"),
        (CHANGELOG.replace(" - 2026-11-21", ""), "does not say when"),
        (CHANGELOG.replace("2026-11-21", "soon"), "does not say when"),
        (CHANGELOG.replace("### Added\n\n- Something new.\n", ""), "says nothing about 1.2.3"),
    ],
)
def test_a_release_that_the_changelog_does_not_describe_may_not_be_made(
    changelog: str, complaint: str, tmp_path: Path
) -> None:
    assert complaint in Tree(tmp_path, "1.2.3", changelog).refuses("tag", "v1.2.3")


@pytest.mark.parametrize(
    "version", ["1.2", "1.2.3.dev1", "v1.2.3", "1.2.3-rc1", "01.2.3", "1.2.3+local", "1.2.3;id"]
)
def test_a_version_that_the_index_would_spell_otherwise_is_none(version: str, tmp_path: Path) -> None:
    tree = Tree(tmp_path, version, CHANGELOG.replace("1.2.3", version))

    assert "is no version for a release" in tree.refuses("version")
    assert "is no version for a release" in tree.refuses("tag", f"v{version}")


def test_the_notes_are_the_section_of_the_version_and_no_other(tree: Tree) -> None:
    assert tree.says("notes") == "### Added\n\n- Something new."


def test_a_final_release_moves_the_tags_that_people_follow(tree: Tree) -> None:
    assert tree.says("image-tags").split("\n") == ["1.2.3", "1.2", "latest"]


def test_a_pre_release_moves_none(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "1.3.0rc1", CHANGELOG.replace("1.2.3", "1.3.0rc1"))

    assert tree.says("tag", "v1.3.0rc1") == "v1.3.0rc1"
    assert tree.says("image-tags") == "1.3.0rc1"


@pytest.mark.parametrize("arguments", [(), ("tag",), ("tag", "v1.2.3", "v1.2.3"), ("publish",)])
def test_anything_else_is_refused(arguments: tuple[str, ...], tree: Tree) -> None:
    assert "usage" in tree.refuses(*arguments)


# --- this tree ------------------------------------------------------------------------------------------

NAMES_A_VERSION = re.compile(r"ghcr\.io/mcp-proxy/mcp-proxy:([\w.]+)|newTag: (\S+)|appVersion: \"?([\w.]+)")
PLACES = ("k8s", "charts", "terraform", "compose.yaml", "compose", "systemd", "docs", "README.md")


def test_this_tree_has_a_version_that_can_be_released() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/release.py", "version"], capture_output=True, text=True, check=True
    )

    assert done.stdout == f"{__version__}\n"


def test_whatever_names_a_version_of_the_image_names_this_one() -> None:
    files = [
        file for place in PLACES for file in (ROOT / place, *(ROOT / place).rglob("*")) if file.is_file()
    ]
    named = {
        (str(file.relative_to(ROOT)), next(filter(None, found.groups())))
        for file in files
        if file.suffix in (".yaml", ".yml", ".tf", ".md", ".service")
        for found in NAMES_A_VERSION.finditer(file.read_text())
    }

    assert {file.split("/")[0] for file, _ in named} >= {"k8s", "terraform"}
    assert {
        (file, version) for file, version in named if version not in (__version__, "latest", "VERSION")
    } == set()
