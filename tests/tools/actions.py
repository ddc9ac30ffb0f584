"""GitHub workflows as data, and what others say of them: GitHub's own language service, and zizmor.

Rules of this file: nothing asks GitHub. What is known of an action is in actions.json, read from its
action.yml at the commit that is pinned; whoever changes a pin changes that table.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.tools import PATIENCE_S, npm

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / ".github"
SERVICE: Final = ("@actions/languageservice", "0.3.61")
TABLE: Final = Path(__file__).with_suffix(".json")

USES: Final = re.compile(r"^ *(?:- )?uses: (\S+)(?: # (\S+))?$", re.M)
"""A reference and the version that stands behind it."""


def known() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(TABLE.read_text())
    return found


@dataclass(frozen=True)
class Step:
    workflow: str
    job: str
    step: dict[str, Any]

    @property
    def shell(self) -> str:
        """What is run, ``""`` for an action."""
        return str(self.step.get("run", ""))


def workflows() -> dict[str, dict[str, Any]]:
    """By file name; `on` is a word here, not the YAML 1.1 boolean."""
    return {file.name: load(file) for file in sorted((FOLDER / "workflows").iterdir())}


def load(file: Path) -> dict[str, Any]:
    found: dict[Any, Any] = yaml.safe_load(file.read_text())
    return {"on" if key is True else key: value for key, value in found.items()}


def steps() -> Iterator[Step]:
    for name, workflow in workflows().items():
        for job, body in workflow["jobs"].items():
            for step in body.get("steps", ()):
                yield Step(name, job, step)


# --- judges -------------------------------------------------------------------------------------------


def language_service(files: Sequence[Path], root: Path = ROOT) -> list[str]:
    """Unknown keys, contexts that are not there, inputs that an action does not take, and the like."""
    command = [npm.node(), Path(__file__).with_suffix(".mjs"), npm.install(*SERVICE), TABLE, root, *files]
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    return [f"{Path(file).name}:{line}: {message}" for file, line, message in json.loads(done.stdout)]


def zizmor(*paths: Path) -> list[str]:
    """What an auditor would object to. Raises CalledProcessError if a file cannot be read."""
    command = [str(Path(sys.executable).with_name("zizmor")), "--offline", "--no-config", "--no-progress"]
    command += [
        "--quiet",
        "--persona",
        "auditor",
        "--strict-collection",
        "--no-exit-codes",
        "--format",
        "json",
    ]
    done = subprocess.run(
        [*command, *map(str, paths)], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    return [f"{each['ident']}: {each['desc']}" for each in json.loads(done.stdout)]
