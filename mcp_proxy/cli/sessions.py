"""``mcp-proxy sessions``: list, show, end, save and restore the sessions of a running proxy.

Rules of this file: it imports click only; what talks to the proxy is imported once there is something
to say. Results go to stdout, everything else to stderr. Exit code 1: the proxy said no, or could not
be reached. A reader that has seen enough (``| head``) is no failure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from mcp_proxy.cli.asking import EPILOG, asks, until_closed

if TYPE_CHECKING:
    from mcp_proxy.cli.session_client import Session

_ID_LIMIT: Final = 4096
"""Bytes that are read for a session id, which has at most 512."""

_EXAMPLES = """\
\b
Examples:
  mcp-proxy sessions list --pool weather
  mcp-proxy sessions list --json | jq '.sessions[].backend'
  mcp-proxy sessions show --route /weather/mcp --id-file id.txt
  mcp-proxy sessions export sessions.ndjson

"""


@click.group(epilog=_EXAMPLES + EPILOG)
def sessions() -> None:
    """Operate the sessions of a running proxy. Sessions go by names, which are hashes: whoever reads
    them cannot use the sessions."""


def _named(command: Callable[..., None]) -> Callable[..., None]:
    """Options that name a session by what its client sends."""
    options = (
        click.option("--route", metavar="PATH", default="/mcp", help="Route of the id. Default /mcp."),
        click.option(
            "--id", "session_id", metavar="ID", help="Session id; others may see it while this runs."
        ),
        click.option("--id-file", metavar="FILE|-", help="File with the session id, - for standard input."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@sessions.command("list")
@click.option("--pool", metavar="NAME", help="Only sessions of this pool.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="At most so many. Default: all.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@asks
def list_(pool: str | None, limit: int | None, as_json: bool, **where: Any) -> None:
    """List sessions, a page at a time."""
    from mcp_proxy.cli.admin_client import connect
    from mcp_proxy.cli.session_client import pages
    from mcp_proxy.cli.session_table import tables

    with connect(**where) as admin, until_closed():
        found = pages(admin, pool=pool, limit=limit)
        is_empty = True
        for text in _json_texts(found) if as_json else tables(found):
            click.echo(text)
            is_empty = False
        if is_empty:
            click.echo("no sessions", err=True)


@sessions.command()
@click.argument("name", required=False)
@_named
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@asks
def show(name: str | None, as_json: bool, **given: Any) -> None:
    """Show a session: by its NAME, the first 8 digits of it or more, or by its id."""
    from mcp_proxy.cli.admin_client import connect
    from mcp_proxy.cli.session_client import show, whole_name

    text = _one_name((name,) if name else (), given)
    with connect(**_where(given)) as admin:
        session = show(admin, whole_name(admin, text[0]))
    if as_json:
        click.echo(_json(session))
        return
    from mcp_proxy.cli.session_table import facts

    for line in facts(session):
        click.echo(line)


@sessions.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_named
@asks
def end(names: tuple[str, ...], **given: Any) -> None:
    """End sessions. Their clients get 404, as MCP wants it, and start again."""
    from mcp_proxy.cli.admin_client import NotThere, connect
    from mcp_proxy.cli.session_client import end, whole_name

    texts = _one_name(names, given)
    is_missed = False
    with connect(**_where(given)) as admin:
        for text in texts:
            try:
                name = whole_name(admin, text)
                end(admin, name)
            except NotThere as error:
                click.echo(f"{text}: {error.message}", err=True)
                is_missed = True
            else:
                click.echo(f"ended {name}")
    sys.exit(1 if is_missed else 0)


@sessions.command()
@click.argument("file", default="-", metavar="[FILE|-]")
@asks
def export(file: str, **where: Any) -> None:
    """Write a backup of all sessions, to FILE or to standard output.

    A backup holds no session id of a client, except that of a session that was moved it holds the id
    at its new backend, and the initialize of sessions that may be moved. FILE gets mode 0600; guard a
    copy likewise. The same proxy, or one with the same routes and backends, can import it."""
    from mcp_proxy.cli.admin_client import connect
    from mcp_proxy.cli.session_backup import save

    with connect(**where) as admin:
        count = save(admin, file)
    if file != "-":
        click.echo(f"{count} sessions in {file}")


@sessions.command("import")
@click.argument("file", default="-", metavar="[FILE|-]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@asks
def import_(file: str, as_json: bool, **where: Any) -> None:
    """Restore a backup from FILE or from standard input.

    A session that exists, or that was ended, stays as it is. To import twice is safe. A file that is
    not whole is refused before anything is restored; of a pipe, what came before the mistake stays."""
    from mcp_proxy.cli.admin_client import connect
    from mcp_proxy.cli.session_backup import load

    if file == "-" and sys.stdin.isatty():
        raise click.UsageError("give a FILE, or the backup on standard input")
    with connect(**where) as admin:
        result = load(admin, file)
    if as_json:
        click.echo(_json(result))
    else:
        skipped = f", {result.skipped} skipped: they exist already or were ended" if result.skipped else ""
        click.echo(f"{result.restored} sessions restored{skipped}")


def _where(given: dict[str, Any]) -> dict[str, Any]:
    return {"admin": given["admin"], "token": given["token"]}


def _one_name(names: tuple[str, ...], given: dict[str, Any]) -> list[str]:
    """The names on the command line, or that of the id on it."""
    from mcp_proxy.cli.session_client import name_of_id

    session_id, file = given["session_id"], given["id_file"]
    if bool(names) + (session_id is not None) + (file is not None) != 1:
        raise click.UsageError("name a session, or give its id with --id or --id-file")
    if names:
        return list(names)
    return [name_of_id(given["route"], os.fsencode(session_id) if file is None else _read_id(file))]


def _read_id(file: str) -> bytes:
    try:
        with click.open_file(file, "rb") as source:
            text: bytes = source.read(_ID_LIMIT)
    except OSError as error:
        raise click.UsageError(f"cannot read {file}: {error.strerror}") from None
    return text.rstrip(b"\r\n")


def _json(document: object) -> str:
    import msgspec

    return msgspec.json.encode(document).decode()


def _json_texts(pages: Iterator[list[Session]]) -> Iterator[str]:
    """One document, printed as the pages come."""
    yield '{"sessions": ['
    comma = ""
    for page in pages:
        if page:
            yield comma + ",\n".join(map(_json, page))
            comma = ","
    yield "]}"
