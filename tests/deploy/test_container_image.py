"""The image, built from the Dockerfile step by step, is what docs/container.md says it is.

Rules of this file: run by ``make image``, because it needs root, and a minute; no engine is needed. What
stands in for the base image is Debian's Python of the same release, without what the base image does not
have.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from referencing import Registry, Resource

from tests.deploy.engineless import VERSION, base, built, place
from tests.tools.container import Image, Run, running
from tests.tools.image import listing
from tests.tools.npm import install

pytestmark = [pytest.mark.privileged, pytest.mark.timeout(900)]

CYCLONEDX = ("@cyclonedx/cyclonedx-library", "10.1.0")
HOME = "opt/mcp-proxy"
SHEBANG = f"#!/{HOME}/bin/python".encode()


def site_packages(image: Image) -> Path:
    (folder,) = (image.layer / HOME / "lib").glob("python3.*/site-packages")
    return folder


def in_container(image: Image, *command: str) -> str:
    """What a command of the image prints."""
    with running(image, place(), Run(entrypoint=command)) as container:
        code = container.process.wait(60)
        assert code == 0, container.output
        return container.output


def test_two_builds_are_the_same_bytes() -> None:
    once, again = listing(built().layer), listing(built(attempt=1).layer)
    assert {path for path in once.keys() | again.keys() if once.get(path) != again.get(path)} == set()
    assert len(once) > 1000


def test_it_adds_its_environment_bytecode_and_a_user_and_nothing_else() -> None:
    files = {path for path in listing(built().layer) if not (built().layer / path).is_dir()}
    others = {path for path in files if not path.startswith(f"{HOME}/")}
    bytecode = re.compile(r"usr/(local/)?lib/python3\.\d+/(.+/)?__pycache__/[^/]+\.pyc")
    assert {path for path in others if not bytecode.fullmatch(path)} == {"etc/passwd", "etc/group"}


def test_its_user_has_a_name_and_can_log_in_nowhere() -> None:
    before, after = ((each / "etc/passwd").read_text() for each in (base(), built().layer))
    assert after == f"{before}mcp-proxy:x:10001:10001:mcp-proxy:/nonexistent:/usr/sbin/nologin\n"
    assert in_container(built(), "id", "-un") == "mcp-proxy\n"


def test_nothing_in_it_can_be_changed_by_its_user_or_gives_more_rights() -> None:
    wrong = []
    for path in built().layer.rglob("*"):
        status = path.lstat()
        is_owned = (status.st_uid, status.st_gid) == (0, 0)
        loose = stat.S_ISUID | stat.S_ISGID | stat.S_IWGRP | stat.S_IWOTH
        if not is_owned or (not path.is_symlink() and status.st_mode & loose):
            wrong.append(str(path))
    assert wrong == []


def test_no_trace_of_where_it_was_built() -> None:
    of_the_build = re.compile(rb"file://|/wheels/|/src/mcp_proxy|/opt/build")
    found = [
        str(path)
        for path in (built().layer / HOME).rglob("*")
        if path.is_file() and path.name in {"RECORD", "direct_url.json", "pyvenv.cfg", "METADATA"}
        if of_the_build.search(path.read_bytes()) or path.name == "direct_url.json"
    ]
    assert found == []
    assert not (built().layer / HOME / "bin/pip").exists()


def test_everything_that_runs_comes_from_its_own_environment() -> None:
    assert (built().layer / HOME / "bin/mcp-proxy").read_bytes().startswith(SHEBANG)
    assert in_container(built(), "mcp-proxy", "version").strip().endswith(package_version())


def package_version() -> str:
    (metadata,) = site_packages(built()).glob("mcp_reverse_proxy-*.dist-info")
    return metadata.name.split("-")[1].removesuffix(".dist")


def test_a_start_compiles_nothing() -> None:
    program = (
        "import sys, os\n"
        "import mcp_proxy.process, mcp_proxy.workers.parent, mcp_proxy.cli.serve, mcp_proxy.sessions.redis\n"
        "files = {each: str(getattr(each, '__file__', '')) for each in sys.modules.values()}\n"
        "found = [each for each, file in files.items() if file.endswith('.py')]\n"
        "print([m.__file__ for m in found if not os.path.exists(getattr(m, '__cached__', None) or '/')])\n"
    )
    assert in_container(built(), "python", "-c", program) == "[]\n"


def test_bytecode_is_taken_as_it_is_so_that_no_time_of_a_file_matters() -> None:
    flags = {path.read_bytes()[4:8] for path in built().layer.rglob("*.pyc")}
    assert flags == {(0b01).to_bytes(4, "little")}, "PEP 552: by hash, not checked"


def test_every_module_of_the_package_is_in_it() -> None:
    source = Path(__file__).parents[2] / "mcp_proxy"
    wanted = {
        path.relative_to(source) for path in source.rglob("*") if path.suffix in {".py", ".html", ".typed"}
    }
    installed = site_packages(built()) / "mcp_proxy"
    assert wanted <= {path.relative_to(installed) for path in installed.rglob("*")}


@pytest.mark.parametrize(
    "module", ["dns.resolver", "h2.connection", "lightkube", "opentelemetry.exporter.otlp"]
)
def test_what_the_extras_bring_is_there(module: str) -> None:
    assert in_container(built(), "python", "-c", f"import {module}; print('there')") == "there\n"


@pytest.mark.parametrize("module", ["mcp", "locust", "pytest", "pip"])
def test_what_a_proxy_does_not_need_is_not(module: str) -> None:
    program = f"import importlib.util as u; print(u.find_spec({module!r}))"
    assert in_container(built(), "python", "-c", program) == "None\n"


def test_the_labels_have_what_the_build_was_told() -> None:
    assert built().labels["org.opencontainers.image.version"] == VERSION
    assert built().labels["org.opencontainers.image.revision"] == "unknown"


# --- the bill of materials --------------------------------------------------------------------------


def bill() -> dict[str, Any]:
    label = built().labels["io.github.mcp-proxy.sbom"]
    document: dict[str, Any] = json.loads((built().layer / label.lstrip("/")).read_text())
    return document


def cyclonedx() -> Any:
    folder = install(*CYCLONEDX) / "res" / "schema"
    schemas = [json.loads(path.read_text()) for path in folder.glob("*.schema.json")]
    found = [(each["$id"], Resource.from_contents(each)) for each in schemas if "$id" in each]
    schema = json.loads((folder / "bom-1.6.SNAPSHOT.schema.json").read_text())
    # References are relative to the published name of the schema; the copies have SNAPSHOT in theirs.
    registry: Registry[Any] = Registry().with_resources(found)
    aliases = [(name.replace("SNAPSHOT.", ""), each) for name, each in found]
    aliases += [(re.sub(r"\.schema\.json$", ".SNAPSHOT.schema.json", name), each) for name, each in aliases]
    return jsonschema.Draft7Validator(schema, registry=registry.with_resources(aliases))


def test_the_bill_is_valid() -> None:
    assert [error.message for error in cyclonedx().iter_errors(bill())] == []


def test_a_bill_that_is_not_valid_is_found() -> None:
    broken = bill()
    broken["components"][0]["hashes"][0]["content"] = "abc"
    broken["components"][1]["licenses"] = [{"expression": 1}]
    assert len(list(cyclonedx().iter_errors(broken))) == 2


def test_the_bill_names_everything_that_is_installed_with_version_and_hash() -> None:
    components = [bill()["metadata"]["component"], *bill()["components"]]
    named = {(each["name"], each["version"]) for each in components}
    installed = {
        (re.sub(r"[-_.]+", "-", name).lower(), version)
        for path in site_packages(built()).glob("*.dist-info")
        for name, version in [path.name.removesuffix(".dist-info").rsplit("-", 1)]
    }
    assert named == installed
    assert all(re.fullmatch("[0-9a-f]{64}", each["hashes"][0]["content"]) for each in components)


def test_the_bill_says_what_requires_what() -> None:
    requires = {each["ref"].partition("@")[0]: each["dependsOn"] for each in bill()["dependencies"]}
    assert any(each.startswith("pkg:pypi/lightkube@") for each in requires["pkg:pypi/mcp-reverse-proxy"])
    known = {each["bom-ref"] for each in bill()["components"]}
    assert {each for targets in requires.values() for each in targets} <= known


def test_pinned_versions_are_the_installed_ones() -> None:
    lines = Path(__file__).parents[2].joinpath("constraints.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if "==" in line)
    pinned = {re.sub(r"[-_.]+", "-", name): version for name, version in pins.items()}
    assert {each["name"]: each["version"] for each in bill()["components"]}.items() <= pinned.items()


def test_the_root_that_stands_in_for_the_base_image_has_no_bytecode_either() -> None:
    assert not list((base() / "usr/lib").glob("python3*/__pycache__"))
    assert os.readlink(base() / "usr/local/bin/python") == "python3"
