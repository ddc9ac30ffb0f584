"""A bill of materials (CycloneDX 1.6, JSON) of an environment that was installed from wheels.

    python sbom.py DISTRIBUTION SITE_PACKAGES WHEELS

Written to standard output: the distribution, everything installed beside it, what requires what, the licence
that each declares, and the SHA-256 of the wheel that it came from. Nothing in it depends on time or machine,
so that the same environment has the same bill. Needs ``packaging``, and runs outside of the environment that
it describes.
"""

import hashlib
import json
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename


def purl(distribution: Distribution) -> str:
    """https://github.com/package-url/purl-spec, type ``pypi``."""
    return f"pkg:pypi/{canonicalize_name(distribution.name)}@{distribution.version}"


def licences(distribution: Distribution) -> list[dict[str, Any]]:
    """As declared: an SPDX expression (PEP 639), else a line of text, else classifiers."""
    if expression := distribution.metadata["License-Expression"]:
        return [{"expression": expression}]
    text = (distribution.metadata["License"] or "").strip()
    if text and "\n" not in text and text != "UNKNOWN":
        return [{"license": {"name": text}}]
    classifiers = distribution.metadata.get_all("Classifier") or []
    names = [name.rpartition(" :: ")[2] for name in classifiers if name.startswith("License :: ")]
    return [{"license": {"name": name}} for name in names]


def component(distribution: Distribution, digests: dict[tuple[str, str], str]) -> dict[str, Any]:
    name = canonicalize_name(distribution.name)
    digest = digests[name, distribution.version]
    reference = purl(distribution)
    found: dict[str, Any] = {"type": "library", "bom-ref": reference, "name": name}
    found |= {"version": distribution.version, "purl": reference}
    found["hashes"] = [{"alg": "SHA-256", "content": digest}]
    if said := licences(distribution):
        found["licenses"] = said
    return found


def requires(distribution: Distribution, installed: dict[str, Distribution]) -> list[str]:
    """What of the environment the distribution requires, whichever of its extras were asked for."""
    extras = ["", *(distribution.metadata.get_all("Provides-Extra") or [])]
    found = set()
    for line in distribution.requires or []:
        wanted = Requirement(line)
        other = installed.get(canonicalize_name(wanted.name))
        marker = wanted.marker
        if other is not None and (
            marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)
        ):
            found.add(purl(other))
    return sorted(found)


def wheel_digests(folder: Path) -> dict[tuple[str, str], str]:
    digests = {}
    for wheel in folder.glob("*.whl"):
        name, version, *_ = parse_wheel_filename(wheel.name)
        digests[str(name), str(version)] = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return digests


def bill(name: str, site_packages: Path, wheels: Path) -> dict[str, Any]:
    """Raises KeyError if the distribution is missing, or anything did not come from a wheel in ``wheels``."""
    installed = {canonicalize_name(each.name): each for each in distributions(path=[str(site_packages)])}
    digests = wheel_digests(wheels)
    root = installed[canonicalize_name(name)]
    others = [each for _, each in sorted(installed.items()) if each is not root]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": component(root, digests) | {"type": "application"}},
        "components": [component(each, digests) for each in others],
        "dependencies": [
            {"ref": purl(each), "dependsOn": requires(each, installed)} for each in (root, *others)
        ],
    }


if __name__ == "__main__":
    json.dump(bill(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])), sys.stdout, indent=2, sort_keys=True)
    print()
