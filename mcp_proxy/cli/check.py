"""``mcp-proxy check``: every mistake of a configuration, for people and for machines.

Rules of this file: the result goes to stdout, one line per problem as ``file:line: message (hint)``;
nothing is started, no name is looked up and no backend is asked. Exit code 0 or 2.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mcp_proxy.config import Config, PoolConfig, Problem

_EPILOG = """\
\b
Examples:
  mcp-proxy check --config proxy.yaml
  mcp-proxy check --config proxy.yaml --json | jq .errors

Without --config the file in MCP_PROXY_CONFIG and the MCP_PROXY_* variables are checked.
Exit codes: 0 usable (there may be warnings), 2 not usable.
"""


@click.command(epilog=_EPILOG)
@click.option("--config", metavar="FILE", type=Path, help="YAML file to check.")
@click.option("--json", "as_json", is_flag=True, help="Print errors and warnings as one JSON object.")
def check(config: Path | None, as_json: bool) -> None:
    """Show every mistake of a configuration at once, each with its place and its cure."""
    from mcp_proxy.config import ConfigErrors, read

    errors: list[Problem] = []
    warnings: list[Problem] = []
    loaded = None
    try:
        loaded = read(config, os.environ, {})
        warnings = loaded.warnings
    except ConfigErrors as found:
        errors = found.problems
    if as_json:
        click.echo(_as_json(errors, warnings))
    else:
        for problem in errors:
            click.echo(problem)
        for warning in warnings:
            click.echo(f"{warning} [warning]")
        click.echo(f"{_count(errors, 'error')}, {_count(warnings, 'warning')}")
        if loaded is not None:
            click.echo(_summary(loaded.config))
    sys.exit(2 if errors else 0)


def _as_json(errors: list[Problem], warnings: list[Problem]) -> str:
    return json.dumps(
        {
            "ok": not errors,
            "errors": [asdict(problem) for problem in errors],
            "warnings": [asdict(warning) for warning in warnings],
        },
        indent=2,
    )


def _count(problems: list[Problem], noun: str) -> str:
    return f"{len(problems) or 'no'} {noun}{'' if len(problems) == 1 else 's'}"


def _summary(config: Config) -> str:
    admin = config.admin.listen or "off"
    lines = [f"listen {config.listen}, admin {admin}, sessions {config.sessions.store}"]
    routes = (
        f"{route.path} -> {route.pool}: {_backends(config.pools[route.pool])}" for route in config.routes
    )
    return "\n".join([*lines, *routes])


def _backends(pool: PoolConfig) -> str:
    """No name is looked up: what is there now says little about what is there at the start."""
    discover = pool.discover
    if discover is None:
        return f"{len(pool.backends)} backend{'' if len(pool.backends) == 1 else 's'}"
    if discover.kubernetes is not None:
        return f"found as endpoints of the Service {discover.kubernetes.service}"
    return f"found in DNS as {discover.dns or discover.srv}"
