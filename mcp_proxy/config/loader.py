"""From file, variables and flags to a Config, or to every problem at once.

Rules of this file: it only puts the parts together; nothing about a single value is decided here.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, TypeAdapter, ValidationError

from mcp_proxy.config import checks, explain, layers, yamlfile
from mcp_proxy.config.files import signature
from mcp_proxy.config.models import Config, RouteConfig
from mcp_proxy.config.pools import Backend, BackendConfig, PoolConfig
from mcp_proxy.config.problems import ConfigErrors, Files, Issue, Loc, Problem, key_path


class Loaded(NamedTuple):
    """A usable configuration and what is worth a word about it."""

    config: Config
    log_level: str
    warnings: list[Problem]
    files: Files
    """Every file that was read, as it was just before: the configuration itself, certificates, secrets."""
    again: Callable[[], Loaded]
    """Reads the same files anew, under the same variables and flags. Raises ConfigErrors."""
    locate: Callable[[Issue], Problem]
    """Says where the cure of something belongs."""


def load(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, object]) -> Config:
    """The configuration. Overrides win over the file, the file over MCP_PROXY_* variables.

    path: YAML; None: the file that MCP_PROXY_CONFIG names, or no file.
    overrides: by the names of the flags (``backends`` a sequence of URLs); None is "not given".
    Raises ConfigErrors with every problem.
    """
    return read(path, environ, overrides).config


def read(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, object]) -> Loaded:
    """Like ``load``, with the log level (override ``log_level``), warnings, and how to read it again."""
    if path is None and environ.get(layers.CONFIG_VARIABLE):
        path = Path(environ[layers.CONFIG_VARIABLE])
    # What is set outside of files stays as it is for as long as the process runs.
    environ, overrides = dict(environ), dict(overrides)
    files: Files = {}
    try:
        return _read(path, environ, overrides, files)
    except ConfigErrors as errors:
        errors.files = files
        raise


def _read(
    path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, object], files: Files
) -> Loaded:
    document = None
    if path is not None:
        files[path] = signature(path)
        document = yamlfile.read(path)
    tree = layers.merge(document.data if document else {}, layers.from_environment(environ), overrides)
    problems = [*(document.problems if document else ()), *tree.problems]
    log_level = layers.log_level(environ, overrides)
    if isinstance(log_level, Problem):
        problems.append(log_level)
    where = _Locator(document, tree.origins)
    context = {"environ": environ, "seen": files}
    try:
        config = Config.model_validate(tree.data, context=context, by_name=False, by_alias=True)
    except ValidationError as error:
        found = [*explain.issues(error), *checks.between(_usable(tree.data, context))]
        problems += [where.problem(issue) for issue in found]
        raise ConfigErrors(_once(problems)) from None
    if isinstance(log_level, Problem) or problems:
        raise ConfigErrors(_once(problems))
    return Loaded(
        config,
        log_level,
        warnings=[
            *map(where.problem, checks.advice(config, tree.is_in_variable)),
            *_misspelt_variables(environ),
        ],
        files=files,
        again=lambda: read(path, environ, overrides),
        locate=where.problem,
    )


class _Locator:
    """Knows where a value came from."""

    def __init__(self, document: yamlfile.Document | None, origins: Mapping[Loc, str]) -> None:
        self._document = document
        self._origins = origins

    def problem(self, issue: Issue) -> Problem:
        key = key_path(issue.loc)
        for length in range(len(issue.loc), 0, -1):
            origin = self._origins.get(issue.loc[:length])
            if origin:
                return Problem(origin, None, key, issue.message, issue.hint)
        if self._document is None:
            return Problem("configuration", None, key, issue.message, issue.hint)
        return Problem(self._document.name, self._document.line(issue.loc), key, issue.message, issue.hint)


def _usable(data: Mapping[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    """What can be read of a broken configuration, key by key, for ``checks.between``."""
    shallow = {name: value for name, value in data.items() if name not in ("pools", "routes")}
    found = _fields(Config, shallow, context)
    pools, routes = data.get("pools", {}), data.get("routes", [])
    del found["pools"], found["routes"]
    if isinstance(pools, dict):
        found["pools"] = {name: _pool(raw, context) for name, raw in pools.items()}
    if isinstance(routes, list):
        found["routes"] = [_fields(RouteConfig, raw, context) for raw in routes]
    return found


def _pool(raw: Any, context: dict[str, Any]) -> dict[str, Any]:
    found = _fields(PoolConfig, raw, context)
    backends = raw.get("backends") if isinstance(raw, dict) else None
    if isinstance(backends, list):
        found["backends"] = [_backend(backend, context) for backend in backends]
    return found


def _fields(model: type[BaseModel], raw: Any, context: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if not isinstance(raw, dict) or (name not in raw and field.is_required()):
            continue
        # Annotated needs one argument more than the type, and a field may have no metadata.
        kind: Any = Annotated[field.annotation, name, *field.metadata]
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        default = field.get_default(call_default_factory=True, validated_data={})
        with contextlib.suppress(ValidationError):
            found[name] = _valid(adapter, raw.get(name, default), context)
    return found


def _valid(adapter: TypeAdapter[Any], raw: Any, context: dict[str, Any]) -> Any:
    return adapter.validate_python(raw, context=context, by_name=False, by_alias=True)


def _backend(raw: Any, context: dict[str, Any]) -> BackendConfig | None:
    try:
        backend: BackendConfig = _valid(TypeAdapter(Backend), raw, context)
    except ValidationError:
        return None
    return backend


def _once(problems: list[Problem]) -> list[Problem]:
    """In the order of the file; what an anchor repeats in several places is said once."""
    unique = {(p.source, p.line, p.message, p.hint): p for p in reversed(problems)}
    return sorted(unique.values(), key=lambda problem: (problem.line or 0, problem.key))


def _misspelt_variables(environ: Mapping[str, str]) -> Iterator[Problem]:
    """Unknown variables are common and legal; only one that is nearly right is suspicious."""
    known = [setting.variable for setting in layers.SETTINGS]
    known += [layers.CONFIG_VARIABLE, layers.LOG_LEVEL_VARIABLE]
    for name in environ:
        if name.startswith("MCP_PROXY_") and name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
            if close:
                yield Problem(name, None, "", "this variable means nothing", f"did you mean {close[0]}?")
