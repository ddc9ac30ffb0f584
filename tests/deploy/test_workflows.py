"""The GitHub workflows, by what others say of them: GitHub's own language service, zizmor and shellcheck.

Rules of this file: a judge is only believed that finds something: each of them is shown a workflow that is
spoilt in a way that it has to see.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import PATIENCE_S, actions

WORKFLOWS = sorted((actions.FOLDER / "workflows").iterdir())
SCRIPTS = sorted((actions.ROOT / "scripts").glob("*.sh"))

SPOILT_FOR_THE_SERVICE = {
    "Invalid action input 'persist-credential'": ("persist-credentials:", "persist-credential:"),
    "Context access might be invalid: pushh": ("steps.push.", "steps.pushh."),
    "Context access might be invalid: versio": (
        "needs.version.outputs.version",
        "needs.version.outputs.versio",
    ),
    "Context access might be invalid: actr": ("github.actor", "github.actr"),
    "Unexpected value 'run-on'": ("runs-on:", "run-on:"),
    "Unexpected value 'id-tokens'": ("id-token: write", "id-tokens: write"),
    "depends on unknown job 'attst'": ("needs: [attest, image]", "needs: [attst, image]"),
    "Unable to find reusable workflow": ("workflows/build.yaml", "workflows/bild.yaml"),
}

SPOILT_FOR_ZIZMOR = {
    "artipacked": ("persist-credentials: false", "persist-credentials: true"),
    "excessive-permissions": ("permissions: {}", "permissions: write-all"),
    "unpinned-uses": (
        "actions/attest@1e69f48acb82d1966a394da916b4c1698aa569d6 # v4.2.2",
        "actions/attest@v4",
    ),
    "template-injection": ('tag "$GITHUB_REF_NAME"', 'tag "${{ github.head_ref }}"'),
    "dangerous-triggers": ('on:\n  push:\n    tags: ["v*"]', "on: pull_request_target"),
    "use-trusted-publishing": ("packages-dir: dist/", "password: ${{ secrets.INDEX_TOKEN }}"),
    "undocumented-permissions": (" # to sign it as this workflow", ""),
    "concurrency-limits": (
        "concurrency:\n  group: publish-${{ github.ref }}\n  cancel-in-progress: false\n",
        "",
    ),
}


def test_github_s_own_language_service_finds_nothing() -> None:
    assert actions.language_service(WORKFLOWS) == []


def test_the_language_service_finds_what_is_wrong(tmp_path: Path) -> None:
    spoilt = _spoilt(SPOILT_FOR_THE_SERVICE, tmp_path)
    found = actions.language_service(list(spoilt.values()))

    for complaint, file in spoilt.items():
        assert [each for each in found if each.startswith(f"{file.name}:") and complaint in each], (
            complaint,
            found,
        )


def test_zizmor_as_an_auditor_finds_nothing() -> None:
    assert actions.zizmor(actions.FOLDER) == []


@pytest.mark.parametrize("audit", SPOILT_FOR_ZIZMOR)
def test_zizmor_finds_what_is_wrong(audit: str, tmp_path: Path) -> None:
    (file,) = _spoilt({audit: SPOILT_FOR_ZIZMOR[audit]}, tmp_path).values()

    assert [each for each in actions.zizmor(file) if each.startswith(f"{audit}:")]


def _spoilt(changes: dict[str, tuple[str, str]], folder: Path) -> dict[str, Path]:
    """By what is to be found, a workflow in which it is."""
    text = (actions.FOLDER / "workflows/publish.yaml").read_text()
    (folder / ".github/workflows").mkdir(parents=True)
    files = {}
    for number, (what, change) in enumerate(changes.items()):
        assert change[0] in text, what
        files[what] = folder / f".github/workflows/{number}.yaml"
        files[what].write_text(text.replace(*change))
    return files


# --- shell ----------------------------------------------------------------------------------------------

SHELL = "#!/usr/bin/env bash\nset -eo pipefail\n"
"""How GitHub runs a step with `shell: bash`."""


TRAPS = "SC2154"
"""A variable that is assigned in a trap: not found by this shellcheck."""


def _blocks(folder: Path) -> list[Path]:
    files = []
    for number, step in enumerate(actions.steps()):
        if step.shell:
            assert "${{" not in step.shell, step
            files.append(folder / f"{step.workflow}-{step.job}-{number}.sh")
            files[-1].write_text(SHELL + step.shell)
    return files


def _shellcheck(*files: Path) -> str:
    return subprocess.run(
        [
            Path(sys.executable).with_name("shellcheck"),
            "--severity",
            "warning",
            "--exclude",
            TRAPS,
            "--format",
            "gcc",
            *files,
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    ).stdout


def test_every_step_and_every_script_is_shell_that_shellcheck_likes(tmp_path: Path) -> None:
    assert _shellcheck(*_blocks(tmp_path), *SCRIPTS, actions.ROOT / ".ci/run") == ""


def test_shellcheck_finds_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "x.sh").write_text(SHELL + "rm -rf $HOME/$1\nif true; then\n")

    assert "parse" in _shellcheck(tmp_path / "x.sh")


def test_every_workflow_asks_for_a_shell_that_stops_at_the_first_error() -> None:
    for name, workflow in actions.workflows().items():
        if any(step.shell for step in actions.steps() if step.workflow == name):
            assert workflow["defaults"]["run"]["shell"] == "bash", name
