"""The Dockerfile says what the documents promise, and every name in it exists.

Rules of this file: nothing is built here; ``test_container_image.py`` builds and runs it (``make image``). A
rule that no other tool checks has a test, and each of them is shown to fail on a file that breaks it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from mcp_proxy.cli.main import commands
from tests.tools.dockerfile import Dockerfile, Ignored, expand, parse
from tests.tools.image import context_files
from tests.tools.proxy import ROOT

TEXT = (ROOT / "Dockerfile").read_text()
FILE = parse(TEXT)
BUILD, FINAL = FILE.stages
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_OF_A_PROXY = {"demo", "load"}
"""Extras that the image leaves out."""


def value(name: str) -> str:
    (instruction,) = FINAL.all(name)
    return instruction.value


def extras() -> set[str]:
    (argument,) = BUILD.all("ARG")
    return set(argument.pairs({})["EXTRAS"].split(","))


def labels() -> dict[str, str]:
    arguments = {name: given for each in FINAL.all("ARG") for name, given in each.pairs({}).items()}
    return {name: given for each in FINAL.all("LABEL") for name, given in each.pairs(arguments).items()}


def test_hadolint_finds_nothing() -> None:
    program = Path(sys.executable).with_name("hadolint")
    found = subprocess.run(
        [program, "--failure-threshold", "info", ROOT / "Dockerfile"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def test_hadolint_would_find_a_base_image_without_a_version(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text("FROM python\n")
    program = Path(sys.executable).with_name("hadolint")
    assert "DL3006" in subprocess.run([program, file], capture_output=True, text=True, timeout=30).stdout


def unpinned(file: Dockerfile) -> list[str]:
    pinned = re.compile(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}")
    return [stage.base for stage in file.stages if not pinned.fullmatch(stage.base)]


def test_every_stage_begins_with_the_same_image_pinned_by_tag_and_digest() -> None:
    assert unpinned(FILE) == []
    assert {stage.base for stage in FILE.stages} == {FILE.arguments["PYTHON_IMAGE"]}
    assert labels()["org.opencontainers.image.base.name"] == BUILD.base.partition("@")[0]


@pytest.mark.parametrize("base", ["python:3.13-slim", "python@sha256:" + "0" * 64, "python:3.13@sha256:abc"])
def test_an_image_without_tag_or_digest_would_be_found(base: str) -> None:
    assert unpinned(parse(f"FROM {base}\n")) == [base]


def test_its_python_is_one_that_the_package_supports() -> None:
    version = re.search(r"python:(\d+\.\d+)", BUILD.base)
    assert version is not None
    assert version[1] in SpecifierSet(PROJECT["requires-python"])
    assert f"Programming Language :: Python :: {version[1]}" in PROJECT["classifiers"]


def test_it_has_every_extra_that_a_proxy_may_need_and_no_other() -> None:
    assert extras() == set(PROJECT["optional-dependencies"]) - NOT_OF_A_PROXY


def test_packages_come_from_the_pinned_versions_only_and_none_is_compiled() -> None:
    installs = [each.value for each in BUILD.all("RUN") if "--no-index" not in each.value]
    assert len(installs) == 1
    assert installs[0].count("pip install") == installs[0].count("--constraint constraints.txt pip")
    assert "pip wheel --quiet --only-binary :all: --no-build-isolation" in installs[0]
    assert "ADD" not in {each.name for stage in FILE.stages for each in stage.instructions}


def test_a_cache_or_an_address_of_an_index_is_never_part_of_it() -> None:
    assert BUILD.all("ENV")[0].pairs({})["PIP_NO_CACHE_DIR"] == "1"
    assert not re.search(r"index-url|trusted-host|https?://(?!github\.com/)", TEXT)


def test_the_last_stage_only_copies_what_was_built_and_runs_nothing_of_the_network() -> None:
    (copy,) = FINAL.all("COPY")
    assert (copy.flags, copy.value) == ({"from": "build"}, "/opt/mcp-proxy /opt/mcp-proxy")
    (run,) = FINAL.all("RUN")
    assert not re.search(r"\b(pip|apt|apt-get|curl|wget)\b", run.value)


def test_nobody_is_root_in_it() -> None:
    assert value("USER") == "10001:10001"
    assert "mcp-proxy:x:10001:10001:" in FINAL.all("RUN")[0].value


def test_what_starts_is_a_command_of_the_proxy_in_exec_form() -> None:
    entrypoint, command = FINAL.all("ENTRYPOINT")[0].form(), FINAL.all("CMD")[0].form()
    assert entrypoint == ["mcp-proxy"] == list(PROJECT["scripts"])
    name, *arguments = command
    serve = commands.get_command(None, name)  # type: ignore[arg-type]
    assert serve is not None
    parameters = serve.make_context(name, list(arguments)).params
    assert str(parameters["config"]) == "/etc/mcp-proxy/proxy.yaml"


def test_the_exec_form_is_told_from_the_shell_form() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        parse("FROM x\nENTRYPOINT mcp-proxy\n").stages[0].instructions[0].form()


def test_it_stops_by_draining() -> None:
    assert value("STOPSIGNAL") == "SIGTERM"


def test_its_ports_are_those_of_every_example() -> None:
    assert value("EXPOSE").split() == ["8080", "9901"]


def test_its_labels_are_those_of_the_open_container_initiative() -> None:
    prefix = "org.opencontainers.image."
    assert {name.removeprefix(prefix) for name in labels() if name.startswith(prefix)} == {
        *("title", "description", "source", "documentation", "licenses", "base.name", "version", "revision"),
    }
    assert labels()[f"{prefix}licenses"] == PROJECT["license"]
    assert labels()[f"{prefix}description"] == PROJECT["description"]


def test_the_context_is_what_the_file_copies_and_nothing_else() -> None:
    copied = {source for each in BUILD.all("COPY") for source in each.value.split()[:-1]}
    sent = context_files()
    assert {name.split("/")[0] if name.startswith("mcp_proxy/") else name for name in sent} == {
        *(copied - {"mcp_proxy/__init__.py"})
    }
    assert [name for name in sent if "__pycache__" in name or name.endswith(".pyc")] == []
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *sorted(copied)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if shutil.which("git") and tracked.returncode == 0:
        assert sent <= set(tracked.stdout.splitlines())


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("mcp_proxy/app.py", False),
        ("mcp_proxy/__pycache__/app.cpython-313.pyc", True),
        ("mcp_proxy/cli/__pycache__/x.pyc", True),
        (".git/config", True),
        ("secrets.env", True),
        ("docs/README.md", True),
        ("README.md", False),
        ("scripts/setup.sh", True),
        ("scripts/sbom.py", False),
    ],
)
def test_the_context_has_no_file_by_accident(path: str, ignored: bool) -> None:
    assert Ignored((ROOT / ".dockerignore").read_text())(path) is ignored


@pytest.mark.parametrize(
    "text", ["FROM x\nADD a b\n", "FROM x\nHEALTHCHECK NONE\n", "RUN x\n", "FROM x\nRUN a \\\n", "hello\n"]
)
def test_what_the_builder_does_not_know_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="line"):
        parse(text)


def test_variables_are_expanded_as_a_build_does() -> None:
    assert expand("$A-${A}-${B:-c}-${B}-\\$A", {"A": "1"}) == "1-1-c--$A"
