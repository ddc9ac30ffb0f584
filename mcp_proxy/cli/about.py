"""``mcp-proxy schema`` and ``mcp-proxy version``: what the program knows about itself, on stdout."""

from __future__ import annotations

import json
import platform
from importlib import metadata

import click

from mcp_proxy import __version__

_PARTS = ("anyio", "click", "httptools", "httpx2", "msgspec", "pydantic", "starlette", "uvicorn", "uvloop")
"""Whose versions decide how a connection behaves; worth knowing in every bug report."""


@click.command()
@click.option("--markdown", "as_markdown", is_flag=True, help="Print a page for people instead: every key.")
def schema(as_markdown: bool) -> None:
    """Print the JSON schema of the configuration file.

    Editors complete and check the file with a first line such as
    `# yaml-language-server: $schema=mcp-proxy.schema.json`."""
    if as_markdown:
        from mcp_proxy.cli.reference import page

        click.echo(page(), nl=False)
        return
    from mcp_proxy.config import Config

    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    click.echo(json.dumps(dialect | Config.model_json_schema(), indent=2))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="With Python and the libraries that matter.")
def version(as_json: bool) -> None:
    """Print the version."""
    if not as_json:
        click.echo(f"mcp-proxy {__version__}")
        return
    facts = {
        "version": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "libraries": {name: _version_of(name) for name in _PARTS},
    }
    click.echo(json.dumps(facts, indent=2))


def _version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
