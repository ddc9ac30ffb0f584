"""``mcp-proxy report``: what access logs say, in one table.

Rules of this file: it imports click only; what reads and counts is imported once there is something to
read. The report goes to stdout, everything else to stderr. Exit code 1: a file broke off, or Ctrl-C; what
could be read of a file is reported all the same.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

import click

from mcp_proxy.cli.asking import terminal_width, until_closed

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from io import BufferedReader

    from click._termui_impl import ProgressBar

    from mcp_proxy.telemetry.report import Report
    from mcp_proxy.telemetry.report.totals import Totals

_DIMENSIONS: Final = ("route", "method", "tool", "principal")
_SORTS: Final = ("calls", "streams", "errors", "bytes", "p50", "p99", "overhead")

_FORMATS: Final = ("table", "csv", "json")
_BY_HELP: Final = f"Some of {','.join(_DIMENSIONS)}. Default: all."

_STEPS: Final = 200
"""How often the progress bar is drawn, at most."""

_EPILOG: Final = """\
\b
Examples:
  mcp-proxy report access.log
  mcp-proxy report access.log* --since 2h --sort p99 --top 20
  kubectl logs deploy/proxy | mcp-proxy report - --by tool
  mcp-proxy report access.log --by principal --format csv > use.csv

\b
Errors: a status of 400 or more, or an end that is not clean; a stream
that its client or a drain ended is none. OWN is the time that the
proxy itself took, the rest of a call is its backend's. Files may be
gzipped, and read while the proxy writes them.
"""


def _by(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(value.split(","))
    for name in names:
        if name not in _DIMENSIONS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(_DIMENSIONS)}")
    if len(set(names)) < len(names):
        raise click.BadParameter("a name is there twice")
    return names


def _moment(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    from mcp_proxy.telemetry.report.period import moment

    try:
        return moment(value, time.time())
    except ValueError:
        raise click.BadParameter(f"{value!r} is no time; write 2025-11-21, 2025-11-21T14:30 or 2h") from None


@click.command(epilog=_EPILOG)
@click.argument("files", nargs=-1, metavar="[FILE|-]...", type=click.Path())
@click.option("--by", metavar="NAMES", default=",".join(_DIMENSIONS), callback=_by, help=_BY_HELP)
@click.option("--since", metavar="T", callback=_moment, help="From T on: 2025-11-21T14:30 (UTC), or 2h ago.")
@click.option("--until", metavar="T", callback=_moment, help="Before T.")
@click.option("--sort", type=click.Choice(_SORTS), default="calls", help="The largest first. Default: calls.")
@click.option("--top", metavar="N", type=click.IntRange(1), help="So many rows, and one for all others.")
@click.option("--format", "form", type=click.Choice(_FORMATS), default="table", help="Default: table.")
def report(files: tuple[str, ...], form: str, sort: str, top: int | None, **chosen: Any) -> None:
    """Sum up access logs: calls, errors, bytes and times by route, method, tool and principal. FILE may be
    of any size."""
    if not files and sys.stdin.isatty():
        raise click.UsageError("give a FILE, or the log on standard input")
    for file in files:
        _check(file)
    try:
        totals, unreadable, is_whole = _counted(files or ("-",), chosen)
        found = totals.report(sort=sort, top=top)
    except KeyboardInterrupt:
        click.echo(err=True)
        sys.exit(1)
    with until_closed():
        click.echo(_printed(found, form, unreadable), nl=False)
    for sentence in _remarks(found, unreadable):
        click.echo(sentence, err=True)
    sys.exit(0 if is_whole else 1)


def _check(file: str) -> None:
    """Every file, before the first is read. A FIFO is not opened: its writer would see that."""
    try:
        if file != "-" and stat.S_ISDIR(os.stat(file).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if file != "-" and not os.access(file, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise click.UsageError(f"cannot read {file}: {error.strerror}") from None


def _counted(files: tuple[str, ...], chosen: dict[str, Any]) -> tuple[Totals, int, bool]:
    """What is in the files, the number of lines that are no access lines, and whether every file could be
    read to its end."""
    from mcp_proxy.telemetry.report.reading import Broken, Reader
    from mcp_proxy.telemetry.report.totals import Totals

    totals = Totals(**{name: value for name, value in chosen.items() if value is not None})
    reader = Reader()
    broken = []
    with _progress(files) as bar:
        for file in files:
            try:
                with _opened(file) as source:
                    at = 0
                    for lines in reader.read(source):
                        totals.add(lines)
                        if bar is not None:
                            was, at = at, source.tell()  # of a gzipped file, in what is packed
                            bar.update(at - was)
            except Broken as error:
                broken.append(f"{file}: {error}; what came before is counted.")
            except OSError as error:
                broken.append(f"{file}: {error.strerror or error}.")
    for sentence in broken:
        click.echo(sentence, err=True)
    return totals, reader.unreadable, not broken


def _opened(file: str) -> BufferedReader:
    return open(0, "rb", closefd=False) if file == "-" else open(file, "rb")


def _progress(files: tuple[str, ...]) -> AbstractContextManager[ProgressBar[int] | None]:
    """A bar for a person, if there is one and the end is known."""
    if not sys.stderr.isatty() or not all(map(os.path.isfile, files)):
        return nullcontext()
    total = sum(map(os.path.getsize, files))
    return click.progressbar(
        length=total, label="Reading", file=sys.stderr, update_min_steps=total // _STEPS + 1
    )


def _printed(report: Report, form: str, unreadable: int) -> bytes:
    from mcp_proxy.cli.report_formats import csv_text, json_text
    from mcp_proxy.cli.report_table import caption, table

    if form == "json":
        return json_text(report, unreadable).encode() + b"\n"
    if form == "csv":
        return csv_text(report).encode()
    if not report.last:
        return b""
    lines = [*table(report, terminal_width()), "", caption(report)]
    return "".join(f"{line}\n" for line in lines).encode()


def _remarks(report: Report, unreadable: int) -> Iterator[str]:
    if not report.last:
        yield "no access lines" + (" of that time" if report.skipped else "")
    if report.folded:
        yield f"There are too many groups: {report.folded:,} exchanges are in none, but in other. Use --by."
    if unreadable:
        yield f"{unreadable:,} {'line was' if unreadable == 1 else 'lines were'} left out: no access lines."
