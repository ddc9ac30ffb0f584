"""Pools for tests: names of hosts and the transports to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mcp_proxy import clock
from mcp_proxy.backends import Backend, Endpoint
from mcp_proxy.clock import now
from mcp_proxy.pools import Pool, PoolPolicy
from mcp_proxy.tasks import Tasks
from mcp_proxy.upstream import Transport

PORT = 8000


def endpoint(host: str, **other: Any) -> Endpoint:
    return Endpoint(host, PORT, **other)


def pool_of(
    transports: Mapping[str, Transport] | Callable[[Backend], Transport],
    *hosts: str,
    name: str = "pool",
    kind: type[Pool] = Pool,
    tasks: Tasks | None = None,
    clock: Callable[[], float] = now,
    **policy: Any,
) -> Pool:
    """A pool of backends at ``hosts``. ``transports``: by host, or made when asked for."""
    dial = transports if callable(transports) else lambda backend: transports[backend.host]
    told = PoolPolicy(**({"balance": "round_robin"} | policy))
    pool = kind(name, told, dial, tasks or Tasks(), clock)
    pool.update([endpoint(host) for host in hosts], "reload")
    return pool


def unreachable(pool: Pool, backend: Backend, ago_s: float = 0.0) -> None:
    """A connect failed so long ago."""
    since_s = clock.now() - ago_s
    if backend.unreachable_since_s is None or backend.unreachable_since_s > since_s:
        backend.unreachable_since_s = since_s
    pool.refused(backend)
