"""``mcp-proxy serve``: configuration in, exit code out.

Rules of this file: the module imports only click; the proxy is imported once it is known what it
has to do, so that help and mistakes are answered at once. Everything is said on stderr: stdout is
the access log.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from mcp_proxy import __version__
from mcp_proxy.cli.main import is_named_by_environment

if TYPE_CHECKING:
    from mcp_proxy.config import Address, Loaded

Voice = Callable[[str, str, str], None]
"""Takes the level and the text of a log line, and the words that stand for it on a terminal."""

EXIT_CONFIGURATION = 2
EXIT_NOT_STARTED = 3

ONE_LINER = "mcp-proxy http://localhost:3000/mcp"

EPILOG = """\
\b
Precedence: flags, then the file, then these variables, then the defaults.
  MCP_PROXY_CONFIG           the file
  MCP_PROXY_BACKENDS         URLs, separated by spaces or commas
  MCP_PROXY_PATH             like --path; also MCP_PROXY_LISTEN,
                             MCP_PROXY_ADMIN, MCP_PROXY_SESSIONS,
                             MCP_PROXY_WORKERS, MCP_PROXY_LOG_LEVEL
  MCP_PROXY_ADMIN_TOKEN      bearer token of the admin listener
  MCP_PROXY_METRICS_TOKEN    another one, which opens /metrics only
  MCP_PROXY_EXTERNAL_URL     what clients see, like external_url
  MCP_PROXY_TRUSTED_PROXIES  networks, like trusted_proxies

\b
Examples:
  mcp-proxy serve http://localhost:3000/mcp
  mcp-proxy serve --config proxy.yaml --listen 0.0.0.0:8080
  MCP_PROXY_BACKENDS=http://app:8000/mcp mcp-proxy serve --admin off
"""


class GroupedCommand(click.Command):
    """Shows options under headings. An option that is in no group stands under "Other"."""

    groups: ClassVar = {
        "Traffic": ("listen", "path", "sessions", "workers"),
        "Operation": ("config", "admin", "log_level"),
    }

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rest = {each.name: each for each in self.get_params(ctx) if isinstance(each, click.Option)}
        grouped = {title: [rest.pop(name) for name in names] for title, names in self.groups.items()}
        for title, parameters in {**grouped, "Other": list(rest.values())}.items():
            with formatter.section(title):
                formatter.write_dl([line for each in parameters if (line := each.get_help_record(ctx))])


@click.command(cls=GroupedCommand, epilog=EPILOG, options_metavar="[OPTIONS]")
@click.argument("urls", metavar="[URL]...", nargs=-1)
@click.option("--config", metavar="FILE", type=Path, help="YAML file; see `mcp-proxy schema`.")
@click.option("--listen", metavar="HOST:PORT", help="Where clients connect. Default 127.0.0.1:8080.")
@click.option("--path", metavar="PATH", help="Path that clients ask for. Default /mcp.")
@click.option("--sessions", metavar="STORE", help="Where it is written who owns a session. Default memory.")
@click.option("--workers", metavar="N", type=int, help="Number of processes. Default 1.")
@click.option("--admin", metavar="HOST:PORT|off", help="Health and metrics. Default 127.0.0.1:9901.")
@click.option("--log-level", metavar="LEVEL", help="critical, error, warning, info or debug. Default info.")
def serve(urls: tuple[str, ...], config: Path | None, **flags: Any) -> None:
    """Run the proxy in front of the MCP servers at URL.

    URLs are replicas of one server and replace the pools and routes of the file. A URL without a
    path means its /mcp."""
    loaded = _load(urls, config, flags)
    say = _voice(loaded)
    for warning in loaded.warnings:
        say("warning", f"configuration: {warning}", f"warning: {warning}")
    sys.exit(_run(loaded, say))


def _load(urls: tuple[str, ...], path: Path | None, flags: dict[str, Any]) -> Loaded:
    if not urls and path is None and not is_named_by_environment():
        raise click.UsageError(
            f"There is nothing to proxy to. Give the URL of an MCP server:  {ONE_LINER}\n"
            "or a file with --config, or set MCP_PROXY_BACKENDS or MCP_PROXY_CONFIG."
        )
    from mcp_proxy.config import ConfigErrors, read

    try:
        return read(path, os.environ, {"backends": urls, **flags})
    except ConfigErrors as errors:
        for problem in errors.problems:
            click.echo(problem, err=True)
        sys.exit(EXIT_CONFIGURATION)


def _voice(loaded: Loaded) -> Voice:
    """What the command itself says: words for people, or a line of a log that programs read."""
    if loaded.config.telemetry.log == "text":
        return lambda level, line, words: click.echo(words, err=True)
    from mcp_proxy.telemetry import app_log

    app_log.begin(loaded.log_level, "json")
    return lambda level, line, words: app_log.logger.log(app_log.number(level), line)


def _run(loaded: Loaded, say: Voice) -> int:
    from mcp_proxy.cli.banner import banner
    from mcp_proxy.errors import StartupError

    if loaded.config.workers > 1:
        from mcp_proxy.workers.parent import run
    else:
        from mcp_proxy.process import run

    def on_started(listen: Address, admin: Address | None) -> None:
        places = f"listening on {listen}, admin {admin or 'off'}"
        say("info", f"mcp-proxy {__version__}: {places}", banner(loaded.config, listen, admin))

    try:
        return run(loaded, on_started=on_started)
    except StartupError as error:
        say("critical", f"could not start: {error}", f"mcp-proxy could not start: {error}")
        return EXIT_NOT_STARTED
