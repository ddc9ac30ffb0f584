"""Links lead somewhere: every relative link, every anchor, every path that a page names, every runbook.

Rules of this file: nothing outside of this repository is asked. Links to its own address on GitHub count as
relative ones, because pages of the site cannot link out of docs in any other way.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.tools.documents import REPOSITORY, ROOT, anchors, links, name_of, pages, prose

PAGES = {name_of(page): page for page in [*pages(), ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]}
FOLDERS = "charts|compose|docs|k8s|mcp_proxy|nginx|scripts|systemd|terraform|tests|\\.github"
NAMED = re.compile(rf"`((?:{FOLDERS})/[\w./-]*\w/?)`")
"""A path of this repository, as code."""

YOURS = {"k8s/overlays/mine/kustomization.yaml"}
"""Files that readers make."""


def fault(page: Path, link: str) -> str | None:
    """What is wrong with a link; None if nothing is, or if it leads elsewhere."""
    target, _, anchor = link.partition("#")
    own = re.match(rf"{REPOSITORY}/(?:blob|tree)/main/(.*)", target)
    if own is None and re.match(r"[a-z]+:", target):
        return None
    place = ROOT / own[1] if own is not None else (page.parent / target if target else page)
    if not place.exists():
        return f"{link}: there is no {place.resolve().relative_to(ROOT)}"
    if anchor and place.suffix == ".md" and anchor not in anchors(place.read_text()):
        return f"{link}: {place.name} has no such heading"
    return None


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = PAGES[name]
    found = list(links(page.read_text()))

    assert list(filter(None, (fault(page, link) for link in found))) == []


def test_links_are_found() -> None:
    text = '[a](b.md#c) `[no](code)` ![e](f.png)\n```\n[no](fence)\n```\n<img src="h.svg">\n'

    assert list(links(text)) == ["b.md#c", "f.png", "h.svg"]


@pytest.mark.parametrize("name", PAGES)
def test_every_path_that_is_named_exists(name: str) -> None:
    named = NAMED.findall(prose(PAGES[name].read_text()))

    assert [path for path in named if not (ROOT / path).exists() and path not in YOURS] == []


def test_what_readers_make_is_on_a_page() -> None:
    assert {path for page in PAGES.values() for path in NAMED.findall(prose(page.read_text()))} >= YOURS


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("docs/")])
def test_a_page_of_the_site_links_to_no_file_outside_of_it(name: str) -> None:
    """It would work on GitHub and be broken on the site."""
    outside = [link for link in links(PAGES[name].read_text()) if link.startswith("..")]

    assert outside == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = {link.partition("#")[0] for link in links((ROOT / "README.md").read_text())}

    assert {name for name in PAGES if name.startswith("docs/")} - linked == {"docs/index.md"}


def test_every_runbook_of_an_alert_is_there() -> None:
    rules = yaml.safe_load((ROOT / "k8s/monitoring/prometheus-rules.yaml").read_text())
    alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    runbooks = [rule["annotations"]["runbook_url"] for rule in alerts]

    assert runbooks
    # Without an address they are relative to the root of the repository.
    assert [fault(ROOT / "README.md", link) for link in runbooks] == [None] * len(runbooks)
