"""terraform/README.md: its tables are what the module declares.

Rules of this file: tables are compared as they stand; whoever changes a variable copies its row from the
complaint.
"""

from __future__ import annotations

import re
from typing import Any

from tests.deploy.terraformed import DIFFERENCES, FOLDER, module


def _rows(heading: str) -> list[list[str]]:
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", (FOLDER / "README.md").read_text(), re.M | re.S)
    assert section is not None
    table = re.findall(r"^\| (.*) \|$", section[1], re.M)[1:]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\) \| ", row)] for row in table if not row.startswith("---")
    ]


def test_the_readme_lists_the_variables_as_they_are() -> None:
    expected = []
    for name, each in sorted(module().variables.items()):
        of_type = re.sub(r"\s+", " ", each["type"].removeprefix("${").removesuffix("}"))
        default = (
            "see `variables.tf`"
            if name in ("configuration", "egress", "secret_env")
            else f"`{_written(each['default'])}`"
        )
        expected.append([f"`{name}`", f"`{of_type}`", default, each["description"]])

    assert _rows("Variables") == expected


def test_the_readme_lists_the_outputs_as_they_are() -> None:
    assert _rows("Outputs") == [
        [f"`{name}`", each["description"]] for name, each in sorted(module().outputs.items())
    ]


def _written(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case dict():
            return (
                "{ " + ", ".join(f'"{key}" = "{each}"' for key, each in value.items()) + " }"
                if value
                else "{}"
            )
    return str(value)


def test_the_readme_names_every_difference() -> None:
    text = (FOLDER / "README.md").read_text()

    for each in DIFFERENCES:
        assert each.path.rpartition(".")[2] in text
