"""``mcp-proxy backends``: who serves, how much, and who is about to leave.

Rules of this file: it imports click only; what talks to the proxy is imported once there is something
to say. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import time
from typing import Any, Final

import click

from mcp_proxy.cli.asking import EPILOG, asks, complete_pool, terminal_width, until_closed

_WATCH_S: Final = 2.0

_EXAMPLES: Final = """\
\b
Examples:
  mcp-proxy backends
  mcp-proxy backends --pool weather --watch
  mcp-proxy backends --json | jq -r '.backends[] | select(.up | not).id'

\b
States: up, down (unreachable), unhealthy (active checks), ejected (it
failed too often), trial (may show that it works again), draining.

"""


@click.command(epilog=_EXAMPLES + EPILOG)
@click.option("--pool", metavar="NAME", help="Only backends of this pool.", shell_complete=complete_pool)
@click.option("--watch", is_flag=True, help="Again every two seconds, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@asks
def backends(pool: str | None, watch: bool, as_json: bool, **where: Any) -> None:
    """Show the backends of a running proxy: state, weight, load, and how far a drain is."""
    if watch and as_json:
        raise click.UsageError("--json is one document, and --watch has no end; see `mcp-proxy tap --json`")
    from mcp_proxy.cli.admin_client import connect
    from mcp_proxy.cli.backend_client import Backends, known
    from mcp_proxy.cli.backend_table import table

    with connect(**where) as admin, until_closed():
        if as_json:
            import msgspec

            click.echo(msgspec.json.encode(Backends(known(admin, pool))))
            return
        while True:
            found = known(admin, pool)
            width = terminal_width()
            if watch and width is not None:
                click.clear()
            if found:
                click.echo("\n".join(table(found, width)))
            else:
                click.echo("no backends", err=True)
            if not watch:
                return
            time.sleep(_WATCH_S)
