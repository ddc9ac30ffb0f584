"""What differs between two configurations, and what of it a running process can take over.

Rules of this file: pure. Every key belongs to one ``Part``; a new one has to be put into the table, a
test sees to it. What a process can apply without touching streams and sessions of other pools is no
reason for a restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from enum import Enum
from typing import Final

from mcp_proxy.config.base import FileModel, Model, key_of
from mcp_proxy.config.models import Config
from mcp_proxy.config.problems import Issue, Loc, key_path


class Part(Enum):
    """What has to be made anew when a key changes."""

    RESTART = "restart"
    """The process: the key is in force until it ends."""
    ADMIN = "admin"
    GUARD = "guard"
    """Who may ask, and whose word is believed."""
    TLS = "tls"
    """Certificate and key of the public listener; new handshakes see them."""
    LIMITS = "limits"
    ROUTES = "routes"
    TELEMETRY = "telemetry"
    MEMBERS = "members"
    """Where the backends of a pool are."""
    POLICY = "policy"
    """How a pool chooses, judges and releases them."""
    CONNECTIONS = "connections"
    """How a pool connects to them."""


PARTS: Final[Mapping[str, Part]] = {
    "listen": Part.RESTART,  # the socket is bound once
    "admin.listen": Part.RESTART,
    "admin.token": Part.ADMIN,
    "admin.metrics_token": Part.ADMIN,
    "external_url": Part.GUARD,
    "trusted_proxies": Part.GUARD,
    "tls.certificate": Part.TLS,
    "tls.key": Part.TLS,
    # A context that accepts connections takes authorities in addition; it lets none go.
    "tls.client_ca": Part.RESTART,
    "workers": Part.RESTART,
    # Sessions that are written in one place are not found in another.
    "sessions.store": Part.RESTART,
    "sessions.url": Part.RESTART,
    "sessions.ttl": Part.RESTART,
    "sessions.cache_ttl": Part.RESTART,
    "sessions.keys": Part.RESTART,
    "limits.body": Part.LIMITS,
    "limits.head": Part.LIMITS,
    "limits.header_fields": Part.LIMITS,
    "limits.json_hold": Part.LIMITS,
    "limits.streams": Part.LIMITS,
    "limits.requests": Part.LIMITS,
    "limits.per_client": Part.LIMITS,
    "limits.per_principal": Part.LIMITS,
    "limits.memory": Part.LIMITS,
    "limits.head_timeout": Part.LIMITS,
    "limits.drain": Part.LIMITS,
    "limits.drain_delay": Part.LIMITS,
    "pools.*.backends": Part.MEMBERS,
    "pools.*.discover": Part.MEMBERS,
    "pools.*.balance": Part.POLICY,
    "pools.*.slow_start": Part.POLICY,
    "pools.*.era": Part.POLICY,
    "pools.*.health": Part.POLICY,
    "pools.*.drain": Part.POLICY,
    "pools.*.affinity": Part.POLICY,
    "pools.*.on_backend_loss": Part.POLICY,
    "pools.*.lost_after": Part.POLICY,
    "pools.*.unknown_after": Part.POLICY,
    "pools.*.credentials": Part.POLICY,
    "pools.*.transport": Part.CONNECTIONS,
    "pools.*.timeouts": Part.CONNECTIONS,
    "pools.*.tls": Part.CONNECTIONS,
    "pools.*.proxy": Part.CONNECTIONS,
    "pools.*.http2": Part.CONNECTIONS,
    "routes": Part.ROUTES,
    "telemetry.log": Part.RESTART,  # who reads a log has to know from its first line on what a line is
    # The log is opened before there is traffic, so that a wrong one is found at the start; lines on their
    # way belong to it. A signal makes it open its file anew.
    "telemetry.access_log": Part.RESTART,
    "telemetry.access_log_file": Part.RESTART,
    "telemetry.metrics": Part.TELEMETRY,
    # Spans are on their way to the collector that was named when they were made.
    "telemetry.traces": Part.RESTART,
}
"""The part of a key and of everything below it."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Pools by name; a pool that is in none of the three is as it was."""

    new: tuple[str, ...]
    gone: tuple[str, ...]
    changed: Mapping[str, Set[Part]]
    """Only MEMBERS, POLICY and CONNECTIONS."""
    parts: Set[Part]
    """What changed outside of pools. Never RESTART."""
    keys: tuple[str, ...]
    """Every change by the name of its key, for the log; no values."""
    issues: tuple[Issue, ...]
    """What a running process cannot take over."""

    def __bool__(self) -> bool:
        return bool(self.keys)


def compare(old: Config, new: Config) -> Changes:
    """What has to be done so that a process that runs ``old`` runs ``new``."""
    changed: dict[str, Set[Part]] = {}
    locs: list[Loc] = []
    for name in sorted(old.pools.keys() & new.pools.keys()):
        found = list(_differences(old.pools[name], new.pools[name], ("pools", name)))
        if found:
            locs += found
            changed[name] = frozenset(map(_part, found))
    added, gone = sorted(new.pools.keys() - old.pools.keys()), sorted(old.pools.keys() - new.pools.keys())
    outside = [loc for loc in _differences(old, new, ()) if loc != ("pools",)]
    parts = frozenset(map(_part, outside))
    locs += [*outside, *(("pools", name) for name in (*added, *gone))]
    return Changes(
        new=tuple(added),
        gone=tuple(gone),
        changed=changed,
        parts=parts - {Part.RESTART},
        keys=tuple(sorted(map(key_path, locs))),
        issues=tuple(_restart(loc) for loc in outside if _part(loc) is Part.RESTART),
    )


def _restart(loc: Loc) -> Issue:
    return Issue(loc, "this cannot change while the proxy runs", "restart it, or undo the change")


def _part(loc: Loc) -> Part:
    """Of the longest key of the table that leads to ``loc``. RESTART for a section that came or went."""
    return next((PARTS[key] for key in _prefixes(loc) if key in PARTS), Part.RESTART)


def _prefixes(loc: Loc) -> list[str]:
    """``loc`` and everything around it as the table writes it, the innermost first."""
    names = ["*" if at == 1 and loc[0] == "pools" else str(key) for at, key in enumerate(loc)]
    return [".".join(names[:length]) for length in range(len(names), 0, -1)]


def _differences(old: Model, new: Model, at: Loc) -> Iterator[Loc]:
    """Keys that differ, as far down as the table goes."""
    for name, field in type(old).model_fields.items():
        loc: Loc = (*at, key_of(name, field))
        was, now = getattr(old, name), getattr(new, name)
        if isinstance(was, Model) and isinstance(now, Model) and _prefixes(loc)[0] not in PARTS:
            yield from _differences(was, now, loc)
        elif was != now or _content(old, name) != _content(new, name):
            yield loc


def _content(model: Model, name: str) -> str:
    return model.digest(name) if isinstance(model, FileModel) else ""
