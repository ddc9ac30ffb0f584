"""The documentation as a site: it builds without a warning, has every page, and loads nothing from elsewhere.

Rules of this file: built from a copy, so that nothing is left in the repository.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tools import PATIENCE_S
from tests.tools.documents import ROOT, anchors

SETTINGS = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    built = subprocess.run(
        [Path(sys.executable).with_name("zensical"), "build", "--strict"],
        cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert built.returncode == 0, re.sub(r"\x1b\[[\d;]*m", "", built.stdout + built.stderr)
    assert "arning" not in built.stdout + built.stderr
    return folder / str(SETTINGS["site_dir"])


def navigated(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for target in entry.values():
            if isinstance(target, str):
                yield target
            else:
                yield from navigated(target)


def test_every_page_is_in_the_navigation_once() -> None:
    assert sorted(navigated(SETTINGS["nav"])) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_is_there_with_the_anchors_that_github_has(page: Path, site: Path) -> None:
    html = (site / page.name).with_suffix(".html").read_text()
    ids = set(re.findall(r'\bid="([^"]+)"', html))

    assert anchors(page.read_text()) - ids == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_loads_nothing_from_elsewhere(page: Path, site: Path) -> None:
    html = (site / page.name).with_suffix(".html").read_text()
    loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="?([^"\s>]+)|<link[^>]*\shref="?([^"\s>]+)', html)

    assert loaded
    assert [url for pair in loaded for url in pair if re.match(r"(https?:)?//", url)] == []
