"""What must be true of several values of one pool.

Rules of this file: those of ``checks.py``. Names are not looked up and backends are not asked; the only
look outside is whether an optional package is installed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mcp_proxy.config.addresses import backend_identity
from mcp_proxy.config.amounts import format_duration
from mcp_proxy.config.problems import Issue, Loc, Sections

if TYPE_CHECKING:
    from mcp_proxy.config.models import SessionsConfig
    from mcp_proxy.config.pools import ActiveConfig, BackendConfig, DiscoverConfig, PoolConfig


def is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package that it would be in
        return False


def of(
    name: str,
    pool: Sections,
    sessions: SessionsConfig | None,
    is_installed: Callable[[str], bool] = is_installed,
) -> Iterator[Issue]:
    """Every contradiction in the pool ``name``. ``sessions`` None: broken."""
    yield from _pool_name(name)
    yield from _origin(name, pool)
    yield from _duplicate_backends(name, pool.get("backends", ()))
    yield from _transport(name, pool)
    yield from _loss(name, pool, sessions)
    yield from _slow_start(name, pool)
    yield from _health(name, pool)
    discover: DiscoverConfig | None = pool.get("discover")
    if discover is not None:
        yield from _discover(("pools", name, "discover"), discover)
        yield from _extras(("pools", name, "discover"), discover, is_installed)


_POOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
"""A name becomes a metric label, part of session keys and a word in answers."""


def _pool_name(name: str) -> Iterator[Issue]:
    if not _POOL_NAME.fullmatch(name):
        yield Issue(
            ("pools", name),
            f"{name!r} cannot be the name of a pool",
            "use at most 63 letters, digits, -, _ and ., beginning with a letter or digit",
        )


def _origin(name: str, pool: Sections) -> Iterator[Issue]:
    if not pool.keys() >= {"backends", "discover"}:
        return
    if not pool["backends"] and pool["discover"] is None:
        yield Issue(
            ("pools", name, "backends"),
            "the pool has no backends",
            "add backends: [http://host:port/mcp], or discover: {dns: NAME, port: 8000}",
        )
    if pool["backends"] and pool["discover"] is not None:
        yield Issue(
            ("pools", name, "discover"),
            "the pool has backends already, and they cannot be both written down and found",
            "remove backends or discover, or make two pools",
        )


def _duplicate_backends(name: str, backends: Sequence[BackendConfig | None]) -> Iterator[Issue]:
    seen: set[tuple[str, str, int, str]] = set()
    for index, backend in enumerate(backends):
        if backend is None:
            continue
        identity = backend_identity(backend.url)
        if identity in seen:
            yield Issue(
                ("pools", name, "backends", index),
                f"{backend.url} is a backend of this pool already",
                "remove one; to send it more, give it a weight",
            )
        seen.add(identity)


def _transport(name: str, pool: Sections) -> Iterator[Issue]:
    if pool.get("transport") != "http11":
        return
    for key in ("proxy", "http2"):
        if pool.get(key):
            yield Issue(("pools", name, key), f"the transport http11 has no {key}", "add transport: httpx")


def _loss(name: str, pool: Sections, sessions: SessionsConfig | None) -> Iterator[Issue]:
    if sessions is None or pool.get("on_backend_loss") != "reinitialize":
        return
    if sessions.store == "signed" and sessions.url is None:
        yield Issue(
            ("pools", name, "on_backend_loss"),
            "a signed session id cannot tell where the session has moved to",
            "add sessions.url: redis://..., or use on_backend_loss: end",
        )


# Health

LONGEST_SLOW_START_S = 3600.0
"""Whatever a backend has to warm up, it has done so within an hour of traffic."""


def _slow_start(name: str, pool: Sections) -> Iterator[Issue]:
    slow_start: float | None = pool.get("slow_start")
    if slow_start is not None and slow_start > LONGEST_SLOW_START_S:
        yield Issue(
            ("pools", name, "slow_start"),
            f"a backend would have less than its share for {format_duration(slow_start)}",
            f"write {format_duration(LONGEST_SLOW_START_S)} or less, or none",
        )


def _health(name: str, pool: Sections) -> Iterator[Issue]:
    health = pool.get("health")
    if health is None:
        return
    if health.eject is not None and health.eject.at_most == 0:
        yield Issue(
            ("pools", name, "health", "eject", "at_most"),
            "0% of the backends are none, so nothing would be ejected",
            "write more, such as 50%, or eject: off",
        )
    active: ActiveConfig | None = health.active
    if active is None:
        return
    loc = ("pools", name, "health", "active")
    if active.timeout > active.every:
        timeout, every = format_duration(active.timeout), format_duration(active.every)
        yield Issue(
            (*loc, "timeout"),
            f"a check may take {timeout}, and the next one begins after {every}",
            f"write {every} or less, or raise every",
        )
    yield from _check((*loc, "check"), active.check, pool)


def _check(loc: Loc, check: str, pool: Sections) -> Iterator[Issue]:
    if check == "discover" and pool.get("era") == "legacy":
        yield Issue(
            loc,
            "server/discover is of 2026-07-28, which backends of era: legacy do not speak",
            "write check: tcp, or the path of a side endpoint such as /healthz",
        )
    for url, path in _endpoints(pool):
        # Servers take /mcp/ for /mcp, by a redirect or by themselves.
        if check.startswith("/") and check.rstrip("/") == path.rstrip("/"):
            yield Issue(
                loc,
                f"{check} is the MCP endpoint of {url}: each GET of a check would make a session there",
                "name a side endpoint such as /healthz, or write check: tcp or check: discover",
            )
            return


def _endpoints(pool: Sections) -> Iterator[tuple[str, str]]:
    """Name and path of what must not be asked with GET."""
    for backend in pool.get("backends", ()):
        if backend is not None:
            yield backend.url, urlsplit(backend.url).path
    discover: DiscoverConfig | None = pool.get("discover")
    if discover is not None:
        yield "the backends that are found", discover.path


# Discovery

_SOURCES = ("dns", "srv", "kubernetes")


def _discover(loc: Loc, discover: DiscoverConfig) -> Iterator[Issue]:
    given = [source for source in _SOURCES if getattr(discover, source) is not None]
    if not given:
        yield Issue(
            loc,
            "it is not said where to look",
            "add dns: NAME with port: 8000, srv: NAME, or kubernetes: {service: NAME}",
        )
    elif len(given) > 1:
        yield Issue(
            (*loc, given[1]), f"there is {given[0]} already, and a pool looks in one place", "remove one"
        )
    else:
        yield from _port((*loc, "port"), given[0], discover.port)


def _port(loc: Loc, source: str, port: int | str | None) -> Iterator[Issue]:
    if source == "dns" and port is None:
        yield Issue(loc, "addresses in DNS have no port, and none is given", "add port: 8000, or use srv")
    elif source == "dns" and isinstance(port, str):
        yield Issue(
            loc, f"only Kubernetes knows ports by name, such as {port!r}", "write the number of the port"
        )
    elif source == "srv" and port is not None:
        yield Issue(loc, "SRV records have a port of their own", "remove port")


def _extras(loc: Loc, discover: DiscoverConfig, is_installed: Callable[[str], bool]) -> Iterator[Issue]:
    for key, module, package, extra in (
        ("srv", "dns", "dnspython", "dns"),
        ("kubernetes", "lightkube", "lightkube", "kubernetes"),
    ):
        if getattr(discover, key) is not None and not is_installed(module):
            yield Issue(
                (*loc, key),
                f"{key} needs the package {package}, which is not installed",
                f"pip install 'mcp-reverse-proxy[{extra}]'",
            )


# Advice

_OFTEN_S = 1.0
"""Asking more often finds out little sooner, and is felt by who is asked."""


def advice(name: str, pool: PoolConfig) -> Iterator[Issue]:
    """What is allowed and still worth a word."""
    loc: Loc = ("pools", name)
    yield from _tls_advice((*loc, "tls"), pool)
    if pool.balance == "hash" and pool.affinity.key == "principal":
        yield Issue(
            (*loc, "balance"),
            "there is no auth, so no request has a principal to hash",
            "write affinity: {key: client} or {key: header:NAME}",
        )
    discover, active = pool.discover, pool.health.active
    if discover is not None and discover.kubernetes is None and discover.every < _OFTEN_S:
        yield Issue((*loc, "discover", "every"), "names are looked up very often", "write 1s or more")
    if discover is not None and discover.kubernetes is not None and "every" in discover.model_fields_set:
        yield Issue((*loc, "discover", "every"), "with kubernetes changes come by themselves", "remove it")
    if active is not None and active.every < _OFTEN_S:
        yield Issue((*loc, "health", "active", "every"), "checks are very frequent", "write 1s or more")
    if active is not None and active.check == "tcp" and pool.proxy is not None:
        yield Issue(
            (*loc, "health", "active", "check"),
            "tcp connects directly, not by way of the pool's proxy",
            "write the path of a side endpoint such as /healthz, or discover",
        )


def _tls_advice(loc: Loc, pool: PoolConfig) -> Iterator[Issue]:
    if pool.tls is None:
        return
    if pool.discover is not None and not pool.discover.tls:
        yield Issue(loc, "the backends that are found are not https", "write discover: {tls: true, ...}")
    elif pool.discover is None and not any(backend.url.startswith("https:") for backend in pool.backends):
        yield Issue(loc, "no backend of the pool is https", "write https://...")
