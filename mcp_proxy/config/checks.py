"""What must be true of several values together.

Rules of this file: no I/O; every check looks only at values that are valid by themselves, so that
one broken key hides no problem of another; a check yields issues, it never raises. What is about one
pool is in ``pool_checks.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mcp_proxy.config import pool_checks
from mcp_proxy.config.addresses import Address, LiteralUrl
from mcp_proxy.config.amounts import format_size
from mcp_proxy.config.pool_checks import is_installed
from mcp_proxy.config.problems import Issue, Loc, Sections
from mcp_proxy.config.secret import Secret
from mcp_proxy.config.values import did_you_mean

if TYPE_CHECKING:
    from mcp_proxy.config.models import AdminConfig, Config, Limits, SessionsConfig, TelemetryConfig


class Inconsistent(ValueError):
    """Values that are valid alone contradict each other."""

    def __init__(self, issues: list[Issue]) -> None:
        super().__init__("; ".join(f"{issue.message} ({issue.hint})" for issue in issues))
        self.issues = issues


def of(config: Config) -> list[Issue]:
    """Every contradiction in a whole configuration."""
    pools = {name: dict(pool) for name, pool in config.pools.items()}
    return between(dict(config) | {"pools": pools, "routes": [dict(route) for route in config.routes]})


def between(sections: Sections) -> list[Issue]:
    """Every contradiction between the usable ``sections`` of a Config.

    Pools and routes are Sections themselves; None stands for a backend that cannot be read.
    """
    found = [*_sessions(sections), *_admin(sections.get("admin"), sections.get("listen"))]
    found += traces(sections.get("telemetry"))
    pools: Mapping[str, Sections] | None = sections.get("pools")
    if pools is not None:
        for name, pool in pools.items():
            found += pool_checks.of(name, pool, sections.get("sessions"))
        found += _routes(sections.get("routes"), pools)
    return found


def _sessions(sections: Sections) -> Iterator[Issue]:
    sessions: SessionsConfig | None = sections.get("sessions")
    if sessions is None:
        return
    workers = sections.get("workers", 1)
    if sessions.store == "memory" and workers > 1:
        yield Issue(
            ("workers",),
            f"{workers} workers cannot share sessions that each keeps in its own memory",
            "use --sessions signed or --sessions redis://..., or run 1 worker",
        )
    if sessions.store == "redis" and sessions.url is None:
        yield Issue(
            ("sessions", "store"), "there is no Redis to keep sessions in", "add url: redis://host:6379/0"
        )


def _admin(admin: AdminConfig | None, listen: Address | None) -> Iterator[Issue]:
    if admin is None or admin.listen is None:
        return
    if not admin.listen.is_loopback and admin.token is None:
        yield Issue(
            ("admin", "listen"),
            f"other machines can reach the admin listener {admin.listen}, and it has no token",
            "set admin.token or MCP_PROXY_ADMIN_TOKEN, or listen on 127.0.0.1",
        )
    if admin.metrics_token is not None and admin.token is None:
        yield Issue(
            ("admin", "metrics_token"),
            "without admin.token everything is open to whoever reaches the listener, /metrics too",
            "set admin.token or MCP_PROXY_ADMIN_TOKEN as well",
        )
    elif admin.metrics_token is not None and admin.metrics_token == admin.token:
        yield Issue(
            ("admin", "metrics_token"),
            "it is admin.token, which opens more than /metrics",
            "make one of its own: openssl rand -hex 32",
        )
    if listen is not None and admin.listen.collides_with(listen):
        yield Issue(("admin", "listen"), f"listen is {listen} already", "give admin another port")


def traces(
    telemetry: TelemetryConfig | None, is_installed: Callable[[str], bool] = is_installed
) -> Iterator[Issue]:
    """What sends spans is an optional package."""
    if telemetry is None or telemetry.traces is None:
        return
    if not is_installed("opentelemetry.exporter.otlp.proto.http"):
        yield Issue(
            ("telemetry", "traces"),
            "traces needs the package opentelemetry-exporter-otlp-proto-http, which is not installed",
            "pip install 'mcp-reverse-proxy[otlp]'",
        )


def _routes(routes: Sequence[Sections] | None, pools: Mapping[str, Sections]) -> Iterator[Issue]:
    if not pools:
        yield Issue(
            ("pools",),
            "there is no backend",
            "give a URL (mcp-proxy http://localhost:3000/mcp), write pools: into a file, "
            "or set MCP_PROXY_BACKENDS",
        )
    elif routes is not None and not routes:
        example = f"routes: [{{path: /mcp, pool: {next(iter(pools))}}}, ...]"
        yield Issue(("routes",), "no route leads to any pool", f"add {example}")
    seen: set[str] = set()
    for index, route in enumerate(routes or ()):
        pool, path = route.get("pool"), route.get("path")
        if pools and pool is not None and pool not in pools:
            yield Issue(("routes", index, "pool"), f"there is no pool {pool!r}", did_you_mean(pool, pools))
        if path in seen:
            yield Issue(("routes", index, "path"), f"{path} has a route already", "give each its own path")
        if path is not None:
            seen.add(path)


def advice(config: Config, is_in_variable: Callable[[Loc], bool]) -> Iterator[Issue]:
    """What is allowed and still worth a word, for ``mcp-proxy check``."""
    for loc in _literal_secrets(config):
        if not is_in_variable(loc):
            yield Issue(loc, "a secret stands in the configuration", "write env:NAME or file:PATH")
    sessions = config.sessions
    if sessions.store == "memory" and sessions.url is not None:
        yield Issue(("sessions", "url"), "sessions in memory use no Redis", "write store: redis, or signed")
    if sessions.store != "signed" and sessions.keys:
        yield Issue(("sessions", "keys"), f"{sessions.store} sessions use no keys", "write store: signed")
    routed = {route.pool for route in config.routes}
    for name, pool in config.pools.items():
        if name not in routed:
            yield Issue(("pools", name), "no route leads to this pool", "add a route, or remove the pool")
        yield from pool_checks.advice(name, pool)
    yield from _limits_advice(config.limits)


_SMALL_MEMORY = 64 << 20
"""What a process needs before its first request is somewhat less."""


def _limits_advice(limits: Limits) -> Iterator[Issue]:
    if limits.memory is not None and limits.memory < _SMALL_MEMORY:
        said = f"a process alone needs {format_size(_SMALL_MEMORY)}, so it would take no streams"
        yield Issue(("limits", "memory"), said, "write more, such as 512MiB, or off")
    for each, clients in (("per_client", limits.per_client), ("per_principal", limits.per_principal)):
        for key, all_of_them in (("streams", limits.streams), ("requests", limits.requests)):
            if (getattr(clients, key) or 0) > all_of_them:
                said = f"limits.{key} is {all_of_them} for all of them together"
                yield Issue(("limits", each, key), said, f"write less, or raise limits.{key}")
    if any(value is not None for _, value in limits.per_principal):
        said = "there is no auth, so no request has a principal"
        yield Issue(("limits", "per_principal"), said, "write limits: {per_client: ...}")


def _is_literal(value: object) -> bool:
    return isinstance(value, Secret) and value.is_literal


def _literal_secrets(config: Config) -> Iterator[Loc]:
    yield from (("admin", name) for name, value in config.admin if _is_literal(value))
    if isinstance(config.sessions.url, LiteralUrl):
        yield ("sessions", "url")
    for index, key in enumerate(config.sessions.keys):
        if _is_literal(key):
            yield ("sessions", "keys", index)
    traces = config.telemetry.traces
    for header, value in () if traces is None else traces.headers.items():
        if _is_literal(value):
            yield ("telemetry", "traces", "headers", header)
    for name, pool in config.pools.items():
        authorization = pool.credentials.authorization
        if _is_literal(authorization):
            yield ("pools", name, "credentials", "authorization")
        if isinstance(pool.proxy, LiteralUrl):
            yield ("pools", name, "proxy")
