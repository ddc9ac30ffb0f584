"""What commands have in common that ask a running proxy.

Rules of this file: it imports click only.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import click

EPILOG: Final = """\
\b
The proxy is asked through its admin listener: --admin, else
MCP_PROXY_ADMIN, else 127.0.0.1:9901. Its token: --token, else
MCP_PROXY_ADMIN_TOKEN.
"""

_COMPLETION_S: Final = 0.5
"""Longer than that nobody waits after pressing Tab."""


def asks(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that asks a proxy."""
    admin = click.option("--admin", metavar="URL", help="The admin listener. Default 127.0.0.1:9901.")
    return admin(token(command))


def asks_several(command: Callable[..., None]) -> Callable[..., None]:
    """The same for a command that asks every replica."""
    admin = click.option(
        "--admin",
        "admins",
        metavar="URL",
        multiple=True,
        help="An admin listener; once for every replica. Default 127.0.0.1:9901.",
    )
    return admin(token(command))


def token(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--token", metavar="env:NAME|file:PATH", help="Where the admin token is.")(command)


@contextlib.contextmanager
def until_closed() -> Iterator[None]:
    """A reader that has seen enough (``| head``), and a person who presses Ctrl-C, are no failure."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        click.echo(err=True)


def terminal_width() -> int | None:
    """None when the output goes elsewhere."""
    if not sys.stdout.isatty():
        return None
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except OSError:
        return None


def _asked(context: click.Context) -> list[Any]:
    """Backends of the proxy that is meant, for completion: whatever is wrong, there are none."""
    admins = context.params.get("admins") or (context.params.get("admin"),)
    try:
        from mcp_proxy.cli.admin_client import connect
        from mcp_proxy.cli.backend_client import known

        with connect(admins[0], context.params.get("token"), _COMPLETION_S) as admin:
            return list(known(admin))
    except (click.ClickException, OSError):
        return []


def complete_backend(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    ids = dict.fromkeys(backend.id for backend in _asked(context))
    return [id for id in ids if id.startswith(incomplete)]


def complete_pool(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    pools = dict.fromkeys(backend.pool for backend in _asked(context))
    return [pool for pool in pools if pool.startswith(incomplete)]
