#!/usr/bin/env python3
"""Whether what was built may be published: `scripts/release_dist.py FOLDER`.

Rules of this file: it reads one sdist and one wheel and nothing else; exit status 2 with one sentence for
each thing that is wrong. Needs ``packaging``, which comes with the dependency group ``release``.
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from packaging.metadata import Metadata
from packaging.utils import canonicalize_name

NAME = "mcp-reverse-proxy"
PACKAGE = "mcp_proxy"


def check(folder: Path) -> Iterator[str]:
    """What is wrong with the two distributions in this folder."""
    files = sorted(path.name for path in folder.iterdir() if path.suffix in (".whl", ".gz"))
    wheels = [name for name in files if name.endswith("-py3-none-any.whl")]
    sdists = [name for name in files if name.endswith(".tar.gz")]
    if (len(files), len(wheels), len(sdists)) != (2, 1, 1):
        yield f"{folder} should hold one sdist and one pure wheel, and holds {files}"
        return
    wheel, sdist = folder / wheels[0], folder / sdists[0]
    yield from _check_wheel(wheel)
    yield from _check_sdist(sdist)
    if _wheel_metadata(wheel) != _sdist_metadata(sdist):
        yield "sdist and wheel describe themselves differently"


def _check_wheel(path: Path) -> Iterator[str]:
    version = path.name.split("-")[1]
    described = Metadata.from_email(_wheel_metadata(path))  # validates, and raises for what it cannot be
    if (canonicalize_name(described.name), str(described.version)) != (NAME, version):
        yield f"{path.name} is of {described.name} {described.version}"
    if not described.description or described.description_content_type != "text/markdown":
        yield f"{path.name} has no description"
    for required in ("summary", "requires_python", "license_expression", "project_urls"):
        if not getattr(described, required):
            yield f"{path.name}: its metadata has no {required}"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names}
    if top != {PACKAGE, f"{NAME.replace('-', '_')}-{version}.dist-info"}:
        yield f"{path.name} holds {sorted(top)}"
    for marker in (f"{PACKAGE}/py.typed", f"{NAME.replace('-', '_')}-{version}.dist-info/licenses/LICENSE"):
        if marker not in names:
            yield f"{path.name} has no {marker}"


def _check_sdist(path: Path) -> Iterator[str]:
    with tarfile.open(path) as archive:
        for member in archive:
            if not (member.isfile() or member.isdir()):
                yield f"{path.name}: {member.name} is neither a file nor a folder"
            if member.uid or member.gid or member.uname or member.gname:
                yield f"{path.name}: {member.name} says who built it"


def _wheel_metadata(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        (name,) = [each for each in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", each)]
        return archive.read(name)


def _sdist_metadata(path: Path) -> bytes:
    with tarfile.open(path) as archive:
        file = archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert file is not None, "PKG-INFO is a file"
        return file.read()


def main(arguments: list[str]) -> int:
    problems = list(check(Path(arguments[0]))) if len(arguments) == 1 else ["usage: release_dist.py FOLDER"]
    for problem in problems:
        print(f"release: {problem}", file=sys.stderr)
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
