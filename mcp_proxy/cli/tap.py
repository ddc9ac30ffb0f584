"""``mcp-proxy tap``: the traffic of a running proxy, one line per exchange, as it ends.

Rules of this file: it imports click only; what talks to the proxy is imported once there is something
to say. Exchanges go to stdout, news about the proxy to stderr. It ends when the proxy drains.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from mcp_proxy.cli.asking import EPILOG, asks, complete_pool, until_closed

if TYPE_CHECKING:
    from mcp_proxy.cli.event_client import Exchange

_EXAMPLES: Final = """\
\b
Examples:
  mcp-proxy tap --pool weather
  mcp-proxy tap --method tools/call --errors
  mcp-proxy tap --json | jq 'select(.duration_ms > 1000)'

\b
The column before the method says who ended it and where, as in the
access log: -- is a clean end; first letter C client, S backend, P proxy,
T timeout, D drain; second R reading, Q routing, C connect, H head,
D body.

"""


@click.command(epilog=_EXAMPLES + EPILOG)
@click.option("--pool", metavar="NAME", help="Only exchanges with this pool.", shell_complete=complete_pool)
@click.option("--method", "methods", metavar="NAME", multiple=True, help="Only this method; may be repeated.")
@click.option("--errors", is_flag=True, help="Only what failed: a status of 400 or more, or cut off.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per exchange.")
@asks
def tap(pool: str | None, methods: tuple[str, ...], errors: bool, as_json: bool, **where: Any) -> None:
    """Follow the traffic of a running proxy until Ctrl-C. It shows what the access log has: no message,
    no header, no session id. While nobody listens it costs nothing."""
    from mcp_proxy.cli.admin_client import connect
    from mcp_proxy.cli.event_client import Change, Ended, Exchange, Missed, events

    with connect(**where) as admin, until_closed():
        for event in events(admin):
            if isinstance(event, Exchange):
                is_meant = pool in (None, event.pool) and (not methods or event.method in methods)
                if is_meant and (event.is_error or not errors):
                    click.echo(event.raw if as_json else _line(event))
                    sys.stdout.flush()
            elif isinstance(event, Missed):
                click.echo(f"{event.missed} events were not shown: there is too much to follow", err=True)
            elif isinstance(event, Change):
                click.echo(event.text, err=True)
            elif isinstance(event, Ended):
                click.echo(event.text, err=True)
                sys.exit(event.code)


def _line(event: Exchange) -> str:
    from mcp_proxy.cli.text import plain

    what = " ".join(filter(None, (event.method or event.http_method, event.name)))
    cells = (
        event.ts[11:23],
        f"{event.status or '-':>3}",
        f"{event.duration_ms:>9.1f} ms",
        f"{event.pool or '-':<12}",
        f"{event.backend or '-':<28}",
        f"{event.session or '-':<8}",
        f"{event.end:<2}",
        f"{what}{f' ({event.reason})' if event.reason else ''}",
    )
    return plain("  ".join(cells))
