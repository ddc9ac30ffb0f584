"""``mcp-proxy drain``: let go of a backend, or of the proxy itself, at every replica.

Rules of this file: it imports click only; what talks to the proxy is imported once there is something
to say. Nothing is drained before it is clear which backend is meant. A replica that cannot be asked does not
keep the others from it, and makes the exit code 1.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any, Final

import click

from mcp_proxy.cli.asking import EPILOG, asks_several, complete_backend, complete_pool, until_closed

_EXAMPLES: Final = """\
\b
Examples:
  mcp-proxy drain 10.0.0.11:8000 --wait
  mcp-proxy drain weather-2 --for 30s --admin 10.1.0.1:9901 --admin 10.1.0.2:9901
  mcp-proxy drain 10.0.0.11:8000 --cancel
  mcp-proxy drain --proxy --wait

\b
Exit codes: 0 done (with --wait: nothing is left), 1 a replica said no,
could not be reached, the drain was taken back, or nobody waited for its end
(Ctrl-C), 2 bad usage.

"""


@click.command(epilog=_EXAMPLES + EPILOG)
@click.argument("backend", required=False, shell_complete=complete_backend)
@click.option("--for", "for_", metavar="TIME", help="How long what it has may go on, e.g. 5m; 0s is now.")
@click.option("--wait", is_flag=True, help="Show the progress, and end when nothing is left.")
@click.option("--cancel", is_flag=True, help="It stays after all.")
@click.option(
    "--pool", metavar="NAME", help="Only in this pool. Default: in all.", shell_complete=complete_pool
)
@click.option("--proxy", is_flag=True, help="Drain the proxy itself and end it, as SIGTERM does.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@asks_several
def drain(backend: str | None, admins: tuple[str, ...], token: str | None, **given: Any) -> None:
    """Drain a backend: nothing new goes there, and what it has may finish.

    BACKEND is its id, its HOST:PORT, or a part of no other's id. When the time is over its streams end;
    its sessions end or move, as the pool is configured."""
    _check(backend, given)
    from mcp_proxy.cli.admin_client import connect
    from mcp_proxy.cli.drain_steps import Replica, drain_backend, drain_proxy

    is_done = False
    with ExitStack() as stack:
        replicas = [Replica(stack.enter_context(connect(admin, token))) for admin in admins or (None,)]
        stack.enter_context(until_closed())
        if backend is None:
            drain_proxy(replicas, wait=given["wait"])
        else:
            drain_backend(
                replicas,
                backend,
                given["pool"],
                for_=given["for_"],
                is_cancelled=given["cancel"],
                wait=given["wait"],
            )
        is_done = True
        _show(replicas, as_json=given["as_json"])
    sys.exit(0 if is_done and not any(replica.error for replica in replicas) else 1)


def _check(backend: str | None, given: dict[str, Any]) -> None:
    """Raises UsageError for what does not go together."""
    if (backend is not None) is given["proxy"]:
        raise click.UsageError("name a BACKEND (see `mcp-proxy backends`), or give --proxy")
    if given["proxy"] and (given["cancel"] or given["for_"] or given["pool"]):
        raise click.UsageError("--proxy goes with --wait only: how long it takes, limits.drain says")
    if given["cancel"] and (given["for_"] or given["wait"]):
        raise click.UsageError("--cancel is done at once: without --for and --wait")
    if given["for_"] is not None:
        from mcp_proxy.config.amounts import duration
        from mcp_proxy.config.values import Invalid

        try:
            duration(given["for_"])
        except Invalid as invalid:
            raise click.UsageError(f"--for: {invalid}") from None


def _show(replicas: list[Any], *, as_json: bool) -> None:
    for replica in replicas:
        if replica.error:
            click.echo(f"Error: {replica.error}", err=True)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode({"replicas": [replica.document for replica in replicas]}))
        return
    for replica in replicas:
        for line in (
            replica.told if len(replicas) == 1 else [f"{replica.base}: {line}" for line in replica.told]
        ):
            click.echo(line)
