"""``mcp-proxy serve --config FILE`` with a policy of its own: whoever a request says it comes from.

Rules of this file: it is a program, not a tool for tests to import; of the proxy it uses what an
embedding program would.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mcp_proxy.cli.serve import EXIT_NOT_STARTED
from mcp_proxy.config import Address, read
from mcp_proxy.errors import StartupError
from mcp_proxy.policy import Principal
from mcp_proxy.process import run
from mcp_proxy.wire import Request

HEADER = b"x-test-principal"
"""Its value is an issuer, a slash and a subject."""


def identify(request: Request) -> Principal | None:
    for name, value in request.headers:
        if name == HEADER:
            issuer, _, subject = value.decode("latin-1").partition("/")
            return Principal(issuer, subject)
    return None


def main(file: str) -> int:
    loaded = read(Path(file), os.environ, {})

    def on_started(listen: Address, admin: Address | None) -> None:
        print(f"listening on {listen}", file=sys.stderr)

    try:
        return run(loaded, on_started=on_started, identify=identify)
    except StartupError as error:
        print(error, file=sys.stderr)
        return EXIT_NOT_STARTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[-1]))
