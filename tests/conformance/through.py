"""``python -m tests.conformance.through DOOR TRANSPORT CLIENT URL``: one client, behind the proxy.

Rules of this file: to the suite this is the client under test. The proxy stands in front of the
suite's own server at URL for as long as the client runs, on the same path.
"""

from __future__ import annotations

import subprocess
import sys
from urllib.parse import urlsplit

from tests.e2e.processes import proxy


def main() -> int:
    """The exit code of the client."""
    door, transport, client, url = sys.argv[1:]
    path = urlsplit(url).path or "/"
    config = {
        "pools": {"suite": {"backends": [url], "transport": transport}},
        "routes": [{"path": path, "pool": "suite"}],
    }
    with proxy(door, config) as origin:
        return subprocess.run([sys.executable, client, f"{origin}{path}"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
