#!/usr/bin/env python3
"""What a release is called, and whether it may be made.

    scripts/release.py version              the version of this tree
    scripts/release.py tag v1.2.3           may this tree be released under that tag?
    scripts/release.py notes                the section of CHANGELOG.md for this version
    scripts/release.py image-tags           the tags that the image of this version gets, one to a line

Rules of this file: the standard library only, because it runs before anything is installed; it reads this
tree and nothing else; exit status 2 with one sentence on standard error for whatever is not as it should be.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Final releases and the three kinds of pre-releases, in the one spelling that the package index keeps
# (https://packaging.python.org/specifications/version-specifiers/), so that tag, wheel and image agree.
VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)((?:a|b|rc)(?:0|[1-9]\d*))?")
SECTION = re.compile(r"^## \[(?P<version>[^]]+)\](?: - (?P<date>\S+))?$", re.M)
DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


class NotReleasable(Exception):
    """One sentence for whoever wanted the release."""


def version() -> str:
    found = re.search(r'^__version__ = "([^"]+)"$', (ROOT / "mcp_proxy/__init__.py").read_text(), re.M)
    if found is None:
        raise NotReleasable("mcp_proxy/__init__.py has no line with __version__")
    if VERSION.fullmatch(found[1]) is None:
        raise NotReleasable(
            f"{found[1]} in mcp_proxy/__init__.py is no version for a release, like 1.2.3 or 1.2.3rc1"
        )
    return found[1]


def check_tag(tag: str) -> str:
    """A tag is right when it is ``v`` and the version of the tree, and the changelog says what is new in
    it."""
    expected = f"v{version()}"
    if tag != expected:
        raise NotReleasable(
            f"the tag is {tag}, but the tree says {expected}: tag the commit that changes the version"
        )
    notes()
    return expected


def notes() -> str:
    """The text between the heading of this version and the next one."""
    wanted = version()
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = list(SECTION.finditer(text))
    for heading, after in zip(headings, [*headings[1:], None], strict=True):
        if heading["version"] != wanted:
            continue
        if DATE.fullmatch(heading["date"] or "") is None:
            raise NotReleasable(f"CHANGELOG.md does not say when: write '## [{wanted}] - YYYY-MM-DD'")
        section = text[heading.end() : after.start() if after else None].strip()
        if not section:
            raise NotReleasable(f"CHANGELOG.md says nothing about {wanted}")
        return section
    raise NotReleasable(f"CHANGELOG.md has no section '## [{wanted}] - YYYY-MM-DD'")


def image_tags() -> str:
    """A pre-release gets its own name only: ``latest`` and ``1.2`` move to final releases."""
    name = version()
    parts = VERSION.fullmatch(name)
    assert parts is not None, "version() has seen to it"
    major, minor, _, pre = parts.groups()
    return name if pre else "\n".join([name, f"{major}.{minor}", "latest"])


def main(arguments: list[str]) -> int:
    try:
        match arguments:
            case ["version"]:
                print(version())
            case ["tag", tag]:
                print(check_tag(tag))
            case ["notes"]:
                print(notes())
            case ["image-tags"]:
                print(image_tags())
            case _:
                raise NotReleasable("usage: release.py version | tag TAG | notes | image-tags")
    except NotReleasable as problem:
        print(f"release: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
