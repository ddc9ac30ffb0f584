"""What the documents say can be used: configurations load, metrics and keys exist.

Rules of this file: nothing is run (``tests/deploy/test_docs_commands.py`` runs the commands). A fragment of a
configuration gets what every configuration has, and no more: a backend for a pool without one, a route to
each pool and a pool for each route, a value for each variable and a file for each path that it names.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcp_proxy.config import Config, load, read
from mcp_proxy.reload import Reloader
from mcp_proxy.telemetry.exposition import Exposition
from mcp_proxy.telemetry.snapshot import GaugeSnapshot, Snapshot
from mcp_proxy.workers.crew import Crew
from mcp_proxy.workers.group import Group
from tests.tools.tls import Authority

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {document.name: document.read_text() for document in DOCUMENTS}

VARIABLES = {
    "WEATHER_TOKEN": "Bearer weather",
    "COLLECTOR_TOKEN": "Bearer collector",
    "MCP_PROXY_ADMIN_TOKEN": "t" * 32,
    "MCP_PROXY_METRICS_TOKEN": "m" * 32,
    "MCP_PROXY_SESSION_KEY": "k" * 44,
    "MCP_PROXY_REDIS_URL": "redis://redis:6379/0",
}

SUFFIXES = (".md", ".py", ".yaml", ".json", ".dev", ".crt")
OTHERS = {"retry"}
"""Left of a colon, and not of the configuration."""


def blocks(language: str) -> list[Any]:
    """Every fenced block in ``language``, with the document and the number of the block in it."""
    return [
        pytest.param(found, id=f"{name}-{number}")
        for name, text in TEXTS.items()
        for number, found in enumerate(re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S), 1)
    ]


# --- configurations ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the examples have in /etc/tls."""
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    authority.ca.rename(folder / "ca.crt")
    authority.certificate.rename(folder / "tls.crt")
    return folder


def is_of_the_proxy(document: dict[str, Any]) -> bool:
    """Other programs have YAML, too; each says its own."""
    return not document.keys() & {"apiVersion", "services", "jobs", "on", True}


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_configuration_can_be_used(block: str, tls: Path, tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all(block.replace("/etc/tls", str(tls))))
    if not is_of_the_proxy(documents[0]):
        return
    (document,) = documents
    named = [route["pool"] for route in document.get("routes", ())] or ["pool"]
    pools = document.setdefault("pools", {name: {} for name in named})
    for pool in pools.values():
        if "discover" not in pool:
            pool.setdefault("backends", ["http://10.0.0.11:8000/mcp"])
    document.setdefault("routes", [{"path": f"/{name}/mcp", "pool": name} for name in pools])
    (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(document))

    assert load(tmp_path / "proxy.yaml", VARIABLES, {}).pools.keys() == pools.keys()


# --- names ---------------------------------------------------------------------------------------------


async def _apply(config: Config) -> None:
    """Nothing is reloaded here."""


async def families() -> dict[str, tuple[str, str, str]]:
    """Kind, labels and text of every family of ours, by name; with several workers there are all."""
    empty = Snapshot({}, {}, GaugeSnapshot(0, {}, {}, []))
    reloads = Reloader(read(None, {}, {"backends": ["http://10.0.0.11:8000/mcp"]}), _apply)
    with socket.socket() as unused:
        crew = Group(Crew(2, unused, b"", drain_s=0.0, log="text"))
        exposition = Exposition(lambda: empty, [reloads, crew])
        text = exposition.render(None)[0].decode()
        labels = {
            each.name: each._labelnames  # type: ignore[attr-defined]
            for collector in (exposition, reloads, crew)
            for each in collector.collect()
        }
    labels["mcp_proxy_build"] = ("version", "python")
    told = re.findall(r"^# HELP (mcp_proxy_\w+) (.*)\n# TYPE \1 (\w+)", text, re.M)
    return {
        name: (kind, " ".join(labels[name.removesuffix("_total").removesuffix("_info")]), meaning)
        for name, meaning, kind in told
    }


async def test_every_metric_that_is_named_is_exposed() -> None:
    named = {found for text in TEXTS.values() for found in re.findall(r"\bmcp_proxy_[a-z_]+[a-z]\b", text)}

    assert named
    assert named <= (await families()).keys()


async def test_the_table_of_metrics_says_what_a_scrape_says() -> None:
    rows = re.findall(r"^\| `(mcp_proxy_\w+)` \| (\w+) \|(.*?)\| (.*) \|$", TEXTS["telemetry.md"], re.M)
    table = [(name, (kind, labels.replace("`", "").strip(), text)) for name, kind, labels, text in rows]

    assert dict(table) == await families()
    assert len(dict(table)) == len(table)


SCHEMA = Config.model_json_schema()


def keys(schema: dict[str, Any]) -> dict[str, Any]:
    """What may stand under a key, by name."""
    if "$ref" in schema:
        return keys(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    found = dict(schema.get("properties", {}))
    for part in schema.get("anyOf", ()):
        found |= keys(part)
    return found


def is_key(path: str, schema: dict[str, Any]) -> bool:
    name, _, rest = path.partition(".")
    below = keys(schema)
    return name == "*" or (name in below and (not rest or is_key(rest, below[name])))


POOL = SCHEMA["$defs"]["PoolConfig"]
EVERY_KEY = {name for each in (SCHEMA, *SCHEMA["$defs"].values()) for name in each.get("properties", {})}


@pytest.mark.parametrize("name", TEXTS)
def test_every_key_that_is_named_exists(name: str) -> None:
    """``a.b`` from the top or from a pool, and what is left of the colon in ``key: value``."""
    code = set(re.findall(r"`([^`\n]+)`", TEXTS[name]))
    tops = keys(SCHEMA).keys() | keys(POOL).keys()
    paths = {found for found in code if re.fullmatch(r"[a-z_]+(\.([a-z_]+|\*))+", found)}
    paths = {path for path in paths if path.partition(".")[0] in tops and not path.endswith(SUFFIXES)}
    pairs = {found.partition(":")[0] for found in code if re.match(r"[a-z_]+: ", found)}

    assert [path for path in paths if not is_key(path, SCHEMA) and not is_key(path, POOL)] == []
    assert pairs - EVERY_KEY - OTHERS == set()
