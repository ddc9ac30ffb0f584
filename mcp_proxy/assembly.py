"""What the configuration of a pool becomes: the policy, the way to its backends, their source, their checks.

Rules of this file: with ``app.py`` the only place that names concrete transports and sources. What can
fail fails here, before anything is in force.
"""

from __future__ import annotations

import ssl
from typing import Any, Final

from mcp_proxy.affinity import Affinity
from mcp_proxy.backends import Backend, Source
from mcp_proxy.backends.ejection import Rule
from mcp_proxy.checkup import ActiveRule, Checkup
from mcp_proxy.config import DiscoverConfig, PoolConfig
from mcp_proxy.errors import StartupError
from mcp_proxy.pools import Dial, Pool, PoolPolicy
from mcp_proxy.tasks import Tasks
from mcp_proxy.upstream import Transport
from mcp_proxy.upstream.berths import Berths
from mcp_proxy.upstream.http11 import Http11Transport

_ERAS: Final = {"modern": True, "legacy": False}


def dial_of(config: PoolConfig, tasks: Tasks, berths: Berths) -> Dial:
    """How a pool's transports are made. Raises StartupError for certificates that cannot be used and
    packages that are not installed."""
    context = _ssl_context(config)
    timeouts = config.timeouts
    common: dict[str, Any] = {
        "tasks": tasks,
        "name": _name(config.discover),
        "server_name": None if config.tls is None else config.tls.server_name,
        "connect_timeout_s": timeouts.connect,
        "head_timeout_s": timeouts.response_head,
        "idle_timeout_s": timeouts.idle,
    }

    def http11(backend: Backend) -> Transport:
        tls = context if backend.tls else None
        return Http11Transport(backend.host, backend.port, berths=berths, ssl_context=tls, **common)

    if config.transport == "http11":
        return http11
    from mcp_proxy.upstream.httpx import HttpxTransport  # 0.1 s that others need not pay

    HttpxTransport.require(http2=config.http2, proxy=config.proxy)
    common |= {"http2": config.http2, "proxy": config.proxy}

    def httpx(backend: Backend) -> Transport:
        tls = context if backend.tls else None
        return HttpxTransport(origin=backend.origin, ssl_context=tls, **common)

    return httpx


def policy_of(config: PoolConfig) -> PoolPolicy:
    secret = config.credentials.authorization
    eject = config.health.eject
    return PoolPolicy(
        balance=config.balance,
        affinity=Affinity(config.affinity.key),
        tap=config.affinity.tap,
        authorization=None if secret is None else secret.value.encode("latin-1"),
        reinitializes=config.on_backend_loss == "reinitialize",
        lost_after_s=config.lost_after,
        unknown_after_s=config.unknown_after,
        drain_s=config.drain,
        slow_start_s=config.slow_start,
        eject=None if eject is None else Rule(eject.after, eject.for_, eject.at_most),
        is_modern=_ERAS.get(config.era),
    )


def checkup_of(pool: Pool, config: PoolConfig, tasks: Tasks) -> Checkup | None:
    active = config.health.active
    probes_era = config.era == "probe"
    if active is None and not probes_era:
        return None
    rule = None
    if active is not None:
        rule = ActiveRule(active.check, active.every, active.timeout, active.fall, active.rise)
    return Checkup(pool, tasks, active=rule, probes_era=probes_era)


def source_of(pool: PoolConfig) -> Source | None:
    """None: the backends are named. Raises StartupError if a package is not installed."""
    config = pool.discover
    if config is None:
        return None
    if config.dns is not None:
        from mcp_proxy.discovery.dns import DnsSource

        assert isinstance(config.port, int)
        return DnsSource(config.dns, config.port, path=config.path, tls=config.tls, every_s=config.every)
    if config.srv is not None:
        from mcp_proxy.discovery.srv import SrvSource

        return SrvSource(config.srv, path=config.path, tls=config.tls, every_s=config.every)
    assert config.kubernetes is not None
    from mcp_proxy.discovery.kubernetes import KubernetesSource

    service = config.kubernetes
    return KubernetesSource(
        service.service, service.namespace, port=config.port, path=config.path, tls=config.tls
    )


def needs_tls(config: PoolConfig) -> bool:
    if config.tls is not None:
        return True
    if config.discover is not None:
        return config.discover.tls
    return any(entry.url.startswith("https:") for entry in config.backends)


def _name(config: DiscoverConfig | None) -> str | None:
    """What backends are called that are known by their addresses only; certificates and Hosts have names."""
    if config is None or config.kubernetes is None:
        return None if config is None else config.dns
    service = config.kubernetes
    return f"{service.service}.{service.namespace}.svc" if service.namespace else service.service


def _ssl_context(config: PoolConfig) -> ssl.SSLContext:
    """For backends with https: the system's authorities unless the pool names its own. To load those takes
    some 20 ms, so only for pools that need them."""
    tls = config.tls
    if not needs_tls(config):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context = ssl.create_default_context(cafile=None if tls is None else tls.ca)
        if tls is not None and tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:
        raise StartupError(f"cannot use the certificates of a pool: {error}") from error
    return context
