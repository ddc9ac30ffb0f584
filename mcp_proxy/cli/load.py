"""``mcp-proxy load``: how much does an MCP server take, and does everybody get the right answer?

Rules of this file: it imports click only until it is known what is to be done; locust and gevent are never
imported here, the generator is a process of its own. Progress goes to stderr, the result to stdout. Exit
code 1: a threshold is not kept, it was stopped, or the generator died; 3: it could not start.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from mcp_proxy.cli.asking import until_closed
from mcp_proxy.cli.load_order import STARTED, read_order
from mcp_proxy.cli.text import plain

if TYPE_CHECKING:
    from mcp_proxy.load.campaign import Order, Said
    from mcp_proxy.load.summary import Summary

EXIT_FAILED: Final = 1
EXIT_NOTSTARTED: Final = 3
REPORT: Final = "mcp-load-report"
_SHAPES: Final = ("smoke", "ramp", "spike", "soak", "drain")
_EVERY_S: Final = 10
"""Between two lines of progress where there is no terminal."""

_EPILOG: Final = """\
\b
Users (--mix kind=weight,...; default session=6,modern=3,stream=2,
reconnect=1,abuse=1; what the server cannot serve is left out):
  session    initialize, calls answered by JSON and SSE, GET stream, DELETE
  modern     2026-07-28: server/discover and calls without a session
  stream     holds a stream; times its first event and its gaps
  reconnect  breaks its stream and must get exactly what it missed
  abuse      does what it should not and must get the right refusal

\b
Shapes: smoke (15s, 13 users), ramp (2m, up to 104), spike (1m, 10 to 104
and back), soak (30m, 26), drain (30s, 26, needs --during).

\b
Examples:
  mcp-proxy load http://localhost:3000/mcp
  mcp-proxy load http://localhost:3000/mcp --shape ramp --pace none
  mcp-proxy load https://mcp.example.com/mcp \\
      --header 'Authorization: env:AUTHORIZATION' --time 5m --p99 250ms
  mcp-proxy load http://localhost:3000/mcp --compare direct,nginx,proxy
  mcp-proxy load URL --shape drain --during './rolling-restart.sh'

\b
Exit codes: 0 thresholds kept, 1 not kept, stopped or broken off,
2 bad usage, 3 could not start. Load only what is yours.
"""


class GroupedCommand(click.Command):
    """Shows options under headings."""

    groups: Final = {
        "Load": ("shape", "duration", "users", "mix", "pace", "processes", "seed", "during"),
        "Server": ("headers", "timeout", "tool", "arguments", "read_only", "insecure"),
        "Thresholds": ("max_failures", "max_failed_posts", "p50", "p99", "first_event_p99", "min_rate"),
        "Comparison": ("compare", "rounds"),
    }

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rest = {each.name: each for each in self.get_params(ctx) if isinstance(each, click.Option)}
        grouped = {title: [rest.pop(name) for name in names] for title, names in self.groups.items()}
        for title, parameters in {**grouped, "Other": list(rest.values())}.items():
            with formatter.section(title):
                formatter.write_dl([line for each in parameters if (line := each.get_help_record(ctx))])


def _option(name: str, parameter: str, metavar: str, about: str, **more: Any) -> Callable[[Any], Any]:
    return click.option(name, parameter, metavar=metavar, help=about, **more)


@click.command(cls=GroupedCommand, epilog=_EPILOG)
@click.argument("url", required=False)
@_option(
    "--shape",
    "shape",
    "NAME",
    f"{', '.join(_SHAPES)}. Default smoke.",
    type=click.Choice(_SHAPES),
    default="smoke",
)
@_option("--time", "duration", "DURATION", "How long, such as 90s or 10m. Default: the shape's.")
@_option("--users", "users", "N", "How many at once. Default: the shape's.", type=click.IntRange(1, 10_000))
@_option("--mix", "mix", "KIND=WEIGHT,...", "Which users, by weight.")
@_option("--pace", "pace", "N|none", "Turns a second and user; none: no pauses. Default 10.", default="10")
@_option("--processes", "processes", "N", "Generators. Default 1.", type=click.IntRange(1, 64), default=1)
@_option("--seed", "seed", "N", "Same seed, same choices. Default 1.", type=int, default=1)
@_option("--during", "during", "COMMAND", "Runs while the load is steady, which lasts until it has ended.")
@_option(
    "--header",
    "headers",
    "'NAME: VALUE'",
    "Sent with every request; may be repeated. A value env:NAME or file:PATH is read from there.",
    multiple=True,
)
@_option(
    "--timeout",
    "timeout",
    "DURATION",
    "A request without its answer then has failed. Default 30s.",
    default="30s",
)
@_option("--tool", "tool", "NAME", "The tool to call. Default: one that says that it only reads.")
@_option("--arguments", "arguments", "JSON", "Of --tool. Default {}.")
@click.option(
    "--read-only", "read_only", is_flag=True, help="Call no tool that does not say that it only reads."
)
@click.option("--insecure", is_flag=True, help="Do not verify the server's certificate.")
@_option("--max-failures", "max_failures", "SHARE", "Of all requests. Default 0%.", default="0%")
@_option(
    "--max-failed-posts", "max_failed_posts", "N", "In all. Default 0 with drain.", type=click.IntRange(0)
)
@_option("--p50", "p50", "DURATION", "Of all calls.")
@_option("--p99", "p99", "DURATION", "Of all calls.")
@_option("--first-event-p99", "first_event_p99", "DURATION", "From a call to the first event of its answer.")
@_option("--min-rate", "min_rate", "N", "Answers a second, at least.", type=click.FloatRange(0))
@_option("--compare", "compare", "NAMES", f"Some of {','.join(STARTED)}, or name=URL; the first is the base.")
@_option("--rounds", "rounds", "N", "Of a comparison. Default 3.", type=click.IntRange(1, 100), default=3)
@_option("--report", "report", "DIR|off", f"Where HTML, CSV and JSON go. Default {REPORT}.", default=REPORT)
@click.option(
    "--self-test", "self_test", is_flag=True, help="Only prove that events are seen when they come."
)
def load(url: str | None, report: str, self_test: bool, **given: Any) -> None:
    """Load the MCP server at URL with users of every kind and judge what comes back.

    Without URL a small server that comes along is started and loaded."""
    from mcp_proxy.load import LoadError
    from mcp_proxy.load.conduct import GeneratorDied
    from mcp_proxy.load.report import LOCUST

    try:
        if self_test:
            _test_own_eyes()
            return
        order = read_order(url, given)
        folder = _folder(report)
        order.locust_html = None if folder is None else str(folder / LOCUST)
        summary = _run(order)
    except LoadError as error:
        click.echo(f"mcp-proxy load: {plain(str(error))}", err=True)
        sys.exit(EXIT_FAILED if isinstance(error, GeneratorDied) else EXIT_NOTSTARTED)
    _show(summary, folder)
    sys.exit(summary.exit_code)


# --- what happens -----------------------------------------------------------------------------


def _folder(report: str) -> Path | None:
    """Made before anything is measured: nobody waits an hour for a report that cannot be written."""
    if report == "off":
        return None
    from mcp_proxy.load.report import prepare

    folder = Path(report)
    try:
        prepare(folder)
    except OSError as error:
        raise click.UsageError(f"--report: cannot write to {report}: {error.strerror}") from None
    return folder


def _test_own_eyes() -> None:
    from mcp_proxy.load.conduct import self_test

    self_test()
    click.echo("The generator sees every event when it comes.")


def _run(order: Order) -> Summary:
    from mcp_proxy.load.campaign import run

    def stop(*_: object) -> None:
        raise KeyboardInterrupt  # as Ctrl-C: what there is, is reported, and what runs is ended

    progress = _Progress()
    before = signal.signal(signal.SIGTERM, stop)
    try:
        return run(order, progress.tell)
    finally:
        signal.signal(signal.SIGTERM, before)
        progress.end()


class _Progress:
    """One line that changes, for a person; a line every few seconds for a log."""

    def __init__(self) -> None:
        self._is_person = sys.stderr.isatty()
        self._shown = 0
        self._next_at = 0.0

    def tell(self, said: Said) -> None:
        if said.line is not None:
            self.end()
            click.echo(plain(said.line), err=True)
        tick = said.tick
        if tick is None:
            return
        title = f"{said.title}: " if said.title else ""
        text = f"{title}{tick.at_s:.0f} of {said.time_s:.0f} s, {tick.users} users, {tick.answers:,} answers"
        text += f", {tick.failures:,} failures" if tick.failures else ""
        text += f", told to wait {tick.waits:,} times" if tick.waits else ""
        if self._is_person:
            click.echo("\r" + text.ljust(self._shown), nl=False, err=True)
            self._shown = len(text)
        elif tick.at_s >= self._next_at or tick.at_s < self._next_at - _EVERY_S:
            self._next_at = tick.at_s + _EVERY_S
            click.echo(text, err=True)

    def end(self) -> None:
        if self._shown:
            click.echo(err=True)
            self._shown = 0


def _show(summary: Summary, folder: Path | None) -> None:
    from mcp_proxy.load.report import write
    from mcp_proxy.load.report.text import lines

    with until_closed():
        for line in lines(summary):
            click.echo(line)
    if folder is None:
        return
    try:
        write(summary, folder)
    except OSError as error:
        click.echo(f"mcp-proxy load: cannot write to {folder}: {error.strerror}", err=True)
        sys.exit(EXIT_FAILED)
    click.echo(f"Report: {folder / 'report.html'}", err=True)
