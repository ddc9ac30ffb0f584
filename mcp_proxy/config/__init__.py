"""The configuration: frozen values, and ``load``, which builds them from file, variables and flags."""

from __future__ import annotations

from mcp_proxy.config.addresses import Address
from mcp_proxy.config.loader import Loaded, load, read
from mcp_proxy.config.models import (
    AddressLimits,
    AdminConfig,
    ClientLimits,
    Config,
    Limits,
    RouteConfig,
    SessionsConfig,
    TelemetryConfig,
    TlsConfig,
    TracesConfig,
)
from mcp_proxy.config.pools import (
    ActiveConfig,
    AffinityConfig,
    BackendConfig,
    Credentials,
    DiscoverConfig,
    EjectConfig,
    HealthConfig,
    KubernetesService,
    PoolConfig,
    Timeouts,
    UpstreamTls,
)
from mcp_proxy.config.problems import ConfigErrors, Problem
from mcp_proxy.config.secret import Secret

__all__ = [
    "ActiveConfig",
    "Address",
    "AddressLimits",
    "AdminConfig",
    "AffinityConfig",
    "BackendConfig",
    "ClientLimits",
    "Config",
    "ConfigErrors",
    "Credentials",
    "DiscoverConfig",
    "EjectConfig",
    "HealthConfig",
    "KubernetesService",
    "Limits",
    "Loaded",
    "PoolConfig",
    "Problem",
    "RouteConfig",
    "Secret",
    "SessionsConfig",
    "TelemetryConfig",
    "Timeouts",
    "TlsConfig",
    "TracesConfig",
    "UpstreamTls",
    "load",
    "read",
]
