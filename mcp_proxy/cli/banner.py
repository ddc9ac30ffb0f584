"""What is said once the proxy listens: where, to whom, and a line to try.

Rules of this file: pure; no secret is shown; every URL works when it is pasted on this machine.
"""

from __future__ import annotations

import json
import shlex

from mcp_proxy import __version__
from mcp_proxy.config import Address, BackendConfig, Config, DiscoverConfig, PoolConfig
from mcp_proxy.config.addresses import DefaultedUrl
from mcp_proxy.config.amounts import format_duration, format_size
from mcp_proxy.config.redis_url import parse_url

_PROTOCOL_VERSION = "2025-11-25"
"""The newest revision with a handshake: its first message needs no state, and a server that speaks
only an older one answers with that."""


def banner(config: Config, listen: Address | None = None, admin: Address | None = None) -> str:
    """Several lines without a line break at the end. ``listen`` and ``admin``: the actual
    addresses, when the configuration left the port to the system."""
    listen = listen or config.listen
    admin = None if config.admin.listen is None else admin or config.admin.listen
    base = f"{'https' if config.tls else 'http'}://{_reachable(listen)}"
    everywhere = ", on every interface" if listen.is_wildcard else ""
    lines = [f"mcp-proxy {__version__}"]
    for route in config.routes:
        lines.append(_line("listen", f"{base}{route.path} -> {route.pool}{everywhere}"))
        if config.external_url is not None:
            lines.append(_line("", f"clients see {config.external_url}{route.path}"))
    for name, pool in config.pools.items():
        lines += _pool(name, pool)
    lines.append(_line("sessions", _sessions(config)))
    if config.workers > 1:
        lines.append(_line("workers", str(config.workers)))
    lines.append(_line("admin", _admin(config, admin)))
    lines.append(_line("limits", _limits(config)))
    lines.append(_line("try", _curl(config, f"{base}{config.routes[0].path}")))
    return "\n".join(lines)


def _line(label: str, text: str) -> str:
    return f"  {label:<9} {text}"


def _pool(name: str, pool: PoolConfig) -> list[str]:
    lines = [_line("pool", f"{name}: {pool.balance}, transport {pool.transport}")]
    if pool.discover is not None:
        lines.append(_line("", _discovery(pool.discover)))
    return lines + [_line("", _backend(backend)) for backend in pool.backends]


def _discovery(discover: DiscoverConfig) -> str:
    scheme, port = "https" if discover.tls else "http", "" if discover.port is None else f":{discover.port}"
    if discover.kubernetes is not None:
        service, namespace = discover.kubernetes.service, discover.kubernetes.namespace
        place = service if namespace is None else f"{namespace}/{service}"
        return f"the endpoints of the Service {place}{port}, {scheme} {discover.path}, watched"
    records = f"addresses of {discover.dns}{port}" if discover.srv is None else f"records of {discover.srv}"
    return f"the {records}, {scheme} {discover.path}, every {format_duration(discover.every)}"


def _backend(backend: BackendConfig) -> str:
    weight = f", weight {backend.weight}" if backend.weight != 1 else ""
    added = f" (had no path, /mcp added; write {backend.url.removesuffix('mcp')} for the root)"
    return f"{backend.url}{weight}{added if isinstance(backend.url, DefaultedUrl) else ''}"


def _sessions(config: Config) -> str:
    sessions = config.sessions
    idle = f"forgotten after {format_duration(sessions.ttl)} without use"
    if sessions.store == "memory":
        return f"memory, {idle} or when the proxy ends"
    registry = "" if sessions.url is None else parse_url(sessions.url).redacted
    if sessions.store == "redis":
        return f"{registry}, {idle}"
    beside = f"; ends and moves in {registry}" if registry else "; ends are known to this process only"
    return f"signed, {len(sessions.keys)} key{'s' if len(sessions.keys) > 1 else ''}{beside}"


def _admin(config: Config, admin: Address | None) -> str:
    if admin is None:
        return "off"
    guarded = ", needs the token" if config.admin.token else ""
    return f"http://{_reachable(admin)}/  (status page; /livez /readyz /metrics /status.json{guarded})"


def _limits(config: Config) -> str:
    limits = config.limits
    memory = "" if limits.memory is None else f", memory {format_size(limits.memory)}"
    delay = f"{format_duration(limits.drain_delay)} and then " if limits.drain_delay else ""
    return (
        f"body {format_size(limits.body)}, head {format_size(limits.head)}, {limits.streams} streams, "
        f"{limits.requests} requests{memory}, drain {delay}{format_duration(limits.drain)}"
    )


def _reachable(address: Address) -> Address:
    """A wildcard is no destination."""
    if not address.is_wildcard:
        return address
    return Address("::1" if ":" in address.host else "127.0.0.1", address.port)


def _curl(config: Config, url: str) -> str:
    params = {
        "protocolVersion": _PROTOCOL_VERSION,
        "capabilities": {},
        "clientInfo": {"name": "curl", "version": "1"},
    }
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    words = ["curl", "-sSiN", url]
    if config.tls is not None:
        # The certificate names the public host, hardly this address.
        words.append("-k")
        if config.tls.client_ca is not None:
            words += ["--cert", "client.crt", "--key", "client.key"]
    for field in ("Content-Type: application/json", "Accept: application/json, text/event-stream"):
        words += ["-H", field]
    return shlex.join([*words, "-d", json.dumps(message, separators=(",", ":"))])
