"""``mcp-proxy log-level``: how much a running proxy says about itself.

Rules of this file: it imports click only; what talks to the proxy is imported once there is something
to say. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

from typing import Any, Final

import click

from mcp_proxy.cli.asking import EPILOG, asks

_LEVELS: Final = ("critical", "error", "warning", "info", "debug")

_EXAMPLES: Final = """\
\b
Examples:
  mcp-proxy log-level
  mcp-proxy log-level debug
  mcp-proxy log-level info --admin http://10.0.0.5:9901

"""


@click.command("log-level", epilog=_EXAMPLES + EPILOG)
@click.argument("level", required=False, type=click.Choice(_LEVELS))
@asks
def log_level(level: str | None, **where: Any) -> None:
    """Show the log level of a running proxy, or change it to LEVEL until the proxy ends."""
    from mcp_proxy.cli.admin_client import connect
    from mcp_proxy.cli.log_level_client import ask
    from mcp_proxy.cli.text import plain

    with connect(**where) as admin:
        click.echo(plain(ask(admin, level)))
