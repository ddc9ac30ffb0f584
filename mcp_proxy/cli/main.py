"""``mcp-proxy``: the commands by name, and what is meant by arguments that name none.

Rules of this file: it imports click and nothing heavier, so that ``--help`` answers at once; the
module of a command is imported when that command is used. Exit codes: 0 clean, 1 runtime failure,
2 bad usage or configuration, 3 could not start.
"""

from __future__ import annotations

import difflib
import os
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import click

from mcp_proxy import __version__

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Entry(NamedTuple):
    """One command: where it is, and its line in the help."""

    target: str
    section: str
    about: str


COMMANDS = {
    "serve": Entry("mcp_proxy.cli.serve:serve", "Run", "Run the proxy. `mcp-proxy URL...` is short for it."),
    "demo": Entry("mcp_proxy.cli.demo:demo", "Run", "Two real servers, the proxy in front, and a client."),
    "sessions": Entry(
        "mcp_proxy.cli.sessions:sessions", "Operate", "List, show, end, save and restore sessions."
    ),
    "backends": Entry("mcp_proxy.cli.backends:backends", "Operate", "Show backends: state, load, drains."),
    "drain": Entry("mcp_proxy.cli.drain:drain", "Operate", "Let go of a backend, or of the proxy itself."),
    "tap": Entry("mcp_proxy.cli.tap:tap", "Operate", "Follow the traffic, one line per exchange."),
    "report": Entry("mcp_proxy.cli.report:report", "Operate", "Sum up access logs: calls, errors, times."),
    "log-level": Entry("mcp_proxy.cli.log_level:log_level", "Operate", "Say more or less in the log."),
    "check": Entry("mcp_proxy.cli.check:check", "Configure", "Show every mistake in the configuration."),
    "schema": Entry("mcp_proxy.cli.about:schema", "Configure", "Print the JSON schema of the configuration."),
    "load": Entry("mcp_proxy.cli.load:load", "Run", "Load-test an MCP server with users of every kind."),
    "completion": Entry(
        "mcp_proxy.cli.completion:completion", "About", "Print the completion script of a shell."
    ),
    "version": Entry("mcp_proxy.cli.about:version", "About", "Print the version, with --json of all parts."),
}

EXAMPLES = """\
\b
Examples:
  mcp-proxy http://localhost:3000/mcp
      one server, now at http://127.0.0.1:8080/mcp
  mcp-proxy http://10.0.0.11:8000/mcp http://10.0.0.12:8000/mcp
      two replicas; sessions stay where they began
  mcp-proxy serve --config proxy.yaml
  mcp-proxy check --config proxy.yaml
  mcp-proxy drain 10.0.0.11:8000 --wait
      nothing new for this replica; ends when its sessions have ended

\b
Exit codes: 0 clean, 1 runtime failure, 2 bad usage or configuration,
3 could not start.
"""

_HELP_OPTIONS = ["-h", "--help"]
_OWN_OPTIONS = {*_HELP_OPTIONS, "--version"}


class Commands(click.Group):
    """Loads a command when it is used, and takes a URL or a flag of ``serve`` for ``serve``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if _means_serve(args):
            args = ["serve", *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            raise click.UsageError(f"No such command {args[0]!r}. {_suggestion(args[0])}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        # click would import every command for its help.
        from click.shell_completion import CompletionItem

        return [
            CompletionItem(name, help=entry.about)
            for name, entry in COMMANDS.items()
            if name.startswith(incomplete)
        ]

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "URL...")
        formatter.write_usage(ctx.command_path, "COMMAND [OPTIONS]", prefix="       ")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl(
                    [(name, entry.about) for name, entry in COMMANDS.items() if entry.section == section]
                )


def is_named_by_environment() -> bool:
    """Variables alone say what to proxy to, as in a container without arguments."""
    return any(os.environ.get(name) for name in ("MCP_PROXY_CONFIG", "MCP_PROXY_BACKENDS"))


def _means_serve(args: list[str]) -> bool:
    if not args:
        return is_named_by_environment()
    return args[0] not in _OWN_OPTIONS and ("://" in args[0] or args[0].startswith("-"))


def _suggestion(word: str) -> str:
    close = difflib.get_close_matches(word, COMMANDS, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    if word.endswith((".yaml", ".yml", ".json")):
        return f"A configuration is given as: mcp-proxy serve --config {word}"
    if ":" in word or "." in word or word == "localhost":
        return f"A backend is given as a URL: mcp-proxy http://{word}"
    return f"Commands: {', '.join(COMMANDS)}."


@click.command(
    cls=Commands,
    context_settings={"help_option_names": _HELP_OPTIONS, "max_content_width": 100},
    epilog=EXAMPLES,
)
@click.version_option(__version__, message="mcp-proxy %(version)s")
def commands() -> None:
    """A reverse proxy for MCP servers (Streamable HTTP). It keeps sessions on their replica and
    passes every byte on unchanged."""


def main() -> None:
    """Run the command of this process and exit with its code."""
    commands(prog_name="mcp-proxy")
