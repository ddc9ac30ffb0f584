"""The Terraform module and its examples, read once, and where it is known to differ from ``k8s/base``."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tests.tools import hcl
from tests.tools.hcl import Module
from tests.tools.terraform_objects import Difference

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "terraform"
EXAMPLES = sorted(file.parent for file in FOLDER.glob("examples/*/main.tf"))

DIFFERENCES = {
    Difference("Service", "mcp-proxy", "spec.trafficDistribution", "the provider has no such attribute"),
    Difference("PodDisruptionBudget", "mcp-proxy", "spec.unhealthyPodEvictionPolicy", "likewise"),
    Difference(
        "HorizontalPodAutoscaler", "mcp-proxy", "spec.behavior.scaleUp.selectPolicy", "the API's default"
    ),
    Difference("HorizontalPodAutoscaler", "mcp-proxy", "spec.behavior.scaleDown.selectPolicy", "likewise"),
}


@cache
def read() -> dict[Path, Module]:
    return {each.folder: each for each in hcl.read(FOLDER, *EXAMPLES)}


def module() -> Module:
    return read()[FOLDER]
