"""What is published: scripts/release-build.sh, run once as the workflows run it, and what came out.

Rules of this file: the script has compared two builds, installed the wheel into an empty environment and run
the command before it says anything, so that it ends well is most of what there is to test; the rest is that
it would not have, had something been wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mcp_proxy import __version__

ROOT = Path(__file__).parents[2]
SCRIPT = "scripts/release-build.sh"
STEM = f"mcp_reverse_proxy-{__version__}"

BUILD_S = 180.0
"""Two builds, and fifteen wheels from an index that may be far away."""


def build(tree: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tree / SCRIPT, out],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=False,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("dist")
    (out / "mcp_reverse_proxy-0.0.1.tar.gz").write_text("of an earlier version")

    done = build(ROOT, out)

    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def sdist(built: Path) -> set[str]:
    with tarfile.open(built / f"{STEM}.tar.gz") as archive:
        return {each.name.removeprefix(f"{STEM}/") for each in archive if each.isfile()}


@pytest.mark.timeout(BUILD_S + 20)
def test_two_builds_give_the_same_bytes_and_what_they_give_can_be_installed_and_run(built: Path) -> None:
    assert {each.name for each in built.iterdir()} == {
        f"{STEM}.tar.gz",
        f"{STEM}-py3-none-any.whl",
        f"mcp-reverse-proxy-{__version__}.cdx.json",
        "SHA256SUMS",
    }


def test_the_checksums_are_those_of_the_files(built: Path) -> None:
    lines = (built / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}

    assert listed == {
        each.name: hashlib.sha256(each.read_bytes()).hexdigest()
        for each in built.iterdir()
        if each.name != "SHA256SUMS"
    }


def test_the_sdist_is_the_whole_repository(sdist: set[str]) -> None:
    # Of everything that tests read, and of what people look for.
    wanted = {
        ".github/workflows/test.yaml",
        ".gitignore",
        "CHANGELOG.md",
        "Dockerfile",
        "LICENSE",
        "Makefile",
        "PKG-INFO",
        "constraints.txt",
        "docs/operations.md",
        "k8s/base/deployment.yaml",
        "mcp_proxy/py.typed",
        "nginx/nginx.conf",
        "scripts/setup.sh",
        "terraform/main.tf",
        "tests/deploy/test_release_build.py",
        "tests/tools/actions.json",
        "tests/tools/hcl.mjs",
    }

    assert wanted - sdist == set()


def test_nothing_generated_is_published(sdist: set[str]) -> None:
    generated = ("build/", "dist/", ".venv/", ".git/", ".hypothesis/")

    assert [
        name for name in sdist if name.startswith(generated) or "__pycache__" in name or "_cache/" in name
    ] == []


def test_the_wheel_is_the_package_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(built / f"{STEM}-py3-none-any.whl") as archive:
        names = set(archive.namelist())
    package = {str(file.relative_to(ROOT)) for file in (ROOT / "mcp_proxy").rglob("*") if file.is_file()}

    assert {name for name in names if name.startswith("mcp_proxy/")} == {
        name for name in package if "__pycache__" not in name
    }
    assert {name.split("/")[0] for name in names} == {"mcp_proxy", f"{STEM}.dist-info"}


def test_the_bill_of_materials_names_what_the_proxy_runs_on_and_nothing_of_its_tests(built: Path) -> None:
    bill = json.loads((built / f"mcp-reverse-proxy-{__version__}.cdx.json").read_text())
    names = {each["name"] for each in bill["components"]}

    assert bill["metadata"]["component"]["purl"] == f"pkg:pypi/mcp-reverse-proxy@{__version__}"
    assert names >= {"uvicorn", "httptools", "redis", "cryptography", "cffi"}
    assert not names & {"pytest", "pip", "setuptools", "mypy", "locust"}


# --- what would have been found -------------------------------------------------------------------------


def check(folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/release_dist.py", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 2) == bool(done.stderr)
    return done.stderr.splitlines()


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    for each in (*built.glob("*.whl"), *built.glob("*.tar.gz")):
        shutil.copy(each, tmp_path)
    return tmp_path


def test_distributions_as_they_were_built_pass(copied: Path) -> None:
    assert check(copied) == []


def test_a_wheel_with_something_beside_the_package_is_refused(copied: Path) -> None:
    with zipfile.ZipFile(copied / f"{STEM}-py3-none-any.whl", "a") as archive:
        archive.writestr("tests/test_it.py", "")

    (problem,) = check(copied)
    assert "holds ['mcp_proxy', 'mcp_reverse_proxy" in problem
    assert "'tests'" in problem


def test_a_distribution_too_many_is_refused(copied: Path) -> None:
    shutil.copy(copied / f"{STEM}.tar.gz", copied / "mcp_reverse_proxy-9.9.9.tar.gz")

    (problem,) = check(copied)
    assert "should hold one sdist and one pure wheel" in problem


def test_an_sdist_that_says_who_built_it_is_refused(copied: Path) -> None:
    packed = copied / f"{STEM}.tar.gz"
    with tarfile.open(packed) as archive:
        # Python 3.11.2 knows no filters, newer ones want to be told of one.
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(copied / "unpacked", **safely)
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(copied / "unpacked" / STEM, STEM, filter=_by_somebody)
    shutil.rmtree(copied / "unpacked")

    assert any("says who built it" in problem for problem in check(copied))


def _by_somebody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid, member.uname = 1000, "somebody"
    return member


def test_a_build_that_depends_on_its_place_is_refused(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("scripts", "mcp_proxy"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tree)
    (tree / "hatch_build.py").write_text(
        "from hatchling.builders.hooks.plugin.interface import BuildHookInterface\n"
        "class Hook(BuildHookInterface):\n"
        "    def initialize(self, version, build_data):\n"
        "        open(self.root + '/mcp_proxy/place.py', 'w').write(f'PLACE = {self.root!r}')\n"
    )
    with (tree / "pyproject.toml").open("a") as file:
        file.write('\n[tool.hatch.build.hooks.custom]\npath = "hatch_build.py"\n')

    done = build(tree, tmp_path / "dist")

    assert (done.returncode, "two builds of the same tree differ" in done.stderr) == (1, True), done.stderr
    assert not (tmp_path / "dist").exists()
