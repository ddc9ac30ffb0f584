"""Flags over file over MCP_PROXY_* variables: one tree of values, and who said what.

Rules of this file: pure, no I/O; nothing is judged here but whether two layers fit together. The
only numbers read here are those that a variable cannot say otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mcp_proxy.config.addresses import DEFAULT_PATH
from mcp_proxy.config.problems import Loc, Problem
from mcp_proxy.config.values import did_you_mean


class Setting(NamedTuple):
    """Something that can be said outside of the file."""

    name: str
    """Key in the overrides of ``load``."""
    flag: str
    variable: str
    loc: Loc
    about: str


SETTINGS = (
    Setting("backends", "URL", "MCP_PROXY_BACKENDS", ("pools",), "URLs, separated by spaces or commas"),
    Setting("path", "--path", "MCP_PROXY_PATH", ("routes",), "path of the only route"),
    Setting("listen", "--listen", "MCP_PROXY_LISTEN", ("listen",), "HOST:PORT"),
    Setting("admin", "--admin", "MCP_PROXY_ADMIN", ("admin", "listen"), "HOST:PORT or off"),
    Setting("admin_token", "", "MCP_PROXY_ADMIN_TOKEN", ("admin", "token"), "bearer token of the former"),
    Setting(
        "metrics_token", "", "MCP_PROXY_METRICS_TOKEN", ("admin", "metrics_token"), "one for /metrics only"
    ),
    Setting("external_url", "", "MCP_PROXY_EXTERNAL_URL", ("external_url",), "what clients see"),
    Setting("trusted_proxies", "", "MCP_PROXY_TRUSTED_PROXIES", ("trusted_proxies",), "networks, likewise"),
    Setting(
        "sessions",
        "--sessions",
        "MCP_PROXY_SESSIONS",
        ("sessions", "store"),
        "memory, signed, Redis URL",
    ),
    Setting("workers", "--workers", "MCP_PROXY_WORKERS", ("workers",), "number of processes"),
)
"""Kubernetes sets MCP_PROXY_PORT and MCP_PROXY_SERVICE_* for a Service called mcp-proxy, so none of
these may ever be called so, and unknown variables are not errors."""

PREFIX = "MCP_PROXY_"
CONFIG_VARIABLE = "MCP_PROXY_CONFIG"
LOG_LEVEL_VARIABLE = "MCP_PROXY_LOG_LEVEL"
LOG_LEVELS = ("critical", "error", "warning", "info", "debug")

_TOKENS = [setting for setting in SETTINGS if setting.name.endswith("_token")]
_STORE: Loc = ("sessions", "store")
_URL: Loc = ("sessions", "url")
"""What a Redis URL as the former becomes."""
_LISTS = {"backends", "trusted_proxies"}
_DEFAULT_POOL = "default"


class Tree(NamedTuple):
    """The layers in one. ``origins``: flag or variable behind a loc, for everything not in the file."""

    data: dict[str, Any]
    origins: dict[Loc, str]
    problems: list[Problem]

    def is_in_variable(self, loc: Loc) -> bool:
        """It is neither in the file nor on the command line."""
        return self.origins.get(loc, "").startswith(PREFIX)


def from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    """The settings that variables make. An empty variable counts as not set."""
    found: dict[str, object] = {}
    for setting in SETTINGS:
        text = environ.get(setting.variable, "").strip()
        if text:
            found[setting.name] = text.replace(",", " ").split() if setting.name in _LISTS else text
    for token in _TOKENS:
        if token.name in found:
            # Not the text itself: a secret in a variable is no literal that check would warn about.
            found[token.name] = f"env:{token.variable}"
    if re.fullmatch(r"[0-9]{1,9}", str(found.get("workers", ""))):
        found["workers"] = int(str(found["workers"]))
    return found


def log_level(environ: Mapping[str, str], flags: Mapping[str, object]) -> str | Problem:
    """How much the proxy says about itself. No key of the file: it belongs to a run, not to a set-up."""
    flag, variable = flags.get("log_level"), environ.get(LOG_LEVEL_VARIABLE)
    level = str(flag or variable or "info").lower()
    if level in LOG_LEVELS:
        return level
    source = "--log-level" if flag else LOG_LEVEL_VARIABLE
    return Problem(source, None, "", f"{level!r} is not a level", did_you_mean(level, LOG_LEVELS))


def merge(file: Mapping[str, Any], variables: Mapping[str, object], flags: Mapping[str, object]) -> Tree:
    """One tree. ``flags`` that are None were not given."""
    tree = Tree(dict(file), {}, [])
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    for setting in SETTINGS[2:]:
        if setting.name in given:
            _put(tree, setting.loc, given[setting.name], setting.flag, replace=True)
        elif setting.name in variables:
            _put(tree, setting.loc, variables[setting.name], setting.variable, replace=False)
    _place_backends(tree, variables, given)
    return tree


def _put(tree: Tree, loc: Loc, value: object, origin: str, *, replace: bool) -> None:
    section = tree.data
    for key in loc[:-1]:
        inner = section.get(str(key), {})
        if inner is False or inner == "off":
            inner = {"listen": "off"}
        if not isinstance(inner, dict):
            return  # The file's mistake is reported; there is nothing to put the value into.
        section[str(key)] = inner = dict(inner)
        section = inner
    last = str(loc[-1])
    if replace or last not in section:
        section[last] = value
        tree.origins[loc] = origin
        if loc == _STORE and "://" in str(value):
            tree.origins[_URL] = origin


def _place_backends(tree: Tree, variables: Mapping[str, object], flags: Mapping[str, object]) -> None:
    """URLs are a pool of their own and bring its route; a file with one pool needs no route."""
    data, origins = tree.data, tree.origins
    path, path_origin = DEFAULT_PATH, ""
    if "path" in variables:
        path, path_origin = str(variables["path"]), "MCP_PROXY_PATH"
    if "path" in flags:
        path, path_origin = str(flags["path"]), "--path"
    if "backends" in flags or ("backends" in variables and not data.keys() & {"pools", "routes"}):
        urls, origin = flags.get("backends"), "URL"
        if urls is None:
            urls, origin = variables["backends"], "MCP_PROXY_BACKENDS"
        data["pools"] = {_DEFAULT_POOL: {"backends": list(urls) if isinstance(urls, list | tuple) else urls}}
        data.pop("routes", None)
        origins[("pools",)] = origin
    pools = data.get("pools")
    if "routes" not in data:
        if isinstance(pools, dict) and len(pools) == 1:
            data["routes"] = [{"path": path, "pool": next(iter(pools))}]
            origin = path_origin or origins.get(("pools",), "")
            if origin:
                origins[("routes",)] = origin
    elif "path" in flags:
        _replace_path(tree, path)


def _replace_path(tree: Tree, path: str) -> None:
    routes = tree.data["routes"]
    if isinstance(routes, list) and len(routes) == 1 and isinstance(routes[0], dict):
        tree.data["routes"] = [routes[0] | {"path": path}]
        tree.origins[("routes", 0, "path")] = "--path"
    elif isinstance(routes, list) and len(routes) != 1:
        message = f"the file has {len(routes)} routes, it is not clear which one is meant"
        tree.problems.append(Problem("--path", None, "", message, "write the path into the file"))
